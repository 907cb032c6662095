"""A holder in a process of its own: `holder.py FOLDER PORT ENGINE READER [shm | ucx:TRANSPORTS]…`.

Prints its port and a ticket (hex) for the one blob in its store, then serves until it is killed.
"""

import sys
from pathlib import Path

import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.offload import Offload
from ioc_node.bulk.offloads.shm import ShmOffload
from ioc_node.bulk.offloads.ucx import UcxOffload
from ioc_node.bulk.transfers import open_bulk
from ioc_wire.codec import encode
from tests.bulk.conftest import ALICE


def make_offload(name: str, folder: Path) -> Offload:
    """`shm`, or `ucx:tcp` and so on, on loopback."""
    if name == "shm":
        return ShmOffload(folder)
    return UcxOffload(
        folder, {"interfaces": ["lo"], "transports": name.partition(":")[2].split(",")}, tried=True
    )


async def main(folder: str, port: str, engine: str, reader: str, *offloads: str) -> None:
    store = BlobStore(Path(folder) / "store")
    roads = [make_offload(each, Path(folder) / "run") for each in offloads]
    async with open_bulk(store, ALICE, port=int(port), engine=engine, offloads=roads) as bulk:  # type: ignore[arg-type]
        ticket = bulk.issue_ticket(store.list_blobs()[0], bytes.fromhex(reader), hosts=["127.0.0.1"])
        sys.stdout.write(f"{bulk.port} {encode(ticket).hex()}\n")
        sys.stdout.flush()
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
