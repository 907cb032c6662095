"""A long search for inputs that break a target: `python -m tests.fuzz.campaign TARGET --seconds 60 [--keep]`.

With `atheris` (libFuzzer for Python) coverage steers the search, and what goes where nothing went before can be kept.
Without it, the corpus is mutated blindly. Exit 1 with the input in hexadecimal when the property does not hold.
"""

import argparse
import importlib
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

INPUT_BYTES_MAX: Final = 1400
MEMORY_MIB_MAX: Final = 2048
FAILED: Final = 1


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def search(target: str, seconds: float, *, keep: bool = False) -> str | None:
    """Run a campaign; return what broke, or None. `keep` adds what was found to the corpus."""
    return _guided(target, seconds, keep) if has_atheris() else blind(target, seconds)


def blind(target: str, seconds: float, seed: int = 1) -> str | None:
    """Mutate the corpus until the time is over."""
    from tests.fuzz import corpus
    from tests.fuzz.mutation import mutate
    from tests.fuzz.targets import TARGETS

    dice = random.Random(f"{target} {seed}")
    inputs = sorted(corpus.load(target))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        data = mutate(dice.choice(inputs), inputs, dice)
        try:
            TARGETS[target](data)
        except Exception as error:  # noqa: BLE001 - that is what we look for
            return f"{data.hex()}: {error!r}"
    return None


def _guided(target: str, seconds: float, keep: bool) -> str | None:
    from tests.fuzz import corpus

    with tempfile.TemporaryDirectory() as folder:
        known, grown = Path(folder) / "known", Path(folder) / "grown"
        known.mkdir()
        grown.mkdir()
        for number, data in enumerate(corpus.load(target)):
            (known / str(number)).write_bytes(data)
        options = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={INPUT_BYTES_MAX}", "-timeout=20"]
        options += [f"-rss_limit_mb={MEMORY_MIB_MAX}", f"-artifact_prefix={folder}/broken-", "-seed=1"]
        command = [sys.executable, "-m", "tests.fuzz.campaign", target, "--child"]
        done = subprocess.run(
            [*command, *options, str(grown), str(known)], capture_output=True, text=True, check=False
        )
        broken = sorted(Path(folder).glob("broken-*"))
        if broken or done.returncode:
            data = broken[0].read_bytes() if broken else b""
            return f"{data.hex()}: {(done.stdout + done.stderr)[-3000:]}"
        if keep:  # libFuzzer writes what went where nothing went before
            corpus.add_found(target, (path.read_bytes() for path in grown.iterdir()))
    return None


def _run_inside(target: str, options: list[str]) -> None:
    """In the child: hand over to libFuzzer, which ends the process."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["ioc_wire", "ioc_node.core"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *options], TARGETS[target])
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        _run_inside(arguments.target, arguments.child)
    broken = search(arguments.target, arguments.seconds, keep=arguments.keep)
    if broken is not None:
        print(broken)  # noqa: T201 - a command's output
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
