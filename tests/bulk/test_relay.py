"""The relay of datagrams, over real sockets: who may bind, what passes, what does not, and how much."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from ioc_node.bulk import relay as relay_module
from ioc_node.bulk.relay import DatagramRelay, bind_to_relay
from ioc_node.bulk.udp import UdpSocket, connect_udp, open_udp
from ioc_node.errors import PeerUnreachable
from ioc_wire.errors import OverQuota
from ioc_wire.relay import RELAY_BOUND, decode_bind, decode_challenge, encode_bind, encode_challenge

ALICE, BOB = b"a" * 32, b"b" * 32
MIB = 1 << 20


@asynccontextmanager
async def open_relay(*, bytes_per_second: float = 1e9, sessions_max: int = 8) -> AsyncIterator[DatagramRelay]:
    udp = open_udp("127.0.0.1", 0)
    relay = DatagramRelay(udp, "127.0.0.1", bytes_per_second=bytes_per_second, sessions_max=sessions_max)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.serve)
        yield relay
        nursery.cancel_scope.cancel()
    udp.close()


@contextmanager
def closing(udp: UdpSocket) -> Iterator[UdpSocket]:
    try:
        yield udp
    finally:
        udp.close()


async def dial(relay: DatagramRelay) -> UdpSocket:
    return (await connect_udp("127.0.0.1", relay.port))[0]


async def receive(udp: UdpSocket, seconds: float = 2.0) -> list[bytes]:
    with trio.fail_after(seconds):
        await udp.wait_readable()
    return [
        data[at : at + size] for data, size, _ in udp.receive_nowait() for at in range(0, len(data), size)
    ]


async def silent(udp: UdpSocket) -> bool:
    with trio.move_on_after(0.1):
        await udp.wait_readable()
        return not udp.receive_nowait()
    return True


async def test_what_one_end_sends_reaches_the_other_unchanged_and_is_counted() -> None:
    async with open_relay() as relay:
        session = relay.open_session(ALICE, BOB)
        with closing(await dial(relay)) as alice, closing(await dial(relay)) as bob:
            await bind_to_relay(alice, session.caller.token)
            await bind_to_relay(bob, session.target.token)
            sent = [bytes([number]) * 1200 for number in range(64, 84)] + [b"@" * 17]
            assert alice.send_nowait(sent, ("", 0)) == len(sent)
            arrived: list[bytes] = []
            while len(arrived) < len(sent):
                arrived += await receive(bob)
            assert arrived == sent
            bob.send_nowait([b"@back"], ("", 0))
            assert await receive(alice) == [b"@back"]
            assert (session.caller.bytes_sent, session.target.bytes_sent) == (20 * 1200 + 17, 5)


async def test_nothing_passes_before_both_are_known_nor_after_the_end() -> None:
    async with open_relay() as relay:
        session = relay.open_session(ALICE, BOB)
        with closing(await dial(relay)) as alice, closing(await dial(relay)) as bob:
            alice.send_nowait([b"@early"], ("", 0))
            await bind_to_relay(alice, session.caller.token)
            alice.send_nowait([b"@early too"], ("", 0))
            await bind_to_relay(bob, session.target.token)
            assert await silent(bob)
            relay.close_session(session)
            alice.send_nowait([b"@late"], ("", 0))
            assert await silent(bob)
            assert (relay.sessions, relay.dropped) == (0, 3)


async def test_an_address_is_bound_only_once_it_has_answered() -> None:
    """The first answer is no larger than the question, and the cookie of one address is none for another."""
    async with open_relay() as relay:
        session = relay.open_session(ALICE, BOB)
        with closing(await dial(relay)) as alice, closing(await dial(relay)) as mallory:
            first = encode_bind(session.caller.token)
            alice.send_nowait([first], ("", 0))
            (challenge,) = await receive(alice)
            assert len(challenge) <= len(first)
            cookie = decode_challenge(challenge)
            assert cookie is not None
            mallory.send_nowait([encode_bind(session.caller.token, cookie)], ("", 0))
            (other,) = await receive(mallory)
            assert decode_challenge(other) not in (None, cookie)
            assert session.caller.address is None
            alice.send_nowait([encode_bind(session.caller.token, cookie)], ("", 0))
            assert await receive(alice) == [RELAY_BOUND]


async def test_an_end_whose_address_changes_goes_on() -> None:
    async with open_relay() as relay:
        session = relay.open_session(ALICE, BOB)
        with closing(await dial(relay)) as bob:
            await bind_to_relay(bob, session.target.token)
            for word in (b"@first", b"@second"):
                with closing(await dial(relay)) as alice:
                    await bind_to_relay(alice, session.caller.token)
                    alice.send_nowait([word], ("", 0))
                    assert await receive(bob) == [word]


async def test_who_has_no_token_gets_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "BIND_SECONDS", 0.3)
    async with open_relay() as relay:
        with closing(await dial(relay)) as mallory:
            with pytest.raises(PeerUnreachable, match="no answer from the relay"):
                await bind_to_relay(mallory, b"t" * 16)
            for junk in (b"\x01ioc-rl1", b"\x01ioc-rl1" + b"x" * 60, b"", b"@" * 1400):
                mallory.send_nowait([junk], ("", 0))
            assert await silent(mallory)


async def test_a_session_has_a_rate_and_a_peer_so_many_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "SESSIONS_PER_PEER_MAX", 2)
    async with open_relay(bytes_per_second=40_000, sessions_max=3) as relay:
        session = relay.open_session(ALICE, BOB)
        with closing(await dial(relay)) as alice, closing(await dial(relay)) as bob:
            await bind_to_relay(alice, session.caller.token)
            await bind_to_relay(bob, session.target.token)
            for _ in range(50):  # 60,000 bytes at once; a quarter of a second's worth has room
                alice.send_nowait([b"@" * 1200], ("", 0))
                await trio.lowlevel.checkpoint()
            while not await silent(bob):
                pass
            assert 0 < session.caller.bytes_sent < 30_000
            assert relay.dropped > 20
        relay.open_session(ALICE, BOB)
        with pytest.raises(OverQuota, match="of one peer"):
            relay.open_session(ALICE, BOB)
        relay.open_session(BOB, ALICE)
        with pytest.raises(OverQuota, match="3 relay sessions"):
            relay.open_session(BOB, ALICE)


def test_binds_are_told_from_everything_else() -> None:
    token, cookie = b"t" * 16, b"c" * 16
    assert decode_bind(encode_bind(token)) == (token, b"")
    assert decode_bind(encode_bind(token, cookie)) == (token, cookie)
    assert decode_challenge(encode_challenge(cookie)) == cookie
    for other in (b"", b"\x40" + encode_bind(token)[1:], encode_bind(token)[:-1], encode_bind(token) + b"x"):
        assert decode_bind(other) is None
    assert decode_challenge(RELAY_BOUND) is None
