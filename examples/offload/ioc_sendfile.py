"""An example offload: blobs over plain TCP, sent by the holder's kernel. For networks where nobody listens in.

The holder greets with a nonce; the reader answers with its claim; the holder sends the blob's size and chunk hashes.
Then the reader asks for runs of chunks (first, count) and the holder sends their bytes, until the reader hangs up.
"""

import os
import secrets
import socket
import struct
from functools import partial

import trio

from ioc_node.bulk.offload import Capability, Landing, OffloadSource, OffloadUnusable, Options, Reach
from ioc_wire.bulk import (
    BlobInfo,
    Claim,
    Endpoint,
    OffloadDescriptor,
    chunk_count,
    chunk_length,
    ticket_digest,
)
from ioc_wire.codec import decode, encode
from ioc_wire.errors import BlobCorrupt, WireError
from ioc_wire.limits import CHUNK_BYTES

CLAIM_BYTES = len(encode(Claim(bytes(32), bytes(32), bytes(64))))
SIZE, RUN = struct.Struct(">Q"), struct.Struct(">II")


class SendfileOffload:
    name = "sendfile"

    def __init__(self, _runtime_folder: object, options: Options) -> None:
        self._listener = socket.create_server((options.get("host", "127.0.0.1"), options.get("port", 0)))
        self._host, self._port = self._listener.getsockname()[:2]

    def probe(self) -> Capability:
        return Capability(True, f"plain TCP at {self._host}", mb_s=800.0, set_up_seconds=0.002)

    health = probe

    def close(self) -> None:
        self._listener.close()

    def export(self, _blob: bytes) -> OffloadDescriptor:
        return OffloadDescriptor(self.name, encode(Endpoint(self._host, self._port)))

    def reach(self, descriptor: OffloadDescriptor) -> Reach:
        return Reach(True, f"TCP to {decode(descriptor.payload, Endpoint).host}")

    async def serve(self, source: OffloadSource) -> None:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener.dup()))
        await trio.serve_listeners(partial(self._answer, source), [listener])

    async def _answer(self, source: OffloadSource, stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(nonce := secrets.token_bytes(32))
            with trio.fail_after(5):
                claim = decode(await receive(stream, CLAIM_BYTES), Claim)
            ticket = source.tickets.check(claim, digest=ticket_digest(claim.secret), nonce=nonce)
            info = await source.store.info(ticket.blob)
            await stream.send_all(SIZE.pack(info.size) + b"".join(info.chunks))
            with source.store.path(ticket.blob).open("rb", buffering=0) as file:
                while source.tickets.is_good(ticket):
                    start, count = RUN.unpack(await receive(stream, RUN.size))
                    at, end = start * CHUNK_BYTES, min((start + count) * CHUNK_BYTES, info.size)
                    while at < end:
                        await trio.lowlevel.wait_writable(stream.socket)
                        ends = stream.socket.fileno(), file.fileno()
                        at += await trio.to_thread.run_sync(os.sendfile, *ends, at, end - at)
        except (WireError, OSError, OffloadUnusable, trio.BrokenResourceError, trio.TooSlowError):
            pass  # hanging up says enough: the reader takes QUIC, where it is told why
        finally:
            await trio.aclose_forcefully(stream)

    async def pull(self, descriptor: OffloadDescriptor, into: Landing) -> str:
        holder = decode(descriptor.payload, Endpoint)
        async with await trio.open_tcp_stream(holder.host, holder.port) as stream:
            await stream.send_all(encode(into.prove(await receive(stream, 32))))
            (size,) = SIZE.unpack(await receive(stream, SIZE.size))
            if size != into.ticket.size:
                raise BlobCorrupt(f"the holder announced {size} bytes")  # before any room is made for them
            hashes = await receive(stream, 32 * chunk_count(size))
            chunks = tuple(bytes(hashes[at : at + 32]) for at in range(0, len(hashes), 32))
            arriving = await into.begin(BlobInfo(into.ticket.blob, size, chunks))  # verifies the list
            while not arriving.complete:
                run = arriving.missing_ranges()[0]
                await stream.send_all(RUN.pack(run.start, run.count))
                for index in range(run.start, run.start + run.count):
                    data = await receive(stream, chunk_length(size, index))
                    await arriving.write_chunk(index, data)  # verifies the chunk
        return ""


async def receive(stream: trio.SocketStream, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise OffloadUnusable("the other end hung up")
        data += more
    return data
