"""Readers that abuse QUIC itself: thousands of streams, no window, holes, no end. Each costs its own connection."""

import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from aioquic.quic.packet import QuicStreamFrame

from ioc_node.bulk import quic
from ioc_node.bulk.endpoint import open_channel
from ioc_node.bulk.engines import load_engine
from ioc_node.bulk.quic import Channel, ChannelBroken
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB, MIB, open_rogue

STREAMS_REFUSED = "(?i)second stream|streams open|stream limit"
ENGINES = pytest.mark.parametrize("holder", ["qh3", "aioquic"])


class Ends:
    """How the holder's side of each connection ended."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.came = trio.Event()

    async def listen(self, channel: Channel) -> None:
        """A holder that waits for a request which never becomes whole."""
        await self.note(channel.receive_exactly, MIB // 2)

    async def pour(self, channel: Channel) -> None:
        """A holder that sends without end."""

        async def send() -> None:
            await channel.receive_exactly(1)
            while True:
                await channel.send_all(bytes(MIB))

        await self.note(send)

    async def note(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            await call(*args)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is asked about
            self.reasons.append(str(error))
            self.came.set()


@asynccontextmanager
async def attacking(port: int) -> AsyncIterator[Channel]:
    """A connection whose client is aioquic, which lets itself be tampered with."""
    async with open_channel(
        load_engine("aioquic", BOB), "127.0.0.1", port, public_bytes(ALICE), received_bytes_max=1 << 40
    ) as channel:
        yield channel


def resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@ENGINES
async def test_ten_thousand_streams_end_the_connection(holder: str) -> None:
    ends = Ends()
    before = resident_mib()
    async with open_rogue(ends.listen, holder) as port:
        with trio.fail_after(20), pytest.raises(ChannelBroken, match=STREAMS_REFUSED):  # noqa: PT012
            async with attacking(port) as channel:
                connection = channel.pipe.connection
                connection._remote_max_streams_bidi = 20_000
                for number in range(10_000):
                    connection.send_stream_data(4 * number, b"x")
                channel.ping()
                await channel.receive_exactly(1)
    assert resident_mib() - before < 100  # most of it the attacker's own


@ENGINES
async def test_a_stream_of_another_kind_ends_the_connection(holder: str) -> None:
    ends = Ends()
    async with open_rogue(ends.listen, holder) as port:
        with trio.fail_after(10), pytest.raises(ChannelBroken, match="second stream"):  # noqa: PT012
            async with attacking(port) as channel:
                channel.pipe.connection.send_stream_data(2, b"unidirectional")
                channel.ping()
                await channel.receive_exactly(1)


@ENGINES
async def test_a_reader_without_a_window_is_hung_up_on(holder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grants nothing, but answers pings and sends its own: alive, and holding megabytes of ours."""
    monkeypatch.setattr(quic, "STALLED_SECONDS", 0.4)
    ends = Ends()
    async with open_rogue(ends.pour, holder) as port:
        engine = load_engine("aioquic", BOB)
        configure = engine._configure

        def closed(*, client: bool) -> Any:
            configuration = configure(client=client)
            configuration.max_stream_data = 0
            return configuration

        engine._configure = closed  # type: ignore[method-assign]
        with trio.fail_after(10), pytest.raises(ChannelBroken, match=r"took nothing for 0\.4 s"):  # noqa: PT012
            async with open_channel(
                engine, "127.0.0.1", port, public_bytes(ALICE), received_bytes_max=1 << 40
            ) as channel:
                await channel.send_all(b"!")
                while True:
                    with trio.move_on_after(0.05):
                        await channel.receive_exactly(1)
                    channel.ping()
        with trio.fail_after(5):
            await ends.came.wait()
    assert "took nothing for 0.4 s" in ends.reasons[0]


@ENGINES
async def test_an_endless_request_is_cut_off(holder: str) -> None:
    ends = Ends()

    async def sit(channel: Channel) -> None:
        await ends.note(channel.receive_exactly, 1 << 30)

    sent = 0
    async with open_rogue(sit, holder) as port:
        with trio.fail_after(20), pytest.raises(ChannelBroken, match="more than it was asked for"):  # noqa: PT012
            async with attacking(port) as channel:
                while True:
                    await channel.send_all(bytes(64 << 10))
                    sent += 64 << 10
    assert sent < 8 * MIB
    assert "sent more than it was asked for" in ends.reasons[0]


@ENGINES
async def test_holes_do_not_widen_the_window(holder: str) -> None:
    """One byte at the end of every window that is granted (aioquic issue 589): limits double, zeros fill the holes."""
    ends = Ends()
    granted = 0
    async with open_rogue(ends.listen, holder) as port:
        with trio.fail_after(20), pytest.raises(ChannelBroken, match=r"(?i)far ahead|StreamReceiveLimit"):  # noqa: PT012
            async with attacking(port) as channel:
                await channel.send_all(b"!")
                stream = channel.pipe.connection._streams[0]
                for _ in range(12):  # doubled so often it would be 4 GiB
                    granted = max(granted, stream.max_stream_data_remote)
                    throw(channel, QuicStreamFrame(data=b"x", offset=stream.max_stream_data_remote - 1))
                    with trio.move_on_after(0.05):
                        await channel.receive_exactly(1)
                throw(channel, QuicStreamFrame(data=b"x", offset=stream.max_stream_data_remote))
                await channel.receive_exactly(1)
    assert granted <= 4 * MIB


def throw(channel: Channel, frame: QuicStreamFrame) -> None:
    """Send a frame of stream 0 that no engine would make by itself."""
    frames = [frame]
    connection = channel.pipe.connection
    stream = connection._streams[0]
    stream.sender.get_frame = lambda _size, _end=None: frames.pop() if frames else None
    stream.sender.buffer_is_empty = False
    if stream not in connection._streams_queue:
        connection._streams_queue.append(stream)
    channel.ping()
