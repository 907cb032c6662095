"""One node of our DHT in a process of its own: `python -m bench.dht_member HOST`, driven by `bench.dht_processes`.

Prints `{"address": [host, port]}`, then answers each line of JSON from standard input with one:

- `{"do": "join", "addresses": [[host, port], ...]}`: `{}`
- `{"do": "wait", "others": N}`: `{}` when it has verified N other servers, and knows that these are all
- `{"do": "put", "number": N}`: `{"seconds", "holders"}`, the addresses of those that hold record N of the key that
  all members share, so that the driver can choose a reader that must ask; `seconds` is null where nobody stored it
- `{"do": "get", "number": N, "answers": A}`: `{"seconds"}`, null where it was not found
"""

import json
import time
from collections.abc import Mapping
from typing import Any, Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.dht_ours import Records, found_seconds, knows_all, open_node
from ioc_node.runtime.dht import Dht

RECORDS: Final = Records(Ed25519PrivateKey.from_private_bytes(b"bench.dht members".ljust(32)))
LINE_BYTES_MAX: Final = 65536


async def obey(node: Dht, told: Mapping[str, Any]) -> dict[str, Any]:
    """Do as a line says; return the answer."""
    match told["do"]:
        case "join":
            await node.join([(host, port) for host, port in told["addresses"]])
            return {}
        case "wait":
            while not knows_all(node, told["others"]):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.02)
            return {}
        case "put":
            record = RECORDS.signed(told["number"])
            began = time.perf_counter()
            report = await node.put(record)
            seconds = time.perf_counter() - began
            stored = [list(contact.address) for contact in report.stored]
            return {"seconds": seconds if stored else None, "holders": stored}
        case "get":
            return {"seconds": await found_seconds(node, RECORDS.cid(told["number"]), told["answers"])}
    raise ValueError(told)


async def serve() -> None:
    """Until standard input ends."""
    async with open_node() as node:
        print(json.dumps({"address": node.address}), flush=True)
        lines = trio.lowlevel.FdStream(0)
        pending = b""
        while data := await lines.receive_some(LINE_BYTES_MAX):
            *whole, pending = (pending + data).split(b"\n")
            for line in whole:
                print(json.dumps(await obey(node, json.loads(line))), flush=True)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    trio.run(serve)
