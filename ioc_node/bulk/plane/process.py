"""The process that moves bulk data, as its node runs it: started when there is something to move, and started again
where it ended in the middle.

The node keeps the sockets, so that a port taken is told at start and nothing sent meanwhile is lost.
"""

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import structlog
import trio

from ioc_node.bulk.plane import begin
from ioc_node.bulk.plane import messages as say
from ioc_node.bulk.udp import UdpSocket
from ioc_node.errors import NodeError, PeerUnreachable
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.link_mux import Link
from ioc_node.runtime.link_transport import StreamTransport
from ioc_wire.errors import WireError

START_SECONDS: Final = 30.0
"""A process that has not answered by then, on however busy a machine, does not work."""
STOP_SECONDS: Final = 3.0
"""It is killed where it has not ended by then."""
RESTART_SECONDS: Final = 0.1
RESTART_SECONDS_MAX: Final = 10.0
SETTLED_SECONDS: Final = 60.0
"""A process that lasted so long is started again without delay."""
ATTEMPTS_MAX: Final = 3
"""Processes that one transfer may lose."""

_T = TypeVar("_T")
_log = structlog.get_logger()


@dataclass(frozen=True)
class PlaneProcess:
    """How to run the process: its niceness above the node's, how long it stays with nothing to do, how it logs."""

    nice: int = 5
    idle_seconds: float = 60.0
    log_level: str = "info"
    log_format: str = "console"


class Attend(Protocol):
    """Runs beside a process that has answered the opening, until it ends. Nothing is asked of it before `started`."""

    async def __call__(
        self, link: Link, opening: say.OpenPlane, *, task_status: trio.TaskStatus[None]
    ) -> None: ...


class ProcessKeeper:
    """Runs the process, over and over. Of the plane it needs what it answers, the first message, and `Attend`."""

    def __init__(
        self,
        how: PlaneProcess,
        udps: Sequence[UdpSocket],
        handlers: Callable[[], Handlers],
        opening: Callable[[], say.OpenPlane],
        attend: Attend,
    ) -> None:
        self.pid = 0
        """Of the process, 0 where there is none now."""
        self.link: Link | None = None
        """To the process, once it has answered the opening."""
        self._how = how
        self._udps = udps
        self._handlers = handlers
        self._opening = opening
        self._attend = attend
        self._wanted = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()
        """Whoever waits for the process: unparked when it is up, and when it could not be started."""
        self._failure = ""

    async def serve(self) -> None:
        """Start it whenever it is wanted, until cancelled."""
        wait = RESTART_SECONDS
        while True:
            await self._until_wanted()
            self._failure = ""
            began = trio.current_time()
            try:
                await self._run_process()
            except say.PlaneLost:
                self._failure = "it ended at once, after what it said on standard error"
            except (OSError, NodeError, WireError, trio.TooSlowError) as error:
                self._failure = str(error) or "it did not answer"
            if self._failure:
                _log.warning("bulk_process_failed", reason=self._failure, again_seconds=wait)
            self._changed.unpark_all()
            if trio.current_time() - began > SETTLED_SECONDS:
                wait = RESTART_SECONDS
            await trio.sleep(wait)
            wait = min(2 * wait, RESTART_SECONDS_MAX)

    async def _until_wanted(self) -> None:
        """Somebody here wants something moved, or a datagram has come."""
        async with trio.open_nursery() as nursery:

            async def wait(for_what: Callable[[], Awaitable[object]]) -> None:
                await for_what()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, self._wanted.wait)
            for udp in self._udps:
                nursery.start_soon(wait, udp.wait_readable)

    async def _run_process(self) -> None:
        ours, theirs = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        try:
            with theirs:
                process = await trio.lowlevel.open_process(
                    self._command(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), *(udp.fileno() for udp in self._udps)),
                    process_group=0,  # Ctrl-C in a terminal is meant for the node
                )
            self.pid = process.pid
            opening = self._opening()
            link = Link(
                StreamTransport(stream),
                say.OTHER_END,
                codec=say.PLANE_CODEC,
                handlers=self._handlers(),
                settings=say.SETTINGS,
                dialed=True,
            )
            try:
                async with open_background() as background:
                    background.start_soon(link.run)
                    with trio.fail_after(START_SECONDS):
                        await say.ask(link, opening, say.Done)
                    self.link = link
                    await background.start(self._attend, link, opening)
                    _log.info("bulk_process_started", pid=process.pid)
                    self._changed.unpark_all()
                    await link.closed.wait()
            finally:
                if self.link is not None:
                    self.let_go()
                ours.close()
                await _end(process)
                self.pid = 0
        finally:
            ours.close()
        if process.returncode:
            _log.warning("bulk_process_ended", status=process.returncode)

    def want(self) -> None:
        """Have it started, if there is none."""
        self._wanted.set()

    def let_go(self) -> None:
        """Whoever wants something from now on has the next one started."""
        self.link = None
        self._wanted = trio.Event()

    def _command(self, link: int) -> list[str]:
        if not sys.executable or getattr(sys, "frozen", False):
            raise NodeError("this program brings no Python to run it with")
        udps = [f"--udp={udp.fileno()}" for udp in self._udps]
        how = self._how
        times = (f"--nice={how.nice}", f"--idle-seconds={how.idle_seconds}")
        logs = (f"--log-level={how.log_level}", f"--log-format={how.log_format}")
        # -P: what lies in the working folder is none of our modules
        return [
            sys.executable,
            "-P",
            begin.__file__,
            f"--link={link}",
            *udps,
            *times,
            *logs,
        ]

    async def linked(self) -> Link:
        """The link to the process, which is started if need be. Raises `PeerUnreachable` where it does not
        start."""
        while (link := self.link) is None or link.closed.is_set():
            self.want()
            await self._changed.park()
            if self._failure:
                raise PeerUnreachable(
                    f"the process for bulk data does not start: {self._failure} (bulk.own_process = false does without)"
                )
        return link

    async def persist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Try again with another process where one ended meanwhile."""
        for number in range(1, ATTEMPTS_MAX + 1):
            try:
                return await attempt()
            except say.PlaneLost as error:
                _note_loss(number, error)
        raise AssertionError


async def persist_reading(
    pieces_from: Callable[[int], AsyncIterator[memoryview]], at: int
) -> AsyncIterator[memoryview]:
    """As `ProcessKeeper.persist`, for bytes in order from `at` on."""
    losses = 0
    while True:
        try:
            async for piece in pieces_from(at):
                at, losses = at + len(piece), 0
                yield piece
            return
        except say.PlaneLost as error:
            losses += 1
            _note_loss(losses, error)


def _note_loss(number: int, error: say.PlaneLost) -> None:
    """A process ended in the middle, the `number`th in a row: raises `PeerUnreachable` where that is enough."""
    if number >= ATTEMPTS_MAX:
        raise PeerUnreachable(
            f"the process for bulk data ended {number} times in the middle: {error}"
        ) from None
    _log.warning("bulk_process_lost", attempt=number, reason=str(error))


async def _end(process: trio.Process) -> None:
    """It ends by itself when its link does; if not, it is killed."""
    with trio.CancelScope(shield=True):
        with trio.move_on_after(STOP_SECONDS):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
