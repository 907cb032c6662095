"""One conversation of two nodes over UCX: small messages both ways, and chunks from registered memory.

Each conversation has a worker of its own. So it can be ended at any moment: destroying the worker ends whatever UCX
was doing for it, and taking back the registration of its memory makes every remote key useless. What the other end
sends is copied out of UCX's callbacks into bounded queues; callbacks never call back into UCX.

Between two hosts UCX itself tells of a dead peer (its error handling mode `peer`). Its shared memory transports
do not offer that mode; there the connection on which the two met breaks, and says so.
"""

import ctypes
import ipaddress
import mmap
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from ioc_node.bulk.offloads.ucx import library as ucp
from ioc_node.bulk.offloads.ucx.worker import UcxBroken, UcxContext, UcxRequest, UcxWorker
from ioc_wire.limits import CHUNK_BYTES

MESSAGE_ID: Final = 1
CHUNK_ID: Final = 2
MESSAGE_BYTES_MAX: Final = 300_000
"""A page of 8192 hashes, with room."""
MESSAGES_WAITING_MAX: Final = 64
SLOTS: Final = 8
"""Chunks of registered memory at each end of a conversation."""

CLOSE_SECONDS: Final = 0.3

_INDEX: Final = struct.Struct(">I")


class Slots:
    """Registered memory for `SLOTS` chunks."""

    def __init__(self, context: UcxContext) -> None:
        self._context = context
        self._map = mmap.mmap(-1, SLOTS * CHUNK_BYTES)
        self._pin = ctypes.c_char.from_buffer(self._map)
        self._address = ctypes.addressof(self._pin)
        self._free = deque(range(SLOTS))
        self._freed = trio.Event()
        self.memory = context.register(self._address, SLOTS * CHUNK_BYTES)

    async def take(self) -> int:
        """A free slot, as soon as there is one."""
        while not self._free:
            self._freed = trio.Event()
            await self._freed.wait()
        return self._free.popleft()

    def give_back(self, slot: int) -> None:
        """The slot may be used again."""
        self._free.append(slot)
        self._freed.set()

    def address(self, slot: int) -> int:
        """Where the slot lies in memory."""
        return self._address + slot * CHUNK_BYTES

    def view(self, slot: int, length: int) -> memoryview:
        """The first bytes of a slot."""
        start = slot * CHUNK_BYTES
        return memoryview(self._map)[start : start + length]

    def close(self) -> None:
        """Take the registration back, and give the memory back."""
        self._context.unregister(self.memory)
        del self._pin
        with suppress(BufferError):  # a view of it lies in a traceback: then it goes with that
            self._map.close()


class OfferedChunk:
    """A chunk that the other end has ready: its index, its length, and UCX's handle for fetching it."""

    __slots__ = ("data", "index", "length")

    def __init__(self, index: int, length: int, data: int) -> None:
        self.index = index
        self.length = length
        self.data = data


class UcxConversation:
    """Both ends' view of one conversation. Made by `open_conversation`."""

    def __init__(self, worker: UcxWorker, slots: Slots) -> None:
        self.slots = slots
        self.chunks_max = 0
        """How many chunks may be offered and not yet fetched: none until they are asked for."""
        self._worker = worker
        self._context = worker.context
        self._library = worker.context.library
        self._endpoint = ctypes.c_void_p()
        self._fault = ""
        self._forced = True
        self._changed = trio.Event()
        self._messages: deque[bytes] = deque()
        self._sending: list[object] = []
        self._chunks: deque[OfferedChunk] = deque()
        self._on_message = ucp.AmCallback(self._take_message)
        self._on_chunk = ucp.AmCallback(self._take_chunk)
        self._on_error = ucp.ErrorCallback(self._take_error)
        for number, callback in ((MESSAGE_ID, self._on_message), (CHUNK_ID, self._on_chunk)):
            handler = ucp.AmHandlerParams(field_mask=0b101, id=number, callback=ucp.pointer_to(callback))
            status = self._library.ucp_worker_set_am_recv_handler(worker.handle, handler)
            self._context.check(status, "message handler")

    def open(self, target: "tuple[str, int] | int", *, shared_memory: bool) -> None:
        """Connect to a listener's address, or accept a connection request. Raises `UcxBroken`."""
        self._forced = not shared_memory
        params = ucp.EndpointParams(field_mask=0b110)
        params.error_mode = ucp.ERROR_HANDLING_NONE if shared_memory else ucp.ERROR_HANDLING_PEER
        params.error_handler = ucp.Handler(ucp.pointer_to(self._on_error), None)
        if isinstance(target, int):
            params.field_mask |= 1 << 6
            params.connection_request = target
        else:
            address = pack_address(*target)
            params.field_mask |= 1 << 4 | 1 << 5
            params.flags = ucp.EP_FLAG_CLIENT_SERVER
            params.address = ucp.SocketAddress(ctypes.addressof(address), len(address))
        status = self._library.ucp_ep_create(self._worker.handle, params, ctypes.byref(self._endpoint))
        self._context.check(status, "connecting")
        self._worker.wake()

    def close(self) -> None:
        """End it, in a worker thread after the worker's `run` has ended: first the endpoint, then the worker.

        Between hosts the endpoint is closed at once, whatever the other end does. With shared memory UCX can only
        close in agreement, which a dead process does not give; then destroying the worker has to do.
        """
        if self._endpoint.value:
            flags = ucp.EP_CLOSE_FORCE if self._forced else 0
            params = ucp.RequestParams(mask=ucp.OP_FLAGS, flags=flags)
            with suppress(UcxBroken):
                pointer = self._library.ucp_ep_close_nbx(self._endpoint, params)
                self._worker.progress_until(self._worker.started(pointer, "closing"), CLOSE_SECONDS)
        self._worker.destroy()

    @property
    def transports(self) -> str:
        """What UCX chose: `tcp/lo`, `cma/memory`, `rc_mlx5/mlx5_0:1`, …; empty where it is too old to say."""
        entries = (ucp.TransportEntry * 8)()
        attributes = ucp.EndpointAttributes(field_mask=1 << 3)
        attributes.transports = ucp.Transports(entries, len(entries), ctypes.sizeof(ucp.TransportEntry))
        if self._library.ucp_ep_query(self._endpoint, attributes) != ucp.OK:
            return ""
        used = entries[: min(attributes.transports.count, len(entries))]
        names = [f"{each.transport.decode()}/{each.device.decode()}" for each in used if each.device]
        return ", ".join(dict.fromkeys(names))

    # -- callbacks of UCX: they copy and return

    def _take_error(self, _argument: object, _endpoint: int, status: int) -> None:
        self._break(f"the other end is gone ({self._context.text(status)})")

    def _take_message(
        self, _argument: object, _header: int, _header_length: int, data: int, length: int, received: int
    ) -> int:
        if ucp.AmReceived.from_address(received).attributes & ucp.AM_RECV_RNDV or length > MESSAGE_BYTES_MAX:
            self._break("it sent an oversized message")
        elif len(self._messages) >= MESSAGES_WAITING_MAX:
            self._break("it sent more messages than were asked for")
        else:
            self._messages.append(ctypes.string_at(data, length) if length else b"")
            self._changed.set()
        return ucp.OK

    def _take_chunk(
        self, _argument: object, header: int, header_length: int, data: int, length: int, received: int
    ) -> int:
        rendezvous = ucp.AmReceived.from_address(received).attributes & ucp.AM_RECV_RNDV
        if header_length != _INDEX.size or not rendezvous:
            self._break("it sent a chunk in another form")
        elif len(self._chunks) >= self.chunks_max:
            self._break("it sent more chunks than were asked for")
        else:
            (index,) = _INDEX.unpack(ctypes.string_at(header, header_length))
            self._chunks.append(OfferedChunk(index, length, data))
            self._changed.set()
            return ucp.INPROGRESS  # the handle stays good
        return ucp.OK

    def _break(self, fault: str) -> None:
        self._fault = self._fault or fault
        self._changed.set()
        self._worker.abandon()

    # -- messages

    async def send_message(self, data: bytes) -> None:
        """Send a small message. Raises `UcxBroken`."""
        buffer = ctypes.create_string_buffer(data, len(data))
        self._sending.append(buffer)  # UCX may read it until the request is done, or the worker destroyed
        address = ctypes.addressof(buffer)
        await self._finished(self._send(MESSAGE_ID, b"", address, len(data), ucp.AM_SEND_EAGER, None))
        self._sending.remove(buffer)

    async def receive_message(self) -> bytes:
        """The next message. Raises `UcxBroken`."""
        while not self._messages:
            await self._change()
        return self._messages.popleft()

    # -- chunks

    async def send_chunk(self, index: int, slot: int, length: int) -> None:
        """Offer a slot's bytes and wait until the other end has them: it fetches them, by RDMA read where the
        hardware can. Raises `UcxBroken`."""
        address = self.slots.address(slot)
        header = _INDEX.pack(index)
        await self._finished(
            self._send(CHUNK_ID, header, address, length, ucp.AM_SEND_RNDV, self.slots.memory)
        )

    async def next_chunk(self) -> OfferedChunk | None:
        """The next chunk that is offered; None when a message came instead. Raises `UcxBroken`."""
        while not self._chunks:
            if self._messages:
                return None
            await self._change()
        return self._chunks.popleft()

    async def fetch_chunk(self, chunk: OfferedChunk, slot: int) -> None:
        """Bring an offered chunk, of at most a slot's length, into a slot. Raises `UcxBroken`."""
        params = ucp.RequestParams(mask=ucp.OP_MEMH, memory=self.slots.memory)
        pointer = self._library.ucp_am_recv_data_nbx(
            self._worker.handle, chunk.data, self.slots.address(slot), chunk.length, params
        )
        await self._finished(self._worker.started(pointer, "fetching a chunk"))

    # -- inside

    def _send(
        self,
        number: int,
        header: bytes,
        address: int,
        length: int,
        flags: int,
        memory: ctypes.c_void_p | None,
    ) -> UcxRequest:
        self._check()
        params = ucp.RequestParams(mask=ucp.OP_FLAGS, flags=flags | ucp.AM_SEND_COPY_HEADER)
        if memory is not None:
            params.mask |= ucp.OP_MEMH
            params.memory = memory
        pointer = self._library.ucp_am_send_nbx(
            self._endpoint, number, header, len(header), address, length, params
        )
        return self._worker.started(pointer, "sending")

    async def _finished(self, request: UcxRequest) -> None:
        await request.done.wait()
        assert request.status is not None
        self._check()
        self._context.check(request.status, request.what)

    async def _change(self) -> None:
        self._check()
        self._changed = trio.Event()
        await self._changed.wait()

    def _check(self) -> None:
        if self._fault:
            raise UcxBroken(f"UCX: {self._fault}")


@asynccontextmanager
async def open_conversation(
    context: UcxContext, target: tuple[str, int] | int, *, shared_memory: bool
) -> AsyncIterator[UcxConversation]:
    """A conversation with the listener at an address, or with whoever made a connection request. Raises `UcxBroken`."""
    worker = await trio.to_thread.run_sync(UcxWorker, context)
    slots: Slots | None = None
    close = worker.destroy
    try:
        slots = Slots(context)
        conversation = UcxConversation(worker, slots)
        close = conversation.close
        conversation.open(target, shared_memory=shared_memory)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            yield conversation
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(close)
        if slots is not None:
            slots.close()


def pack_address(host: str, port: int) -> "ctypes.Array[ctypes.c_char]":
    """A `sockaddr_in` or `sockaddr_in6`."""
    address = ipaddress.ip_address(host)
    if address.version == 4:
        packed = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), address.packed)
    else:
        packed = struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(port), 0, address.packed, 0)
    return ctypes.create_string_buffer(packed, len(packed))


def unpack_address(storage: "ctypes.Array[ctypes.c_uint64]") -> tuple[str, int]:
    """Host and port of a `sockaddr_storage`; an empty host for another family."""
    raw = bytes(storage)
    (family,) = struct.unpack_from("=H", raw)
    (port,) = struct.unpack_from(">H", raw, 2)
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(raw[4:8])), port
    if family == socket.AF_INET6:
        return str(ipaddress.IPv6Address(raw[8:24])), port
    return "", 0
