"""The inputs that are kept: one text file per target in `corpus/`, one input a line in hexadecimal.

`seed` lines are made from `wire/vectors` by `python -m tests.fuzz.seeds`; `found` lines were found by campaigns,
because they went where no input before them went, or because something broke.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "corpus"
FOUND_MAX: Final = 100
"""Found inputs kept per target: a corpus that nobody waits for is replayed by every test run."""


def load(target: str) -> dict[bytes, str]:
    """Inputs of a target and where each comes from; empty if there is no file."""
    path = FOLDER / f"{target}.txt"
    if not path.exists():
        return {}
    inputs = {}
    for line in path.read_text("ascii").splitlines():
        digits, _, origin = line.partition(" ")
        inputs[bytes.fromhex(digits)] = origin or "found"
    return inputs


def save(target: str, inputs: dict[bytes, str]) -> None:
    """Write the file of a target anew, in order."""
    lines = sorted(f"{data.hex()} {origin}" for data, origin in inputs.items())
    (FOLDER / f"{target}.txt").write_text("".join(f"{line}\n" for line in lines), "ascii")


def replace_seeds(target: str, seeds: Iterable[bytes]) -> None:
    """Exchange the seeds, keep what was found."""
    found = {data: origin for data, origin in load(target).items() if origin != "seed"}
    save(target, found | dict.fromkeys(seeds, "seed"))


def add_found(target: str, inputs: Iterable[bytes]) -> int:
    """Keep these too, the shortest first, up to `FOUND_MAX` in all; return how many were new."""
    known = load(target)
    room = FOUND_MAX - sum(origin == "found" for origin in known.values())
    new = sorted(set(inputs) - known.keys(), key=lambda data: (len(data), data))[: max(room, 0)]
    save(target, known | dict.fromkeys(new, "found"))
    return len(new)
