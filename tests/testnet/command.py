"""Run the command lines as a user does, and look for what they leave behind."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

NODE = (sys.executable, "-m", "ioc_node.cli.main")
TESTNET = (sys.executable, "-m", "ioc_testnet.cli")


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of the output."""
        return dict(json.loads(self.out.splitlines()[-1]))

    def check(self) -> "Done":
        assert self.code == 0, self
        return self

    def check_refused(self, *words: str) -> "Done":
        """It failed with one clear line that holds `words`, and no traceback."""
        assert self.code not in (0, 1), self
        assert "Traceback" not in self.out + self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self
        for word in words:
            assert word in lines[0], self
        return self


def run(command: Sequence[str], *args: object, env: dict[str, str] | None = None) -> Done:
    done = subprocess.run(
        [*command, *map(str, args)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def started(command: Sequence[str], *args: object, env: dict[str, str] | None = None) -> Iterator[Any]:
    """A command in the background; killed when the block ends, if it has not ended by then."""
    process = subprocess.Popen(
        [*command, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
    )
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        process.wait()


def read_until(process: Any, words: str) -> str:
    """The output of a started command, up to and with the first line that holds `words`."""
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"it ended before it said {words!r}: {seen}")


def processes_in(folder: Path) -> list[int]:
    """Processes whose command line names something in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in vain for {seconds} s: {what}"
        time.sleep(0.05)


def port_is_free(port: int) -> bool:
    with contextlib.ExitStack() as stack:
        try:
            for number, kind in (
                (port, socket.SOCK_STREAM),
                (port, socket.SOCK_DGRAM),
                (port + 1, socket.SOCK_DGRAM),
            ):
                probe = stack.enter_context(socket.socket(socket.AF_INET, kind))
                if kind == socket.SOCK_STREAM:  # connections that have ended may linger in TIME_WAIT
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", number))
        except OSError:
            return False
    return True


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}
