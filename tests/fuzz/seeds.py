"""Make the seeds of the corpus from the golden vectors: `python -m tests.fuzz.seeds`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ioc_wire import codec, dht
from ioc_wire.authority import chain_hash
from ioc_wire.signed import Signed
from tests.fuzz import corpus, stage
from tests.fuzz.targets import STRUCTS, TARGETS
from tests.wire.structs import struct_name

VECTORS: Final = Path(__file__).parents[2] / "wire" / "vectors"
PACKETS: Final = {
    dht.KNOCK: "knock", dht.WHOAREYOU: "whoareyou", dht.HANDSHAKE: "handshake", dht.REFUSED: "refused",
}  # fmt: skip
PAYLOADS: Final = {
    "records.ResourceRecord": ("record", "trust"),
    "records.Tombstone": ("tombstone", "trust"),
    "dht.HolderRecord": ("holder",),
    "authority.Delegation": ("delegation",),
    "authority.Revocation": ("revocation",),
    "authority.RevocationNews": ("news",),
}
HOSTS: Final = ("c0000201", "7f000001", "e0000001", "ffffffff", "00" * 15 + "01", "20010db8" + "00" * 12)


def values_in(node: Any) -> Iterator[tuple[str, bytes]]:
    """Every `{"type": …, "bytes": …}` of a file, by its type."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str) and isinstance(node.get("bytes"), str):
            yield node["type"], bytes.fromhex(node["bytes"])
        for value in node.values():
            yield from values_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from values_in(value)


def make() -> dict[str, list[bytes]]:
    """The seeds of every target."""
    seeds: dict[str, list[bytes]] = {name: [b""] for name in TARGETS}
    files = {path.stem: json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))}
    names = {struct_name(kind): number for number, kind in enumerate(STRUCTS)}
    messages = {struct_name(kind) for kind in dht.AnyMessage.__args__}
    for kind, data in (pair for file in files.values() for pair in values_in(file)):
        if kind in names:
            seeds["struct"].append(bytes((names[kind],)) + data)
        if kind in messages:
            seeds["message"].append(data)
            seeds["unknown-request"].append(data)
        for target in PAYLOADS.get(kind, ()):
            seeds[target].append(data)
        if kind == "signed.Signed":
            seeds["signed"].append(data)
        if kind in ("dht.Opening", "dht.Acceptance"):
            seeds[kind.removeprefix("dht.").lower()].append(data)
    for packet in packets():
        if packet[0] in PACKETS:
            seeds[PACKETS[packet[0]]].append(packet)
    for chain in files["authority"]["chains"]:
        links = tuple(
            codec.decode(bytes.fromhex(link["envelope"]["bytes"]), Signed) for link in chain["links"]
        )
        seeds["chain"].append(codec.encode(links))
        seeds["opening"].append(codec.encode(dht.Opening(links[:4], b"")))
        assert len(chain_hash(links)) == 32
    seeds["entry"].extend(
        data for kind, data in values_in(files["catalogue"]) if kind.endswith("CatalogueEntry")
    )
    seeds["host"].extend(map(bytes.fromhex, HOSTS))
    seeds["machines"].extend(scripts(seeds["message"], seeds["opening"], seeds["acceptance"]))
    return seeds


def packets() -> list[bytes]:
    """One of each kind as two machines exchanged them, a REFUSED among them."""
    played = stage.Stage()
    lost = played.deliver(bytes((dht.MESSAGE,)) + bytes(40), stage.MALLORY)
    first = {packet[0]: packet for packet in [*lost, *(packet for packet, _, _ in reversed(played.recorded))]}
    return list(first.values())


def scripts(messages: list[bytes], openings: list[bytes], acceptances: list[bytes]) -> Iterator[bytes]:
    """Scripts that bring each message to a machine, in each way a message can come."""
    for message in messages:
        yield stage.script((3, 0, message), (6, 9, b""), (4, 0, message))
        request = message[:2]
        yield stage.script((7, 0, b""), (7, 2, b""), (7, 3, b""), (5, 0, request + message[3:]), (6, 20, b""))
        yield stage.script((8, 1, codec.encode(dht.Opening(None, message))), (6, 5, b""))
        yield stage.script((9, 0, codec.encode(dht.Acceptance(bytes(8), 1, None, message))), (6, 30, b""))
    for number, (data, _, _) in enumerate(stage.Stage().recorded):
        yield stage.script(
            (0, 1, data), (1, 1, data), (2, number, b"\0\x15\1"), (2, number, b"\3"), (6, 50, b"")
        )
    for data in openings:
        yield stage.script((8, 0, data))
    for data in acceptances:
        yield stage.script((9, 0, data), (6, 40, b""))


def main() -> None:
    for target, inputs in make().items():
        corpus.replace_seeds(target, inputs)


if __name__ == "__main__":
    main()
