"""A relay of datagrams between two addresses that cannot reach each other, and how an end makes itself known to one.

A core node opens a *session* for two peers of its own and gives each end a token. An end binds its address to its token
once it has shown, with a cookie, that datagrams reach it there: nobody can have the relay send to a third party's
address. From then on whatever comes from one address goes to the other, unread: it is QUIC between the ends. What the
kernel does not take at once, or what is above the session's rate, is lost, as on any path; QUIC makes up for it.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Final

import structlog
import trio

from ioc_node.bulk.udp import Address, UdpSocket, connect_udp
from ioc_node.errors import PeerUnreachable
from ioc_wire.errors import OverQuota
from ioc_wire.relay import (
    COOKIE_BYTES,
    RELAY_BOUND,
    RELAY_MAGIC,
    TOKEN_BYTES,
    decode_bind,
    decode_challenge,
    encode_bind,
    encode_challenge,
)

SESSIONS_PER_PEER_MAX: Final = 8
COOKIE_SECONDS: Final = 30.0
BIND_SECONDS: Final = 5.0
BIND_AGAIN_SECONDS: Final = 0.2
BURST_SECONDS: Final = 0.25
"""What a session may send at once, as time at its rate."""

_log = structlog.get_logger()


class End:
    """One end of a session. `bytes_sent` is what came from it and was passed on."""

    def __init__(self, key: bytes, session: "Session") -> None:
        self.key = key
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.session = session
        self.address: Address | None = None
        self.bytes_sent = 0


class Session:
    """Two ends, and how much may still pass between them now."""

    def __init__(self, caller: bytes, target: bytes, bytes_per_second: float, now: float) -> None:
        self.caller, self.target = End(caller, self), End(target, self)
        self._rate = bytes_per_second
        self._room = bytes_per_second * BURST_SECONDS
        self._at = now

    def other(self, end: End) -> End:
        return self.target if end is self.caller else self.caller

    def has_room(self, size: int, now: float) -> bool:
        """Take `size` bytes of the rate; False where there is less."""
        self._room = min(self._room + (now - self._at) * self._rate, self._rate * BURST_SECONDS)
        self._at = now
        if size > self._room:
            return False
        self._room -= size
        return True


class DatagramRelay:
    """One UDP port of a core node. `host` is where it is reached, `bytes_per_second` the rate of each session."""

    def __init__(
        self,
        udp: UdpSocket,
        host: str,
        *,
        bytes_per_second: float,
        sessions_max: int,
        clock: Callable[[], float] = time.monotonic,
        admits: Callable[[bytes, int], bool] = lambda _to, _size: True,
    ) -> None:
        """`admits` says whether so many bytes may go to that peer (a key) now: the ceilings of the whole node."""
        self.host = host
        self.port = udp.port
        self._udp = udp
        self._rate = bytes_per_second
        self._sessions_max = sessions_max
        self._clock = clock
        self._admits = admits
        self._secret = secrets.token_bytes(32)
        self._sessions: set[Session] = set()
        self._tokens: dict[bytes, End] = {}
        self._ends: dict[Address, End] = {}
        self.dropped = 0
        """Datagrams that were not passed on: no session, no room."""

    @property
    def sessions(self) -> int:
        """Sessions that are open now."""
        return len(self._sessions)

    def open_session(self, caller: bytes, target: bytes) -> Session:
        """A session for two peers (their keys). Raises `OverQuota`."""
        if len(self._sessions) >= self._sessions_max:
            raise OverQuota(f"{self._sessions_max} relay sessions are open here")
        own = sum(each.caller.key == caller for each in self._sessions)
        if own >= SESSIONS_PER_PEER_MAX:
            raise OverQuota(f"{SESSIONS_PER_PEER_MAX} relay sessions of one peer are open here")
        session = Session(caller, target, self._rate, self._clock())
        self._sessions.add(session)
        for end in (session.caller, session.target):
            self._tokens[end.token] = end
        return session

    def close_session(self, session: Session) -> None:
        """Pass nothing on any more."""
        self._sessions.discard(session)
        for end in (session.caller, session.target):
            self._tokens.pop(end.token, None)
            if end.address is not None:
                self._ends.pop(end.address, None)

    async def serve(self) -> None:
        """Pass on until cancelled."""
        while True:
            await self._udp.wait_readable()
            for data, size, address in self._udp.receive_nowait():
                self._take(data, size, address)

    def _take(self, data: bytes, size: int, address: Address) -> None:
        if data.startswith(RELAY_MAGIC):
            self._on_bind(data[:size], address)
            return
        datagrams = [data[start : start + size] for start in range(0, len(data), size or 1)]
        end = self._ends.get(address)
        other = end.session.other(end) if end is not None else None
        to = other.address if other is not None else None
        if end is None or other is None or to is None or not self._may_pass(end, other, len(data)):
            self.dropped += len(datagrams)
            return
        sent = self._send(datagrams, to)
        self.dropped += len(datagrams) - sent
        end.bytes_sent += sum(map(len, datagrams[:sent]))

    def _may_pass(self, end: End, other: End, size: int) -> bool:
        return end.session.has_room(size, self._clock()) and self._admits(other.key, size)

    def _on_bind(self, datagram: bytes, address: Address) -> None:
        bind = decode_bind(datagram)
        end = self._tokens.get(bind[0]) if bind is not None else None
        if bind is None or end is None:
            self.dropped += 1
            return
        cookie = bind[1]
        if not any(hmac.compare_digest(cookie, each) for each in self._cookies(address)):
            self._send([encode_challenge(self._cookies(address)[0])], address)
            return
        taken = self._ends.get(address)
        if taken is not None and taken is not end:
            self.dropped += 1  # one address is one end: whoever has it must let go of it first
            return
        if end.address is not None:
            self._ends.pop(end.address, None)
        end.address = address
        self._ends[address] = end
        self._send([RELAY_BOUND], address)

    def _cookies(self, address: Address) -> tuple[bytes, bytes]:
        """For this address now, and a while ago."""
        period = int(self._clock() / COOKIE_SECONDS)
        now, before = (
            hmac.digest(self._secret, f"{each} {address[0]} {address[1]}".encode(), hashlib.sha256)
            for each in (period, period - 1)
        )
        return now[:COOKIE_BYTES], before[:COOKIE_BYTES]

    def _send(self, datagrams: list[bytes], address: Address) -> int:
        try:
            return self._udp.send_nowait(datagrams, address)
        except OSError as error:
            _log.debug("relay_send_failed", peer=address[0], error=str(error))
            return 0


async def dial_relay(token: bytes, host: str, port: int) -> tuple[UdpSocket, Address]:
    """A socket that is the end which `token` was made for, and the relay's address. Raises `PeerUnreachable`."""
    udp, address = await connect_udp(host, port)
    try:
        await bind_to_relay(udp, token)
    except BaseException:
        udp.close()
        raise
    return udp, address


async def bind_to_relay(udp: UdpSocket, token: bytes) -> None:
    """Make the address of `udp`, a socket connected to a relay, known there. Raises `PeerUnreachable`."""
    cookie = b""
    with trio.move_on_after(BIND_SECONDS):
        while True:
            try:
                udp.send_nowait([encode_bind(token, cookie)], ("", 0))
                with trio.move_on_after(BIND_AGAIN_SECONDS):
                    await udp.wait_readable()
                for data, size, _ in udp.receive_nowait():
                    if data[:size] == RELAY_BOUND:
                        return
                    cookie = decode_challenge(data[:size]) or cookie
            except OSError as error:
                raise PeerUnreachable(f"no answer from the relay: {error.strerror or error}") from None
    raise PeerUnreachable(f"no answer from the relay within {BIND_SECONDS:g} s")
