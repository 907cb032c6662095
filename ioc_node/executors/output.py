"""Turns what a program prints into bounded lines and progress.

A program is hostile until it has ended: it may print without end, print no line end, print control
characters that would move a reader's cursor. So a line is cut at `LOG_LINE_BYTES_MAX`, all lines together
at the task's allowance, control characters are replaced, and one last line tells how much was dropped.
"""

import math
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from ioc_node.executors.executor import Report, StreamName
from ioc_wire.limits import LOG_LINE_BYTES_MAX

PROGRESS_TEXT_CHARS_MAX: Final = 256
_PROGRESS: Final = re.compile(rb"ioc:progress[ \t]+([0-9.eE+-]{1,32})(?:[ \t]+(.*))?", re.DOTALL)
_CONTROLS: Final = {code: "\ufffd" for code in (*range(32), 127, *range(0x80, 0xA0)) if code != 9}


class TaskOutput:
    """Feed it chunks of both streams as they come; it calls `report`. Not thread-safe: one feeder at a
    time."""

    def __init__(self, report: Report, log_bytes_max: int) -> None:
        self._report = report
        self._allowance = log_bytes_max
        self._partial: dict[StreamName, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._cut: dict[StreamName, bool] = {"stdout": False, "stderr": False}
        self._latest: tuple[float, str] | None = None
        self._exhausted = False
        self.dropped_bytes = 0

    def feed(self, stream: StreamName, chunk: bytes) -> None:
        """Take in bytes of one stream; of several progress lines in one chunk only the last is reported."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._extend(stream, chunk[start:end])
            self._end_line(stream)
            start = end + 1
        self._extend(stream, chunk[start:])
        self._flush_progress()

    def close(self) -> None:
        """The program ended: report what it left without a line end, and what was dropped."""
        for stream in self._partial:
            if self._partial[stream]:
                self._end_line(stream)
        self._flush_progress()
        if self.dropped_bytes:
            self._report.line("stderr", f"[{self.dropped_bytes} bytes of output were dropped: log limit]")

    def _extend(self, stream: StreamName, piece: bytes) -> None:
        partial = self._partial[stream]
        room = LOG_LINE_BYTES_MAX - len(partial)
        partial += piece[:room]
        if len(piece) > room:
            self._cut[stream] = True
            self.dropped_bytes += len(piece) - max(room, 0)

    def _end_line(self, stream: StreamName) -> None:
        raw = bytes(self._partial[stream])
        self._partial[stream].clear()
        cut, self._cut[stream] = self._cut[stream], False
        if stream == "stdout" and not cut and (progress := parse_progress(raw)) is not None:
            self._latest = progress
            return
        self._flush_progress()
        if self._exhausted or len(raw) + 1 > self._allowance:
            self._exhausted = True  # nothing after the first dropped line, so that the log has one end
            self.dropped_bytes += len(raw) + 1
            return
        self._allowance -= len(raw) + 1
        self._report.line(stream, _printable(raw))

    def _flush_progress(self) -> None:
        if self._latest is not None:
            fraction, text = self._latest
            self._latest = None
            self._report.progress(fraction, text)


def parse_progress(line: bytes) -> tuple[float, str] | None:
    """Fraction and text of an `ioc:progress` line, or None for any other line."""
    match = _PROGRESS.fullmatch(line.rstrip(b"\r"))
    if match is None:
        return None
    try:
        fraction = float(match[1])
    except ValueError:
        return None
    if not (math.isfinite(fraction) and 0 <= fraction <= 1):
        return None
    return fraction, _printable(match[2] or b"").strip()[:PROGRESS_TEXT_CHARS_MAX]


def _printable(raw: bytes) -> str:
    """Text for a log: at most `LOG_LINE_BYTES_MAX` bytes, without control characters."""
    text = raw.rstrip(b"\r").decode("utf-8", "replace").translate(_CONTROLS)
    data = text.encode()
    # A replacement character takes three bytes where the original took one.
    return text if len(data) <= LOG_LINE_BYTES_MAX else data[:LOG_LINE_BYTES_MAX].decode("utf-8", "ignore")


class Mailbox:
    """A `Report` that a worker thread writes and the trio thread empties.

    Lines in it are bounded by the log allowance of the `TaskOutput` in front of it; progress is only the
    latest.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._lines: deque[tuple[StreamName, str]] = deque()
        self._progress: tuple[float, str] | None = None

    def progress(self, fraction: float, text: str) -> None:
        with self._lock:
            self._progress = (fraction, text)
        self._wake()

    def line(self, stream: StreamName, text: str) -> None:
        with self._lock:
            self._lines.append((stream, text))
        self._wake()

    def empty_into(self, report: Report) -> None:
        """Pass on everything that has arrived. Called in the trio thread."""
        with self._lock:
            lines, self._lines = self._lines, deque()
            progress, self._progress = self._progress, None
        for stream, text in lines:
            report.line(stream, text)
        if progress is not None:
            report.progress(*progress)


class Bell:
    """Rung from any thread, waited for by one trio task."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def ring(self) -> None:
        self._token.run_sync_soon(self._set, idempotent=True)

    def _set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()
