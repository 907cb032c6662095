"""A reader in a process of its own: `reader.py FOLDER TICKET [OFFLOAD]…`; prints a line for every chunk it keeps."""

import sys
from pathlib import Path

import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.transfers import open_bulk
from ioc_wire.bulk import Ticket
from ioc_wire.codec import decode
from tests.bulk.conftest import BOB
from tests.bulk.holder import make_offload


def tell(here: int, _size: int) -> None:
    sys.stdout.write(f"{here}\n")
    sys.stdout.flush()


async def main(folder: str, ticket: str, *offloads: str) -> None:
    roads = [make_offload(each, Path(folder) / "run") for each in offloads]
    async with open_bulk(BlobStore(Path(folder)), BOB, offloads=roads) as bulk:
        await bulk.fetch(decode(bytes.fromhex(ticket), Ticket), on_progress=tell)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
