"""A DHT of processes with one node each: `python -m bench.dht_processes SYSTEM NODES OPERATIONS SEED`.

SYSTEM is `ours` or a peer whose script in `bench/peers` has `member`. Prints one JSON object with lists of seconds
`put`, `get` and `authoritative`, measured in the member that did it, one operation at a time, and the share of `hits`.
Whoever is asked must first be woken: that is in these figures and not in those of one process.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from bench.dht_ours import ANSWERS, OURS, SETTLE_SECONDS, Samples
from bench.peers.setup import python_of

PEER_SETTLE_SECONDS: Final = 8.0


class Member:
    """One node's process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input: IO[str] = process.stdin
        self._output: IO[str] = process.stdout
        self.address: list[Any] = self.hear()["address"]

    def tell(self, do: str, **told: Any) -> None:
        """Send one line."""
        self._input.write(json.dumps({"do": do, **told}) + "\n")
        self._input.flush()

    def hear(self) -> dict[str, Any]:
        """The next answer; raises `RuntimeError` when the process has ended."""
        line = self._output.readline()
        if not line:
            raise RuntimeError("a member of the network ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **told: Any) -> dict[str, Any]:
        """Send one line and wait for its answer."""
        self.tell(do, **told)
        return self.hear()


def command_of(system: str, number: int) -> list[str]:
    """What runs one member."""
    if system == OURS:
        return [sys.executable, "-m", "bench.dht_member"]
    script = Path(__file__).parent / "peers" / f"{system}_ring.py"
    return [str(python_of(system)), str(script), "member", f"127.0.8.{number + 1}"]


@contextmanager
def open_members(system: str, count: int) -> Iterator[list[Member]]:
    """A settled network; its processes are killed at the end of the block."""
    processes = []
    try:
        for number in range(count):
            processes.append(
                subprocess.Popen(
                    command_of(system, number), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
        members = [Member(process) for process in processes]
        for member in members[1:]:
            member.ask("join", addresses=[members[0].address])
        for member in members:
            member.tell("wait", others=count - 1, seconds=PEER_SETTLE_SECONDS)
        for member in members:
            member.hear()
        time.sleep(SETTLE_SECONDS)
        yield members
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def measure(system: str, count: int, operations: int, seed: int) -> Samples:
    """Puts by random members, and gets by random members that do not hold the record."""
    rng = random.Random(seed)
    samples: Samples = {"put": [], "get": [], "authoritative": []}
    with open_members(system, count) as members:
        holders = {}
        for number in range(operations):
            answer = rng.choice(members).ask("put", number=number)
            holders[number] = answer["holders"]
            samples["put"].append(answer["seconds"])
        for name, answers in (("get", 1), ("authoritative", ANSWERS)):
            for number in range(operations):
                readers = [member for member in members if member.address not in holders[number]]
                answer = rng.choice(readers).ask("get", number=number, answers=answers)
                samples[name].append(answer["seconds"])
    found = {name: [each for each in seconds if each is not None] for name, seconds in samples.items()}
    return found | {"hits": (len(found["get"]) + len(found["authoritative"])) / (2 * operations)}


def main() -> None:
    system = sys.argv[1]
    count, operations, seed = (int(text) for text in sys.argv[2:5])
    print(json.dumps(measure(system, count, operations, seed)), flush=True)


if __name__ == "__main__":
    main()
