"""A UCX worker on a trio loop: no thread of ours, and no wake-ups while nothing happens.

One task turns the worker: progress for a bounded time, then it wakes whoever waits for what has finished, then it
arms the worker's event descriptor and waits for that to become readable. A request posted after arming needs
another turn, so whoever posts one cancels that wait. Unbounded progress would hold the loop for tens of
milliseconds.

Only active messages are enabled. With RMA or atomics UCX would answer reads and writes of this process's memory by
whoever can reach it, before any of our own checks.
"""

import ctypes
import time
from collections.abc import Callable, Mapping
from typing import Final

import trio

from ioc_node.bulk.offload import OffloadUnusable
from ioc_node.bulk.offloads.ucx import library as ucp

TURN_SECONDS: Final = 0.001
"""How long one turn may hold the loop; a single progress call is some tens of microseconds."""


class UcxBroken(OffloadUnusable):
    """UCX refused a call, or the other end is gone."""


class UcxContext:
    """One opened UCX: its transports and devices as set. Raises `UcxBroken` where there are none of that kind."""

    def __init__(self, library: ctypes.CDLL, settings: Mapping[str, str]) -> None:
        self.library = library
        self.handle = ctypes.c_void_p()
        config = ctypes.c_void_p()
        self.check(library.ucp_config_read(None, None, ctypes.byref(config)), "settings")
        try:
            for name, value in settings.items():
                status = library.ucp_config_modify(config, name.encode(), value.encode())
                self.check(status, f"setting {name}={value}")
            params = ucp.ContextParams(field_mask=1, features=ucp.FEATURE_AM | ucp.FEATURE_WAKEUP)
            with ucp.global_settings():
                status = library.ucp_init_version(
                    ucp.API_MAJOR, ucp.API_MINOR, params, config, ctypes.byref(self.handle)
                )
            self.check(status, "no transport or device as set")
        finally:
            library.ucp_config_release(config)

    def check(self, status: int, what: str) -> None:
        """Raise `UcxBroken` for a status that is an error."""
        if status < 0:
            raise UcxBroken(f"UCX: {what}: {self.text(status)}")

    def text(self, status: int) -> str:
        """UCX's own words for a status."""
        text: bytes = self.library.ucs_status_string(status)
        return text.decode()

    def register(self, address: int, length: int) -> ctypes.c_void_p:
        """Register memory with all devices. Raises `UcxBroken`."""
        memory = ctypes.c_void_p()
        params = ucp.MemoryParams(field_mask=0b11, address=address, length=length)
        self.check(self.library.ucp_mem_map(self.handle, params, ctypes.byref(memory)), "registering memory")
        return memory

    def unregister(self, memory: ctypes.c_void_p) -> None:
        """Take a registration back: no key for it is good any more."""
        self.library.ucp_mem_unmap(self.handle, memory)

    def close(self) -> None:
        """Give the devices back; workers must be gone."""
        if self.handle.value:
            self.library.ucp_cleanup(self.handle)
            self.handle = ctypes.c_void_p()


class UcxRequest:
    """A send or a receive that is under way."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.status: int | None = None
        self.done = trio.Event()

    def finish(self, status: int) -> None:
        """It ended."""
        self.status = status
        self.done.set()


class UcxWorker:
    """A worker, its requests and the task that turns it. All calls come from one trio loop."""

    def __init__(self, context: UcxContext) -> None:
        self.context = context
        self.handle = ctypes.c_void_p()
        self.on_turn: Callable[[], None] | None = None
        """Called after each progress: what UCX's callbacks have queued can be taken up then."""
        self._library = context.library
        self._requests: dict[int, UcxRequest] = {}
        self._posted = False
        self._nap = trio.CancelScope()
        params = ucp.WorkerParams(field_mask=1, thread_mode=ucp.THREADS_SERIALIZED)
        context.check(
            self._library.ucp_worker_create(context.handle, params, ctypes.byref(self.handle)), "worker"
        )
        descriptor = ctypes.c_int()
        status = self._library.ucp_worker_get_efd(self.handle, ctypes.byref(descriptor))
        if status < 0:
            self.destroy()
            context.check(status, "event descriptor")
        self._descriptor = descriptor.value

    def progress_until(self, request: UcxRequest, seconds: float) -> None:
        """Turn it without trio until a request is done, or so long. `run` must have ended."""
        deadline = time.perf_counter() + seconds
        while request.status is None and time.perf_counter() < deadline:
            if not self._library.ucp_worker_progress(self.handle):
                time.sleep(0.0005)
            self._reap()

    def destroy(self) -> None:
        """End it with its endpoints and everything that is under way."""
        if self.handle.value:
            self._library.ucp_worker_destroy(self.handle)
            self.handle = ctypes.c_void_p()

    def started(self, pointer: int | None, what: str) -> UcxRequest:
        """The request behind what a non-blocking call returned. Raises `UcxBroken` where the call failed at once."""
        request = UcxRequest(what)
        if pointer is None:
            request.finish(ucp.OK)
            return request
        if pointer >= (1 << 64) + ucp.ERR_LAST:
            self.context.check(pointer - (1 << 64), what)
        self._requests[pointer] = request
        self.wake()
        return request

    def wake(self) -> None:
        """Something was posted: another turn is needed."""
        self._posted = True
        self._nap.cancel()

    def abandon(self) -> None:
        """Nothing that is under way will end well: tell whoever waits. The worker is to be destroyed."""
        for request in self._requests.values():
            request.finish(ucp.ERR_RESET)
        self._requests.clear()

    async def run(self) -> None:
        """Turn the worker until cancelled."""
        while True:
            self._posted = False
            deadline = time.perf_counter() + TURN_SECONDS
            while more := self._library.ucp_worker_progress(self.handle):
                if time.perf_counter() > deadline:
                    break
            self._reap()
            if self.on_turn is not None:
                self.on_turn()
            await trio.lowlevel.checkpoint()  # whoever was woken posts what comes next
            if more or self._posted:
                continue
            status = self._library.ucp_worker_arm(self.handle)
            if status == ucp.ERR_BUSY:
                continue
            self.context.check(status, "arming")
            with trio.CancelScope() as self._nap:
                await trio.lowlevel.wait_readable(self._descriptor)

    def _reap(self) -> None:
        for pointer in list(self._requests):
            status = self._library.ucp_request_check_status(pointer)
            if status != ucp.INPROGRESS:
                self._requests.pop(pointer).finish(status)
                self._library.ucp_request_free(pointer)
