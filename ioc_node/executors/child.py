"""One bubblewrap process and the sandbox that it keeps: started, waited for with its resource usage, killed
whole.

bwrap starts process 1 of a process namespace; when that dies the kernel ends everything in it, and bwrap,
having waited for it, hands on the CPU time of the whole tree. So it is process 1 that is killed, not bwrap.
"""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

KILL_SECONDS: Final = 2.0
"""How long after the sandbox bwrap itself may live."""
STATUS_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Ended:
    """Exit status as of a shell, and CPU seconds (user and system) of everything that ran in the sandbox."""

    status: int
    core_seconds: float


class Child:
    """A running sandbox. Start it in the trio thread: the kernel ends it together with the thread that
    started it."""

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int], status_fds: tuple[int, int]) -> None:
        self._status_read, status_write = status_fds
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(*pass_fds, status_write),
            start_new_session=True,  # a Ctrl-C at the node's terminal is the node's business
            env={},
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.stdout = trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno()))
        self.stderr = trio.lowlevel.FdStream(os.dup(self._process.stderr.fileno()))
        self._process.stdout.close()
        self._process.stderr.close()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._first_pidfd: int | None = None
        self._status_text = b""
        self._finding = trio.Lock()
        self.first: int | None = None
        """Process 1 of the sandbox, as numbered outside; None until it exists."""
        self.ended: Ended | None = None

    async def find_first(self) -> bool:
        """Wait until the sandbox has its process 1. False when bwrap gave up before, or that process has ended."""
        async with self._finding:
            while self.first is None and b"\n" not in self._status_text:
                await trio.lowlevel.wait_readable(self._status_read)
                chunk = os.read(self._status_read, STATUS_BYTES_MAX)
                if not chunk:
                    return False
                self._status_text += chunk
            if self.first is None:
                first = int(json.loads(self._status_text.split(b"\n")[0])["child-pid"])
                try:
                    self._first_pidfd = os.pidfd_open(first)
                except ProcessLookupError:
                    return False
                self.first = first
            return True

    async def kill(self) -> None:
        """End the sandbox with everything in it. What is gone already is fine.

        bwrap tells of process 1 before it lets it run, and only later binds its life to its own. To kill bwrap in
        between would leave process 1 behind, so it is waited for.
        """
        if self.ended is None:
            with trio.move_on_after(KILL_SECONDS):
                await self.find_first()
        try:
            if self._first_pidfd is not None:
                signal.pidfd_send_signal(self._first_pidfd, signal.SIGKILL)
            elif self.ended is None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    async def wait(self) -> Ended:
        """Wait for the end and take the usage; may be cancelled and called again."""
        while self.ended is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            process, status, usage = os.wait4(self._process.pid, os.WNOHANG)  # noqa: ASYNC222 (does not block)
            if process == self._process.pid:
                code = os.waitstatus_to_exitcode(status)
                self._process.returncode = code
                self.ended = Ended(code if code >= 0 else 128 - code, usage.ru_utime + usage.ru_stime)
        return self.ended

    async def aclose(self) -> None:
        """Kill what still runs, wait for it, and close every descriptor, also when being cancelled."""
        with trio.CancelScope(shield=True):
            await self.kill()
            with trio.move_on_after(KILL_SECONDS):
                await self.wait()
            if self.ended is None:
                self._process.kill()
                await self.wait()
            await trio.aclose_forcefully(self.stdout)
            await trio.aclose_forcefully(self.stderr)
        for descriptor in (self._pidfd, self._first_pidfd, self._status_read):
            if descriptor is not None:
                os.close(descriptor)
