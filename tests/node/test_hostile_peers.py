"""Garbage, silence, and members that ask for what is not theirs: a whole node goes on serving everybody else."""

import os
import random
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import ioc_node
from ioc_node.bulk.endpoint import open_channel
from ioc_node.bulk.engines import load_engine
from ioc_node.errors import RequestRefused
from ioc_node.runtime.link_transport import RESOURCE, TransportBroken, WebSocketTransport, run_websocket
from ioc_node.runtime.tls import client_context
from ioc_node.tasks.attempting import InputLost
from ioc_node.tasks.definition import BLOB
from ioc_node.tasks.story import Source
from ioc_wire.bulk import RequestTicket, TicketIssued, parse_blob_id
from ioc_wire.codec import Message
from ioc_wire.errors import (
    BadReceipt,
    NotFound,
    NotOwner,
    RoleNotGranted,
    TaskUnknown,
    WireError,
)
from ioc_wire.gossip import PublishHead
from ioc_wire.market import Contact
from ioc_wire.tasks import CancelTask, GrantOutput, Input, SettleTask, WatchTask
from tests.node.conftest import MakeHome
from tests.node.three_nodes import HELLO, MIB, changed, one_line, open_three

UPGRADE = (
    f"GET {RESOURCE} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()
MEMORY_GROWTH_MIB_MAX = 64
"""What garbage may add to a process that holds the node and those who throw it."""


# -- garbage and silence


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


async def send_garbage(port: int, count: int, heads: tuple[bytes, ...]) -> None:
    dice = random.Random(port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(count):
            head = heads[number % len(heads)]
            sock.sendto(head + dice.randbytes(dice.choice((0, 1, 20, 180, 1180, 1300))), ("127.0.0.1", port))
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()


async def tls_to(port: int) -> trio.SSLStream[trio.SocketStream]:
    tls = trio.SSLStream(
        await trio.open_tcp_stream("127.0.0.1", port), client_context(), https_compatible=True
    )
    await tls.do_handshake()
    return tls


async def flood_links(port: int) -> None:
    dice = random.Random(5)
    for number in range(100):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(
            (b"", b"\x16\x03\x01\x00\xff", b"GET / HTTP/1.1\r\n")[number % 3] + dice.randbytes(300)
        )
        await stream.aclose()
    for number in range(30):
        tls = await tls_to(port)
        await tls.send_all((UPGRADE if number % 2 else b"") + dice.randbytes(300))
        await tls.aclose()


async def throw_frames(port: int, connections: int, frames: int) -> None:
    """Well-formed WebSocket frames full of garbage, many at once, so that each is there before the first is judged."""
    dice = random.Random(6)
    for _ in range(connections):
        tls = await tls_to(port)
        thrown = bytearray(UPGRADE)
        for _ in range(frames):
            payload = dice.randbytes(dice.randrange(1, 125))
            thrown += bytes((0x82, 0x80 | len(payload))) + bytes(4) + payload  # masked with zeros
        await tls.send_all(thrown)
        await trio.aclose_forcefully(tls)


async def test_garbage_by_the_ten_thousand_changes_nothing(make_home: MakeHome) -> None:
    async with open_three(make_home) as nodes:
        core, node = nodes.core, nodes.consumer
        assert nodes.provider.provider is not None
        (host,) = nodes.provider.provider.registrar.resources
        before = resident_mib()
        port = core.config.port
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    send_garbage, port, 20_000, (b"", b"\1", b"\2", b"\3", b"\4", b"\5", b"\6")
                )
                nursery.start_soon(
                    send_garbage,
                    port + 1,
                    20_000,
                    (b"", b"\xc0\0\0\0\1\x08", b"\x40", b"\xc0\x1a\x2a\x3a\x4a\x08"),
                )
                nursery.start_soon(flood_links, port)
                nursery.start_soon(throw_frames, port, 100, 100)
        grown = resident_mib() - before
        print(f"40,000 datagrams and 10,000 frames of garbage: {grown:+.1f} MiB")  # noqa: T201 - a figure to see
        assert grown < MEMORY_GROWTH_MIB_MAX
        with trio.fail_after(3):
            assert (await node.resolve(host.cid)).record.key == nodes.provider.identity.public_key
            assert (await node.find(ioc_node.Demand(cores=1))).found.offers
            task = await node.submit(ioc_node.TaskSpec.load(HELLO))
            await task.result()
        assert core.bulk.plane.connections == 0
        assert len(core.links.links) == 2


@pytest.mark.slow
async def test_peers_that_say_nothing_cost_a_place_for_some_seconds(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After TCP, TLS, the WebSocket, the QUIC handshake: each is dropped, and meanwhile others are served."""
    monkeypatch.setattr("ioc_node.bulk.serving.CLAIM_SECONDS", 1.0)
    async with open_three(make_home) as nodes, trio.open_nursery() as nursery:
        core, port = nodes.core, nodes.core.config.port
        ended: list[str] = []

        async def silent_tcp() -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                assert await stream.receive_some() == b""
            ended.append("tcp")

        async def silent_tls() -> None:
            tls = await tls_to(port)
            with suppress(trio.BrokenResourceError):  # cut without a goodbye is as good
                assert await tls.receive_some() == b""
            await trio.aclose_forcefully(tls)
            ended.append("tls")

        async def silent_websocket() -> None:
            async def hear(transport: WebSocketTransport) -> None:
                while True:
                    await transport.receive()

            with pytest.raises(TransportBroken):
                await run_websocket(await tls_to(port), "127.0.0.1", hear)
            ended.append("websocket")

        async def silent_quic() -> None:
            key = Ed25519PrivateKey.generate()
            with pytest.raises((WireError, ioc_node.errors.NodeError, OSError)):
                async with open_channel(
                    load_engine("qh3", key),
                    "127.0.0.1",
                    port + 1,
                    core.identity.public_key,
                    received_bytes_max=MIB,
                ) as channel:
                    await channel.receive_exactly(1)
            ended.append("quic")

        for _ in range(10):
            for each in (silent_tcp, silent_tls, silent_websocket, silent_quic):
                nursery.start_soon(each)
        await trio.sleep(0.5)
        with trio.fail_after(2):
            assert (await nodes.consumer.find(ioc_node.Demand(cores=1))).found.offers
            async with ioc_node.open_node(
                make_home("late", "consumer", bootstrap=(f"127.0.0.1:{port}",))
            ) as late:
                await late.wait_joined()
        with trio.fail_after(7):
            while len(ended) < 40:
                await trio.sleep(0.05)
        assert core.bulk.plane.connections == 0
        assert not core.links._half_open


# -- a member that is hostile


async def test_a_member_gets_nothing_that_is_anothers(make_home: MakeHome, tmp_path: Path) -> None:
    """Neither blobs that nobody shared, nor another's task, its outputs, its lease or its catalogue."""
    (tmp_path / "input").write_bytes(random.Random(7).randbytes(1000))
    async with open_three(make_home) as nodes:
        node, provider, core = nodes.consumer, nodes.provider, nodes.core
        spec = changed(
            ioc_node.TaskSpec.load(HELLO), inputs=(Input(path="in", url=f"file:{tmp_path / 'input'}"),)
        )
        task = await node.submit(spec)
        with trio.fail_after(10):
            result = await task.result()
        (output,) = result.outputs
        (private,) = (item for item in task.live.definition.inputs if item.path == "in")
        first = (f"127.0.0.1:{core.config.port}",)
        async with ioc_node.open_node(make_home("mallory", "consumer", bootstrap=first)) as mallory:
            with trio.fail_after(5):
                await mallory.wait_joined()
            own = mallory.identity.public_key
            link = await mallory.links.connect(("127.0.0.1", provider.config.port))
            assert result.receipt is not None
            refused: list[tuple[Message, type[WireError]]] = [
                (RequestTicket(parse_blob_id(private.url.removeprefix(BLOB))), NotFound),
                (RequestTicket(output.blob), NotFound),
                (GrantOutput(task.id, output.blob, own), TaskUnknown),
                (WatchTask(task.id, 1, 0), NotOwner),
                (CancelTask(task.id, 1, ""), NotOwner),
                (SettleTask(task.id, result.receipt, forget=True), BadReceipt),
            ]
            for message, error in refused:
                with trio.fail_after(3), pytest.raises(error) as caught:
                    await link.request(message)
                one_line(caught.value)
            gossip = await mallory.links.connect(("127.0.0.1", core.config.port))
            assert core.core is not None
            replica = core.core.gossip.catalogue.replica(provider.identity.public_key)
            assert replica is not None
            assert replica.held is not None
            with trio.fail_after(3), pytest.raises(RoleNotGranted):
                await gossip.request(PublishHead(replica.held.news))
        issued = await provider_ticket(node, provider, task.id, output.blob)
        assert issued.ticket.reader == node.identity.public_key, "the owner still can"


async def test_a_ticket_for_another_blob_gives_nobody_wrong_bytes(
    make_home: MakeHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be verified against the name in the ticket, and taken for what was asked for."""
    async with open_three(make_home) as nodes:
        node, mallory = nodes.consumer, nodes.provider
        task = await node.submit(ioc_node.TaskSpec.load(HELLO))
        with trio.fail_after(10):
            (output,) = (await task.result()).outputs
        blobs = []
        for text in (b"asked for", b"given"):
            (tmp_path / "file").write_bytes(text)
            blobs.append((await mallory.add(tmp_path / "file")).blob)
        issue = mallory.bulk.issue_ticket
        monkeypatch.setattr(mallory.bulk, "issue_ticket", lambda _blob, *a, **k: issue(blobs[1], *a, **k))
        with pytest.raises(RequestRefused, match="a ticket for "):
            await node.get(blobs[0], tmp_path / "copy")
        with pytest.raises(RequestRefused, match="a ticket for "):
            async with node.open_blob(blobs[0]) as pieces:
                raise AssertionError([bytes(piece) async for piece in pieces])
        source = Source(
            output.blob, task.id, Contact(mallory.identity.public_key, "127.0.0.1", mallory.config.port)
        )
        with pytest.raises(InputLost, match="a ticket for "):
            await node.consumer._attempting.request_output(source, node.identity.public_key)


async def provider_ticket(
    node: ioc_node.Node, provider: ioc_node.Node, task: bytes, blob: bytes
) -> TicketIssued:
    link = await node.links.connect(("127.0.0.1", provider.config.port))
    with trio.fail_after(3):
        return await link.request(GrantOutput(task, blob, node.identity.public_key), TicketIssued)
