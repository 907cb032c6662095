"""A trial of UCX in a process of its own, before the node's process relies on it.

UCX is native code that meets drivers, limits and settings of this machine; some combinations end in a crash, which
would take the node along. So a child moves one chunk to itself first, as two nodes would: over the named
interface, with registered memory.
"""

import json
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Final

import trio

from ioc_node.bulk.offload import OffloadUnusable, Options
from ioc_node.bulk.offloads.ucx.conversation import open_conversation
from ioc_node.bulk.offloads.ucx.library import find_library, load_library
from ioc_node.bulk.offloads.ucx.listener import UcxListener
from ioc_node.bulk.offloads.ucx.settings import UcxSettings
from ioc_node.bulk.offloads.ucx.worker import UcxBroken, UcxContext
from ioc_node.errors import NodeError
from ioc_wire.limits import CHUNK_BYTES

CHILD: Final = f"import sys, trio, {__name__} as trial; trio.run(trial.main, sys.argv[1])"
TRIAL_SECONDS: Final = 10.0
CHILD_SECONDS: Final = 30.0
"""With the time that an interpreter takes to start on a busy machine."""


def try_in_child(options: Options) -> str:
    """Run the trial in a child: "" if it went well, else one line that says what happened."""
    command = [sys.executable, "-P", "-c", CHILD, json.dumps(dict(options))]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"UCX did not end a trial within {CHILD_SECONDS:g} s"
    except OSError as error:
        return f"UCX could not be tried: {error}"
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        return f"UCX crashed in a trial ({name}); look at its transports, interfaces and library"
    if ended.returncode:
        lines = [line.strip(" |") for line in ended.stderr.splitlines() if any(map(str.isalpha, line))]
        return lines[-1] if lines else f"a trial of UCX ended with {ended.returncode}"
    return ""


async def try_here(options: Options) -> None:
    """Move one chunk from this process to itself. Raises `OffloadUnusable`."""
    settings = UcxSettings(options)
    path = find_library(settings.options.library)
    if path is None:
        raise OffloadUnusable("no UCX library")
    context = UcxContext(load_library(path), settings.ucx())
    host = settings.hosts[0]
    shared = settings.shares_memory(host)
    pattern = bytes(range(256)) * (CHUNK_BYTES // 256)
    listener = UcxListener(context, host, 0)

    async def answer(request: int) -> None:
        async with open_conversation(context, request, shared_memory=shared) as conversation:
            await conversation.receive_message()
            slot = await conversation.slots.take()
            conversation.slots.view(slot, CHUNK_BYTES)[:] = pattern
            await conversation.send_chunk(0, slot, CHUNK_BYTES)
            with suppress(UcxBroken):
                await conversation.receive_message()  # until the other end hangs up

    async with trio.open_nursery() as nursery:

        def accept(request: int, _host: str) -> bool:
            nursery.start_soon(answer, request)
            return True

        listener.accept = accept
        nursery.start_soon(listener.run)
        async with open_conversation(context, (host, listener.port), shared_memory=shared) as conversation:
            conversation.chunks_max = 1
            await conversation.send_message(b"?")
            chunk = await conversation.next_chunk()
            if chunk is None or chunk.length != CHUNK_BYTES:
                raise OffloadUnusable("UCX delivered something else in a trial")
            slot = await conversation.slots.take()
            await conversation.fetch_chunk(chunk, slot)
            if conversation.slots.view(slot, CHUNK_BYTES) != pattern:
                raise OffloadUnusable("UCX delivered wrong bytes in a trial")
        nursery.cancel_scope.cancel()
    listener.close()
    context.close()


async def main(options: str) -> None:
    """The child."""
    try:
        with trio.fail_after(TRIAL_SECONDS):
            await try_here(json.loads(options))
    except* trio.TooSlowError:
        raise SystemExit(f"UCX did not bring a chunk to itself within {TRIAL_SECONDS:g} s") from None
    except* (NodeError, OSError) as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise SystemExit(str(first)) from None
