"""Links that must not come up, and peers that mean harm: each refused by name, none of them felt by the others."""

import os
import ssl
import time
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket
from structlog.testing import capture_logs

from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.link_mux import LINK_BYTES_MAX
from ioc_node.runtime.link_transport import RESOURCE, TransportBroken, WebSocketTransport, run_websocket
from ioc_node.runtime.links import LINKS_PER_PEER_MAX, Handlers, Link, LinkEndpoint, LinkSettings
from ioc_node.runtime.tls import client_context
from ioc_wire import limits, links
from ioc_wire.authority import Delegation
from ioc_wire.codec import encode
from ioc_wire.errors import (
    BrokenChain,
    Busy,
    Expired,
    ReplayedProof,
    Revoked,
    RoleNotGranted,
    UnknownNetwork,
    WrongPeer,
)
from ioc_wire.signed import Signed, public_bytes, sign
from tests.runtime.link_cases import (
    CODEC,
    ROOT,
    Answers,
    Ask,
    Count,
    Told,
    key_of,
    network_of,
    open_node,
    until,
)


def chain_for(
    number: int, *roles: Any, begins: int = -60, ends: int = 3600, issuer: Any = ROOT
) -> tuple[Signed, ...]:
    now = int(time.time())
    subject = public_bytes(key_of(number))
    return (sign(issuer, Delegation(subject, "cn", roles, now + begins, now + ends)),)


async def speak(endpoint: LinkEndpoint, converse: Any) -> Any:
    """Reach an endpoint by WebSocket over TLS as any program can, and converse with it."""
    stream = await trio.open_tcp_stream("127.0.0.1", endpoint.port)
    tls = trio.SSLStream(stream, client_context(), https_compatible=True)
    return await run_websocket(tls, "127.0.0.1", converse)


async def test_wrong_key_is_refused_on_both_sides():
    async with open_node(1) as alice, open_node(2) as bob:
        with capture_logs() as lines, pytest.raises(WrongPeer, match=r"expected n.*, reached n"):
            await alice.connect(("127.0.0.1", bob.port), public_bytes(key_of(3)))
        await until(lambda: bob.refused == alice.refused == 1)
        told = [(line["refused"], line["error"]) for line in lines if line["event"] == "link_refused"]
        assert {refused for refused, _ in told} == {"here", "by_peer"}
        assert all("peer is not who was expected" in error for _, error in told)
        assert not bob.links


async def test_other_network_is_refused_on_both_sides():
    async with open_node(1) as alice, open_node(2, network=network_of("other", nonce=7)) as bob:
        with pytest.raises(UnknownNetwork, match="theirs is 0707"):
            await alice.connect(("127.0.0.1", bob.port))
        await until(lambda: bob.refused == 1)


async def test_client_that_skips_the_check_is_refused_by_the_server():
    """The server judges by itself: a proof for another network or with a forged signature."""
    async with open_node(2) as bob:

        async def answer(network_id: bytes, forge: bool) -> int:
            async def converse(transport: WebSocketTransport) -> int:
                hello = links.decode_handshake(await transport.receive())
                assert isinstance(hello, links.ServerHello)
                proof = sign(key_of(1), links.ClientProof(network_id, hello.nonce, hello.key, ()))
                if forge:
                    proof = Signed(proof.domain, proof.kind, proof.payload, proof.key, bytes(64))
                await transport.send(encode(links.ClientHello(limits.PROTOCOL_VERSION, proof)))
                refusal = links.decode_handshake(await transport.receive())
                assert isinstance(refusal, links.Refusal)
                return refusal.code

            code: int = await speak(bob, converse)
            return code

        assert await answer(bytes([7]) * 32, forge=False) == UnknownNetwork.code
        assert await answer(bytes(32), forge=True) == 3
        assert not bob.links


async def test_replayed_proof_and_a_proof_relayed_from_another_node_are_refused():
    async with open_node(2) as bob, open_node(3) as carol:
        seen: list[bytes] = []

        async def record(transport: WebSocketTransport) -> None:
            hello = links.decode_handshake(await transport.receive())
            assert isinstance(hello, links.ServerHello)
            proof = sign(key_of(1), links.ClientProof(hello.network_id, hello.nonce, hello.key, ()))
            seen.append(encode(links.ClientHello(limits.PROTOCOL_VERSION, proof)))
            await transport.send(seen[0])
            assert isinstance(links.decode_handshake(await transport.receive()), links.Welcome)

        async def replay(transport: WebSocketTransport) -> str:
            await transport.receive()
            await transport.send(seen[0])
            refusal = links.decode_handshake(await transport.receive())
            assert isinstance(refusal, links.Refusal)
            assert refusal.code == ReplayedProof.code
            return refusal.detail

        await speak(bob, record)
        assert await speak(bob, replay) == "its nonce is not of this connection"
        assert await speak(carol, replay) == "it names another node as its reader"


async def test_certified_network_asks_both_sides_for_a_valid_chain():
    network = network_of(admission="certified")
    good = {"roles": ("provider",), "chain": chain_for(1, "provider")}
    async with open_node(2, network=network, roles=("regional",), chain=chain_for(2, "regional")) as bob:

        async def dial(**options: Any) -> Any:
            async with open_node(1, network=network, **options) as alice:
                link = await alice.connect(("127.0.0.1", bob.port))
                assert await link.request(Ask("in"), Told) == Told("in")
                return link.peer

        peer = await dial(**good)
        assert peer.grant is not None
        assert peer.grant.roles == ("regional",)
        for options, error in [
            ({}, BrokenChain),
            ({"chain": chain_for(3, "provider")}, BrokenChain),
            ({"chain": chain_for(1, "provider", issuer=key_of(9))}, BrokenChain),
            ({"chain": chain_for(1, "provider", begins=-4000, ends=-1000)}, Expired),
            ({**good, "roles": ("national",)}, RoleNotGranted),
        ]:
            with pytest.raises(error):
                await dial(**options)
    async with open_node(2, network=network) as uncertified, open_node(1, network=network, **good) as alice:
        with pytest.raises(BrokenChain, match="no delegation chain was shown"):
            await alice.connect(("127.0.0.1", uncertified.port))


async def test_revoked_key_and_dialing_oneself_are_refused():
    revoked = {public_bytes(key_of(1))}
    async with open_node(2, revoked=revoked) as bob, open_node(1) as alice:
        with pytest.raises(Revoked):
            await alice.connect(("127.0.0.1", bob.port))
        with pytest.raises(WrongPeer, match="the node's own"):
            await alice.connect(("127.0.0.1", alice.port))


async def test_silent_peers_are_dropped_and_keep_nobody_out():
    settings = LinkSettings(handshake_seconds=0.4, half_open_max=8, close_seconds=0.2)
    async with open_node(2, settings=settings) as bob, open_node(1) as alice:
        silent = [await trio.open_tcp_stream("127.0.0.1", bob.port) for _ in range(40)]
        link = await alice.connect(("127.0.0.1", bob.port))
        assert await link.request(Ask("served"), Told) == Told("served")
        with trio.fail_after(3):
            for stream in silent:
                assert await stream.receive_some() == b""
                await stream.aclose()
        assert bob.refused == 40


async def test_peer_that_says_nothing_when_dialed_is_unreachable():
    async with open_node(1, settings=LinkSettings(dial_seconds=0.3, close_seconds=0.1)) as alice:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(PeerUnreachable, match="no answer within"):
            await alice.connect(("127.0.0.1", port))
        await listeners[0].aclose()


async def test_garbage_by_the_thousand_disturbs_nobody():
    """Garbage at each layer: TCP, TLS records, HTTP, WebSocket frames, handshake messages, frames of a live link."""
    answers = Answers()
    async with open_node(2, answers=answers) as bob, open_node(1) as alice:
        link = await alice.connect(("127.0.0.1", bob.port))
        for n in range(150):
            stream = await trio.open_tcp_stream("127.0.0.1", bob.port)
            with trio.move_on_after(2):
                await stream.send_all(os.urandom(200) if n % 2 else b"\x16\x03\x01\x00\xff" + os.urandom(255))
            await stream.aclose()
        for n in range(150):
            tls = trio.SSLStream(
                await trio.open_tcp_stream("127.0.0.1", bob.port), client_context(), https_compatible=True
            )
            await tls.do_handshake()
            upgrade = (
                f"GET {RESOURCE} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
            await tls.send_all((upgrade * (1 + n % 2) if n % 3 else b"") + os.urandom(300))
            await tls.aclose()
        assert await link.request(Ask("served"), Told) == Told("served")
        assert list(bob.links) == [alice.local.public_key]
        await until(lambda: bob.refused >= 300)


async def test_ten_thousand_garbage_messages_inside_a_websocket_are_refused_one_connection_each_at_most():
    async with open_node(2) as bob, open_node(1) as alice:
        link = await alice.connect(("127.0.0.1", bob.port))

        async def flood(transport: WebSocketTransport) -> None:
            for _ in range(10_000):
                await transport.send(os.urandom(20))

        for _ in range(20):
            with pytest.raises(TransportBroken):
                await speak(bob, flood)
        assert await link.request(Ask("served"), Told) == Told("served")


@pytest.mark.parametrize(
    "frame",
    [
        b"garbage",
        encode(links.Item(7, b"never asked")),
        encode(links.EndStream(7)),
        encode(links.OpenStream(0, 1, b"")),
        encode((1, 5, 10_000, b"too much credit")),
        encode((99,)),
        encode(links.Notify(b"garbage")),
    ],
)
async def test_protocol_violation_ends_that_link_only(frame: bytes):
    async with open_node(2) as bob, open_node(1) as alice:
        link = await alice.connect(("127.0.0.1", bob.port))

        async def violate(transport: WebSocketTransport) -> str:
            await enter(transport, 3)
            await transport.send(frame)
            with pytest.raises(TransportBroken), trio.fail_after(3):
                await drain(transport)
            return "dropped"

        assert await speak(bob, violate) == "dropped"
        assert await link.request(Ask("served"), Told) == Told("served")


async def drain(transport: WebSocketTransport) -> None:
    while True:
        links.decode_frame(await transport.receive())


async def enter(transport: WebSocketTransport, number: int) -> None:
    """Shake hands honestly as the node with that number."""
    hello = links.decode_handshake(await transport.receive())
    assert isinstance(hello, links.ServerHello)
    proof = sign(key_of(number), links.ClientProof(hello.network_id, hello.nonce, hello.key, ()))
    await transport.send(encode(links.ClientHello(limits.PROTOCOL_VERSION, proof)))
    assert isinstance(links.decode_handshake(await transport.receive()), links.Welcome)


async def test_garbage_bodies_are_answered_and_the_number_of_open_requests_is_bounded():
    answers = Answers()
    async with open_node(2, answers=answers) as bob:

        async def hoard(transport: WebSocketTransport) -> list[int]:
            await enter(transport, 3)
            codes = []
            wait = encode((5, "w"))
            for number in range(1, limits.LINK_STREAMS_MAX + 3):
                await transport.send(encode(links.OpenStream(number, 1, wait)))
            await transport.send(encode(links.OpenStream(9999, 1, b"\xc1")))
            for _ in range(3):
                frame = links.decode_frame(await transport.receive())
                assert isinstance(frame, links.FailStream)
                codes.append(frame.code)
            return codes

        assert await speak(bob, hoard) == [41, 41, 41]
        await until(lambda: not bob.links)


async def test_questions_of_a_peer_that_does_not_read_stay_unanswered():
    asked = 0

    async def tell(link: Link, message: Ask) -> Told:
        nonlocal asked
        asked += 1
        return Told("", bytes(500_000))

    answers = Answers()
    answers.handlers = Handlers()
    answers.handlers.serve(Ask, tell)
    async with open_node(2, answers=answers) as bob:

        async def hoard(transport: WebSocketTransport) -> None:
            await enter(transport, 3)
            for number in range(1, limits.LINK_STREAMS_MAX + 1):
                await transport.send(encode(links.OpenStream(number, 1, CODEC.encode(Ask("more")))))
            (link,) = bob.links.values()
            await until(lambda: link.streams >= limits.LINK_STREAMS_MAX - 50)
            for _ in range(20):
                await trio.testing.wait_all_tasks_blocked()
            assert 1 <= asked < 50, "what is computed and encoded waits in memory"

        await speak(bob, hoard)

        async def read_on(transport: WebSocketTransport) -> None:
            await enter(transport, 4)
            for number in range(1, 101):
                await transport.send(encode(links.OpenStream(number, 1, CODEC.encode(Ask("more")))))
            for _ in range(100):
                assert isinstance(links.decode_frame(await transport.receive()), links.EndStream)

        with trio.fail_after(10):
            await speak(bob, read_on)


async def test_answers_that_wait_to_be_sent_are_bounded_in_bytes():
    async with open_node(2) as bob:

        async def hoard(transport: WebSocketTransport) -> list[int]:
            await enter(transport, 3)
            count = CODEC.encode(Count(3, 900_000))
            for number in range(1, 101):
                await transport.send(encode(links.OpenStream(number, 1, count)))
            codes = []
            with trio.move_on_after(3):
                while len(codes) < 50:
                    frame = links.decode_frame(await transport.receive())
                    if isinstance(frame, links.FailStream):
                        codes.append(frame.code)
            (link,) = bob.links.values()
            assert link._budget.bytes_held <= LINK_BYTES_MAX
            return codes

        codes = await speak(bob, hoard)
        assert len(codes) > 40, "each stream has an item that waits for credit; 35 of them fit"
        assert set(codes) == {Busy.code}


async def test_one_peer_cannot_take_up_all_links():
    async with open_node(2) as bob, open_node(1) as alice, trio.open_nursery() as nursery:
        link = await alice.connect(("127.0.0.1", bob.port))
        opened = 0

        async def stay(transport: WebSocketTransport) -> None:
            nonlocal opened
            await enter(transport, 3)
            opened += 1
            await trio.sleep_forever()

        async def insist() -> None:
            while True:  # on a busy machine a handshake of forty at once may be late
                with suppress(TransportBroken):
                    await speak(bob, stay)

        for _ in range(40):
            nursery.start_soon(insist)
        await until(lambda: opened == 40, 30)
        await until(lambda: len(bob._running) <= LINKS_PER_PEER_MAX + 1)
        assert await link.request(Ask("served"), Told) == Told("served")
        nursery.cancel_scope.cancel()


async def test_peer_that_falls_silent_is_dropped_after_several_heartbeats_not_after_one():
    settings = LinkSettings(heartbeat_seconds=0.1, heartbeats_missed_max=4, close_seconds=0.1)
    async with open_node(2, settings=settings) as bob:

        async def fall_silent(transport: WebSocketTransport) -> float:
            await enter(transport, 3)
            begun = trio.current_time()
            with pytest.raises(TransportBroken):
                await drain(transport)
            return trio.current_time() - begun

        lasted = await speak(bob, fall_silent)
        assert 0.4 < lasted < 2
        async with open_node(1, settings=settings) as alice:
            link = await alice.connect(("127.0.0.1", bob.port))
            await trio.sleep(1.0)  # ten intervals without traffic: the heartbeats alone keep it
            assert not link.closed.is_set()


async def test_peer_that_does_not_read_is_dropped():
    settings = LinkSettings(stall_seconds=0.3, close_seconds=0.1)
    async with open_node(2, settings=settings) as bob:

        async def never_read(transport: WebSocketTransport) -> None:
            await enter(transport, 3)
            count = encode((3, 256, 500_000))
            await transport.send(encode(links.OpenStream(1, 256, count)))
            await until(lambda: not bob.links, seconds=5)

        with trio.fail_after(8):
            await speak(bob, never_read)


async def test_old_tls_is_refused():
    async with open_node(2) as bob:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        stream = trio.SSLStream(
            await trio.open_tcp_stream("127.0.0.1", bob.port), context, https_compatible=True
        )
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)


async def test_frame_above_the_bound_closes_the_websocket():
    async with open_node(2) as bob:

        async def too_large(transport: WebSocketTransport) -> None:
            await enter(transport, 3)
            await transport.send(bytes(limits.LINK_FRAME_BYTES_MAX + 1))
            with pytest.raises(TransportBroken):
                await transport.receive()

        await speak(bob, too_large)
        await until(lambda: not bob.links)


async def test_text_message_is_a_violation():
    async with open_node(2) as bob:

        async def write_text(transport: WebSocketTransport) -> None:
            await enter(transport, 3)
            connection: trio_websocket.WebSocketConnection = transport._connection
            await connection.send_message("text")
            with pytest.raises(TransportBroken):
                await transport.receive()

        await speak(bob, write_text)
