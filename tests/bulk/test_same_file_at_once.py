"""The same bytes added by many tasks at once are one blob, and nobody's temporary file is another's."""

from pathlib import Path

import trio

from ioc_node.bulk.blobs import BlobStore


async def test_one_file_added_by_many_at_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"the same bytes" * 50)
    store = BlobStore(tmp_path / "blobs")
    found = set()

    async def add() -> None:
        found.add((await store.add_file(source)).id)

    for _ in range(5):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(add)
    assert store.list_blobs() == list(found)
    left = {path.name for path in (tmp_path / "blobs" / "complete").iterdir()}
    assert len(left) == 1, left
