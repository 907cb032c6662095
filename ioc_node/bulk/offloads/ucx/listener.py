"""Where readers connect: a worker that does nothing but listen, and hands each connection request on."""

import ctypes
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from ioc_node.bulk.offloads.ucx import library as ucp
from ioc_node.bulk.offloads.ucx.conversation import pack_address, unpack_address
from ioc_node.bulk.offloads.ucx.worker import UcxContext, UcxWorker

PENDING_MAX: Final = 64

Accept = Callable[[int, str], bool]
"""Told the connection request and the address it came from; whether it is taken up."""

_log = structlog.get_logger()


class UcxListener:
    """A listener at `host`:`port` (0 takes a free one). Raises `UcxBroken`."""

    def __init__(self, context: UcxContext, host: str, port: int) -> None:
        self.host = host
        self.accept: Accept | None = None
        self._library = context.library
        self._pending: deque[int] = deque()
        self._handle = ctypes.c_void_p()
        self._on_connection = ucp.ConnectionCallback(self._take_connection)
        self._worker = UcxWorker(context)
        self._worker.on_turn = self._settle
        try:
            address = pack_address(host, port)
            params = ucp.ListenerParams(field_mask=0b101)
            params.address = ucp.SocketAddress(ctypes.addressof(address), len(address))
            params.connection_handler = ucp.Handler(ucp.pointer_to(self._on_connection), None)
            status = self._library.ucp_listener_create(
                self._worker.handle, params, ctypes.byref(self._handle)
            )
            context.check(status, f"cannot listen at {host}:{port}")
            found = ucp.ListenerAttributes(field_mask=1)
            context.check(self._library.ucp_listener_query(self._handle, found), "listener")
        except BaseException:
            self.close()
            raise
        self.port = unpack_address(found.address)[1]

    def close(self) -> None:
        """Listen no more."""
        if self._handle.value:
            self._library.ucp_listener_destroy(self._handle)
            self._handle = ctypes.c_void_p()
        self._worker.destroy()

    async def run(self) -> None:
        """Hand requests to `accept` until cancelled."""
        await self._worker.run()

    def _take_connection(self, request: int, _argument: object) -> None:
        if len(self._pending) < PENDING_MAX:
            self._pending.append(request)
        else:
            self._library.ucp_listener_reject(self._handle, request)

    def _settle(self) -> None:
        while self._pending:
            request = self._pending.popleft()
            found = ucp.RequestAttributes(field_mask=1)
            status = self._library.ucp_conn_request_query(request, found)
            host = unpack_address(found.address)[0] if status == ucp.OK else ""
            if self.accept is None or not self.accept(request, host):
                _log.info("ucx_reader_rejected", host=host)
                self._library.ucp_listener_reject(self._handle, request)
