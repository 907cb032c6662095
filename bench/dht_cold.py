"""A fresh process that resolves one identifier: `python -m bench.dht_cold HOST PORT CID MONOTONIC`.

MONOTONIC is the monotonic clock's time at which the process was started. Prints one JSON object with seconds:
`imported`, from then to the end of the imports; `resolved`, from opening a client node without any session to its first
record, with HOST:PORT as the only address known. The get begins when that address has answered; joining goes on.
"""

import random
import sys
import time

import msgspec
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.runtime.dht import open_dht
from ioc_node.runtime.driver import open_background

IMPORTED = time.monotonic()


async def resolve(host: str, port: int, cid: str) -> float:
    """Seconds until the record is here."""
    began = time.perf_counter()
    async with (
        open_dht(
            key=Ed25519PrivateKey.generate(), host="127.0.0.1", port=0, network_id=b"bench.dht".ljust(32),
            roots=frozenset(), admission="open", chain=(), server=False, advertise_host=None,
            rng=random.SystemRandom(),
        ) as node,
        open_background() as background,
    ):  # fmt: skip
        background.start_soon(node.join, [(host, port)])
        await node.wait_known()
        await node.get(cid)
        return time.perf_counter() - began


def main() -> None:
    host, port, cid, started = sys.argv[1:]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    seconds = trio.run(resolve, host, int(port), cid)
    report = {"imported": IMPORTED - float(started), "resolved": seconds}
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")


if __name__ == "__main__":
    main()
