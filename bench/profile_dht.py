"""Where the time of a one-hop get goes: `python -m bench.profile_dht [GETS]`.

50 nodes in one process; gets one after the other, each by a reader that does not hold the record; reader's and server's
work together. First the CPU time of the gets is taken alone, then again under cProfile, of which only the time inside C
functions is used, less what tracing adds to each call: signature checks, AES-GCM, MessagePack, socket calls. What is
left of the first figure is trio and our own Python.
"""

import cProfile
import pstats
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any, Final

import structlog
import trio

from bench.dht_ours import Ring, open_ring

NODES: Final = 50
GETS: Final = 400
PARTS: Final = (
    ("Ed25519 checks", ("crypto_sign", "Ed25519")),
    ("AES-GCM", ("AESGCM",)),
    ("MessagePack", ("msgpack",)),
    ("sendto", ("'sendto'",)),
    ("recvfrom", ("'recvfrom'",)),
    ("waiting for the socket (epoll)", ("'poll' of 'select.epoll'",)),
    ("hashes", ("_hashlib", "_blake2", "_sha")),
)
"""Names as cProfile writes them for C functions, by what they do."""


CHEAPEST: Final = "<built-in method builtins.len>"
"""What tracing makes a call cost is read from this one and taken off all others."""


def _entries(profile: cProfile.Profile) -> Any:
    return pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]


def part_of(name: str) -> str | None:
    """Which part a C function belongs to."""
    return next((part for part, marks in PARTS if any(mark in name for mark in marks)), None)


async def get_all(ring: Ring, numbers: range, holders: dict[int, set[bytes]]) -> float:
    """Seconds of CPU time per get, of gets one after the other."""
    plan = [
        (
            ring.rng.choice([n for n in ring.nodes if n.node_id not in holders[number]]),
            ring.records.cid(number),
        )
        for number in numbers
    ]
    began = time.process_time()
    for reader, cid in plan:
        await reader.get(cid)
    return (time.process_time() - began) / len(plan)


async def measure(gets: int) -> tuple[float, Counter[str]]:
    """Seconds per get without the profiler, and seconds per get in each part."""
    async with AsyncExitStack() as stack:
        ring = Ring(await open_ring(stack, NODES), 0)
        holders = {}
        for number in range(2 * gets):
            report = await ring.rng.choice(ring.nodes).put(ring.records.signed(number))
            holders[number] = {contact.node_id for contact in report.stored}
        alone = await get_all(ring, range(gets), holders)
        profile = cProfile.Profile(time.process_time)
        profile.enable()
        await get_all(ring, range(gets, 2 * gets), holders)
        profile.disable()
    calls = {name: (count, seconds) for (_, _, name), (count, _, seconds, _, _) in _entries(profile)}
    count, seconds = calls[CHEAPEST]
    tracing = seconds / count
    parts: Counter[str] = Counter()
    for name, (count, seconds) in calls.items():
        part = part_of(name)
        if part is not None:
            parts[part] += max(seconds - count * tracing, 0.0) / gets
    return alone, parts


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    alone, parts = trio.run(measure, int(sys.argv[1]) if sys.argv[1:] else GETS)
    print(f"one-hop get, {NODES} nodes in one process: {1e6 * alone:.0f} µs of CPU time")
    for part, seconds in parts.most_common():
        print(f"  {1e6 * seconds:6.1f} µs  {100 * seconds / alone:4.1f} %  {part}")
    rest = alone - sum(parts.values())
    print(f"  {1e6 * rest:6.1f} µs  {100 * rest / alone:4.1f} %  trio and our Python")


if __name__ == "__main__":
    main()
