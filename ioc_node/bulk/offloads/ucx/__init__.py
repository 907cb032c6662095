"""The offload `ucx`: RDMA verbs where the hardware is there, TCP and shared memory otherwise, by UCX.

UCX neither encrypts nor authenticates, and trusts what it receives: use it only between hosts that trust each other,
on interfaces nobody else reaches. It is off unless the operator turns it on and names those interfaces. Tickets are
proved all the same, and every chunk is verified.
"""

import ctypes
from typing import Annotated, Final

import msgspec
import structlog
import trio

from ioc_node.bulk.offload import (
    Capability,
    Landing,
    OffloadSource,
    OffloadUnusable,
    Options,
    Reach,
)
from ioc_node.bulk.offloads.ucx.conversation import open_conversation
from ioc_node.bulk.offloads.ucx.holding import serve_reader
from ioc_node.bulk.offloads.ucx.library import find_library, load_library
from ioc_node.bulk.offloads.ucx.listener import UcxListener
from ioc_node.bulk.offloads.ucx.reading import pull_blob
from ioc_node.bulk.offloads.ucx.settings import INTERFACES_MAX, UcxSettings
from ioc_node.bulk.offloads.ucx.trial import try_in_child
from ioc_node.bulk.offloads.ucx.worker import UcxBroken, UcxContext
from ioc_node.runtime.faults import sole
from ioc_wire.bulk import Endpoint, OffloadDescriptor
from ioc_wire.codec import Message, decode, encode

NAME: Final = "ucx"
READERS_MAX: Final = 16
"""Conversations as a holder, each with a worker and 8 MiB of registered memory; further readers use QUIC."""

_log = structlog.get_logger()


class UcxDescriptor(Message, frozen=True):
    """Payload of the offload descriptor `ucx`: where the holder listens, best interface first."""

    endpoints: Annotated[tuple[Endpoint, ...], msgspec.Meta(min_length=1, max_length=INTERFACES_MAX)]


class UcxOffload:
    """The offload `ucx`. Raises `ConfigError` for options that make no sense on this machine."""

    name = NAME

    def __init__(
        self, _runtime_folder: object, options: Options | None = None, *, tried: bool = False
    ) -> None:
        self._options = options or {}
        self._settings = UcxSettings(self._options)
        self._tried = tried
        """Whether UCX was seen to work here, with these options."""
        self._context: UcxContext | None = None
        self._listeners: list[UcxListener] = []
        self._stopped = ""
        self._readers = 0

    def probe(self) -> Capability:
        """Usable where UCX can be loaded and, in a child process, brings a chunk over the named interfaces."""
        path = find_library(self._settings.options.library)
        if path is None:
            return Capability(False, "no UCX library; install ioc-node[ucx], or the distribution's libucx")
        if not self._tried:
            failure = try_in_child(self._options)
            if failure:
                return Capability(False, failure)
            self._tried = True
        try:
            context = self._opened()
            self._listening()
        except (OSError, UcxBroken) as error:
            return Capability(False, str(error))
        version = context.library.ucp_get_version_string().decode()
        rdma = self._settings.rdma_devices
        over = (
            f"RDMA on {', '.join(rdma)}" if rdma else f"TCP on {', '.join(self._settings.options.interfaces)}"
        )
        return Capability(True, f"UCX {version}, {over}", mb_s=4000.0 if rdma else 800.0, set_up_seconds=0.05)

    def health(self) -> Capability:
        """Whether the interfaces are up and the listener runs."""
        down = self._settings.down()
        if down:
            return Capability(False, f"interface {down} is down")
        return Capability(not self._stopped, self._stopped or "up")

    def _opened(self) -> UcxContext:
        if self._context is None:
            path = find_library(self._settings.options.library)
            assert path is not None
            self._context = UcxContext(_load(path), self._settings.ucx())
        return self._context

    def _listening(self) -> list[UcxListener]:
        if not self._listeners:
            context, port = self._opened(), self._settings.options.port
            try:
                for host in self._settings.hosts:
                    self._listeners.append(UcxListener(context, host, port))
            except UcxBroken:
                self._stop_listening()
                raise
        return self._listeners

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def close(self) -> None:
        """Give UCX's devices back."""
        self._stop_listening()
        if self._context is not None:
            self._context.close()
            self._context = None

    # -- the holder's side

    def export(self, _blob: bytes) -> OffloadDescriptor | None:
        """The same for every blob: the ticket says which one is meant."""
        try:
            endpoints = tuple(Endpoint(each.host, each.port) for each in self._listening())
        except (OSError, UcxBroken) as error:
            _log.warning("ucx_cannot_listen", error=str(error))
            return None
        return OffloadDescriptor(NAME, encode(UcxDescriptor(endpoints)))

    async def serve(self, source: OffloadSource) -> None:
        """Answer readers until cancelled."""
        self._stopped = ""
        try:
            async with trio.open_nursery() as nursery:
                for listener in self._listening():

                    def accept(request: int, host: str) -> bool:
                        if self._readers >= READERS_MAX or not self._settings.trusts(host):
                            return False
                        self._readers += 1
                        nursery.start_soon(self._answer, request, host, source)
                        return True

                    listener.accept = accept
                    nursery.start_soon(listener.run)
        except Exception as error:
            self._stopped = f"the listener stopped: {error}"
            raise
        finally:
            self._stop_listening()

    async def _answer(self, request: int, host: str, source: OffloadSource) -> None:
        try:
            shared = self._settings.shares_memory(host)
            async with open_conversation(self._opened(), request, shared_memory=shared) as conversation:
                await serve_reader(conversation, source)
        except* (OSError, OffloadUnusable) as errors:
            _log.debug("ucx_reader_gone", host=host, error=str(sole(errors)))
        finally:
            self._readers -= 1

    # -- the reader's side

    def reach(self, descriptor: OffloadDescriptor) -> Reach:
        """Whether the holder listens in a network that UCX may use."""
        endpoints = decode(descriptor.payload, UcxDescriptor).endpoints
        if self._endpoint(endpoints) is None:
            return Reach(False, f"{endpoints[0].host} is in no network that ucx may use")
        return Reach(True, "both ends have it")

    def _endpoint(self, endpoints: tuple[Endpoint, ...]) -> Endpoint | None:
        return next((each for each in endpoints if self._settings.trusts(each.host)), None)

    async def pull(self, descriptor: OffloadDescriptor, into: Landing) -> str:
        """Bring the missing chunks; which transports carried them."""
        endpoint = self._endpoint(decode(descriptor.payload, UcxDescriptor).endpoints)
        if endpoint is None:
            raise OffloadUnusable("no endpoint in a network that ucx may use")
        shared = self._settings.shares_memory(endpoint.host)
        target = (endpoint.host, endpoint.port)
        async with open_conversation(self._opened(), target, shared_memory=shared) as conversation:
            return await pull_blob(conversation, into)


_loaded: dict[str, ctypes.CDLL] = {}


def _load(path: str) -> ctypes.CDLL:
    """One load per process: UCX keeps global state."""
    if path not in _loaded:
        _loaded[path] = load_library(path)
    return _loaded[path]
