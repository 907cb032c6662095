"""Node processes: started, waited for, ended. Always by pid and start time together, never by name."""

import os
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import trio

from ioc_node.errors import NodeError

READY_SECONDS_MAX: Final = 60.0
TERM_SECONDS_MAX: Final = 6.0
KILL_SECONDS_MAX: Final = 5.0
LOG_NAME: Final = "node.log"


class Ready(msgspec.Struct, frozen=True):
    """What a node says when it listens."""

    node_id: str
    host: str
    port: int
    pid: int


def start_mark(pid: int) -> str:
    """When process `pid` was started, in ticks since boot; "" where there is none, or only its corpse.

    With the pid it names a process: a pid that was given to somebody else has another mark (proc(5), fields 3 and 22).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" and _threads(pid) <= 1 else fields[19]


def _threads(pid: int) -> int:
    # The first thread of a process that was killed may be a corpse while the others still hold its ports.
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return 0


@dataclass(eq=False)
class NodeProcess:
    """One process that was started here or by an earlier command. `child` is set only where it is ours to reap."""

    pid: int
    mark: str
    child: "subprocess.Popen[bytes] | None" = None

    @property
    def alive(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        return bool(self.mark) and start_mark(self.pid) == self.mark

    def send(self, number: signal.Signals) -> None:
        """Signal exactly this process; nothing happens where it has ended."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if self.alive:  # checked after the descriptor was opened: it cannot become another's in between
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return
        finally:
            os.close(descriptor)

    async def wait(self) -> None:
        """Until it has ended; reaps it where it is our child."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            self.reap()
            return
        try:
            if self.alive:
                await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        self.reap()

    def reap(self) -> None:
        if self.child is not None:
            self.child.poll()


async def end_processes(processes: list[NodeProcess]) -> None:
    """End all of them in order (SIGTERM), those that don't listen by force (SIGKILL). Not to be interrupted."""
    with trio.CancelScope(shield=True):
        for number, seconds in ((signal.SIGTERM, TERM_SECONDS_MAX), (signal.SIGKILL, KILL_SECONDS_MAX)):
            left = [process for process in processes if process.alive]
            for process in left:
                process.send(number)
                process.send(signal.SIGCONT)
            with trio.move_on_after(seconds):
                for process in left:
                    await process.wait()
        for process in processes:
            process.reap()


def spawn_node(home: Path, *, parent_fd: int | None) -> tuple[NodeProcess, int]:
    """Start the node of `home` as a process of its own; returns it and the descriptor where it will say `Ready`.

    It gets a process group of its own, so that Ctrl-C in a terminal reaches only whoever started the network. With
    `parent_fd` it ends when that pipe closes, which is when this process ends, however it does.
    """
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    command = [
        sys.executable,
        "-m",
        "ioc_node.cli.main",
        "--home",
        str(home),
        "up",
        "--ready-fd",
        str(ready_write),
    ]
    passed = [ready_write]
    if parent_fd is not None:
        command += ["--parent-fd", str(parent_fd)]
        passed.append(parent_fd)
    try:
        with (home / LOG_NAME).open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=passed,
                start_new_session=True,
                cwd=home,
            )
    except OSError as error:
        os.close(ready_read)
        raise NodeError(f"cannot start the node of {home}: {error.strerror or error}") from None
    finally:
        os.close(ready_write)
    return NodeProcess(child.pid, start_mark(child.pid), child), ready_read


async def wait_ready(descriptor: int, name: str, home: Path) -> Ready:
    """What the node says when it listens. Raises `NodeError` with its last words where it ends before."""
    data = b""
    with trio.move_on_after(READY_SECONDS_MAX) as patience:
        async with trio.lowlevel.FdStream(descriptor) as stream:
            while chunk := await stream.receive_some(4096):
                data += chunk
    if patience.cancelled_caught:
        raise NodeError(f"{name} was not ready within {READY_SECONDS_MAX:.0f} s: see {home / LOG_NAME}")
    if not data:
        raise NodeError(f"{name} did not start: {last_words(home) or 'it said nothing'}")
    return msgspec.json.decode(data, type=Ready)


def last_words(home: Path, lines: int = 1) -> str:
    """The end of a node's log, in one line."""
    try:
        with (home / LOG_NAME).open(encoding="utf-8", errors="replace") as file:
            words = deque((line.strip() for line in file if line.strip()), maxlen=lines)
    except OSError:
        return ""
    return " / ".join(words).removeprefix("error: ")
