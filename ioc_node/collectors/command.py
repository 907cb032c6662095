"""One run of another program whose answer is text: without a shell, bounded in time and in bytes."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from ioc_node.collectors.collector import CollectorFailed

ERROR_BYTES_MAX: Final = 4096
READ_BYTES: Final = 1 << 16


async def run_command(
    words: Sequence[str], *, environment: Mapping[str, str], seconds: float, bytes_max: int
) -> str:
    """What the program `words[0]` prints, with `environment` on top of our own. Raises `CollectorFailed` in one line
    where it is not there, says more than `bytes_max`, takes longer than `seconds`, or fails (with its own words).
    """
    name = words[0]
    try:
        process = await trio.lowlevel.open_process(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **environment},
        )
    except FileNotFoundError:
        raise CollectorFailed(f"{name} is not installed, or not on the PATH of this node") from None
    except OSError as error:
        raise CollectorFailed(f"{name} cannot be started: {error.strerror or error}") from None
    said, complaint = bytearray(), bytearray()
    fits, ended = True, False
    with trio.move_on_after(seconds) as scope:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            async with process.stdout, process.stderr, trio.open_nursery() as nursery:
                nursery.start_soon(_drain, process.stderr, complaint)
                fits = await _read(process.stdout, said, bytes_max)
                if fits:
                    await process.wait()
                else:
                    nursery.cancel_scope.cancel()
            ended = fits
        finally:
            await _end(process, alone=ended)
    if not fits:
        raise CollectorFailed(f"{name} printed more than {bytes_max} bytes")
    if scope.cancelled_caught:
        raise CollectorFailed(f"{name} did not answer within {seconds:g} s")
    if process.returncode:
        lines = complaint.decode(errors="replace").strip().splitlines()
        raise CollectorFailed(f"{name}: {lines[-1][:200] if lines else f'exit status {process.returncode}'}")
    return said.decode(errors="replace")


async def _read(stream: trio.abc.ReceiveStream, into: bytearray, bytes_max: int) -> bool:
    """Read to the end; False where there is more than fits."""
    while chunk := await stream.receive_some(READ_BYTES):
        into += chunk
        if len(into) > bytes_max:
            return False
    return True


async def _drain(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    """Read to the end, and keep the last of it."""
    while chunk := await stream.receive_some(READ_BYTES):
        into += chunk
        del into[:-ERROR_BYTES_MAX]


async def _end(process: trio.Process, *, alone: bool) -> None:
    """See it gone, with what it started (it leads a process group of its own) unless all of that is gone: it may have
    ended itself, and left a child that holds its output open."""
    if not alone:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with trio.CancelScope(shield=True):
        await process.wait()
