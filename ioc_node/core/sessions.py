"""Authenticated, encrypted sessions over datagrams (packets: `ioc_wire.dht`).

Theory of operation. The initiator's side of a handshake is an `Attempt`: KNOCK out, WHOAREYOU in, HANDSHAKE
out, ACCEPT in, and then it is a `Session`. The responder has no attempts: it answers KNOCKs from a secret,
and a good HANDSHAKE makes a `Session` at once, whose first `send` is the ACCEPT. `receive` takes one datagram
and returns what it meant, or None; whatever has to be sent is appended to `out`. Nothing a peer sends raises.
Both tables are bounded: sessions by least recent use, attempts by refusing to begin more.
"""

from collections import OrderedDict
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ioc_node.core.challenge import Address, Challenges
from ioc_node.core.chance import Chance
from ioc_node.core.rates import RateTable
from ioc_node.core.session import (
    Attempt,
    Challenged,
    Failed,
    Lost,
    Opened,
    Outbox,
    Received,
    SendDatagram,
    Session,
    SessionEvent,
    derive_ciphers,
)
from ioc_node.core.trust import Trust
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.codec import encode
from ioc_wire.errors import (
    Expired,
    Malformed,
    TooLarge,
    UnknownNetwork,
    UnknownType,
    WireError,
    WrongPeer,
    error_of,
)
from ioc_wire.identity import NodeId, format_node_id, node_id_of
from ioc_wire.signed import Signed, public_bytes, verify_bytes

SESSIONS_MAX: Final = 2048
ATTEMPTS_MAX: Final = 1024
SESSION_SECONDS: Final = 12 * 3600
RENEW_SECONDS: Final = 11 * 3600
"""After this long an initiator makes a new session before it sends again."""
PREKEYS_SEEN_MAX: Final = 4096
REFUSALS_PER_SECOND: Final = 200.0
"""To one host, not in all: spoofed messages must not keep from others that their session is gone."""
ACCEPTS_MAX: Final = 8
"""Times that one HANDSHAKE is answered: its ACCEPT may be larger, and whoever saw it can repeat it."""
HANDSHAKES_PER_SECOND: Final = 400.0
"""Of one host; each costs its responder about half a millisecond."""

_FIRST_NONCE: Final = bytes(12)


class SessionCounters:
    """What happened so far, in packets."""

    __slots__ = (
        "garbage",
        "handshakes_accepted",
        "handshakes_made",
        "limited",
        "refused",
        "replayed",
        "undecryptable",
    )

    def __init__(self) -> None:
        self.garbage = self.undecryptable = self.replayed = self.refused = self.limited = 0
        self.handshakes_made = self.handshakes_accepted = 0


class Sessions:
    """All sessions of one node. `chain` is its own delegation chain (certified networks)."""

    def __init__(
        self,
        *,
        key: Ed25519PrivateKey,
        trust: Trust,
        chain: tuple[Signed, ...],
        server: bool,
        chance: Chance,
        unix_offset: float,
    ) -> None:
        self.key = public_bytes(key)
        self.node_id = node_id_of(self.key)
        self.counters = SessionCounters()
        self._private = key
        self._trust = trust
        self._chain = chain if trust.certified else None
        self._flags = wire.FLAG_SERVER if server else 0
        self._chance = chance
        self._unix_offset = unix_offset
        self._challenges = Challenges(key, trust.network_id, chance, unix_offset)
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        self._by_remote: dict[bytes, Session] = {}
        self._by_node: dict[bytes, Session] = {}
        self._attempts: dict[bytes, Attempt] = {}
        self._prekeys_seen: OrderedDict[bytes, None] = OrderedDict()
        self._refusals = RateTable(REFUSALS_PER_SECOND, REFUSALS_PER_SECOND)
        self._handshakes = RateTable(HANDSHAKES_PER_SECOND, HANDSHAKES_PER_SECOND)
        opening = encode(wire.Opening(self._chain, b""))
        if len(opening) > wire.OPENING_BYTES_MAX:
            raise TooLarge(f"this node's delegation chain: {len(opening)} bytes do not fit into a datagram")

    def __len__(self) -> int:
        return len(self._sessions)

    def set_clock(self, unix_offset: float) -> None:
        """Seconds since 1970 are from now on the machine's seconds plus this."""
        self._unix_offset = unix_offset
        self._challenges.set_clock(unix_offset)

    # -- sending

    def with_node(self, node_id: bytes, now: float) -> Session | None:
        """The session to use towards a node, unless it is due for renewal."""
        session = self._by_node.get(node_id)
        if session is not None and now < session.renew:
            return session
        return None

    def operator(self, node_id: bytes) -> str | None:
        """The prefix delegated to a node that we have a session with, if one was."""
        session = self._by_node.get(node_id)
        return None if session is None else session.operator

    def knock(self, address: Address, expected: bytes | None, message: bytes, out: Outbox) -> Attempt | None:
        """Begin a handshake with whoever is at `address`, or with `expected` only. None: too many begun."""
        if len(self._attempts) >= ATTEMPTS_MAX:
            return None
        attempt = Attempt(address, expected, message, self._chance)
        knock = wire.Knock(
            attempt.session_id, attempt.nonce, limits.PROTOCOL_VERSION, self._trust.network_id, self.node_id
        )
        attempt.packet = knock.encode()
        self._attempts[attempt.session_id] = attempt
        out.append(SendDatagram(attempt.packet, address))
        return attempt

    def repeat(self, attempt: Attempt, out: Outbox) -> None:
        """Send the last packet of a handshake again."""
        out.append(SendDatagram(attempt.packet, attempt.address))

    def abandon(self, attempt: Attempt) -> None:
        """Forget an attempt that nobody answered."""
        self._attempts.pop(attempt.session_id, None)

    def drop(self, session: Session) -> None:
        """Forget a session, for example because its peer stopped answering."""
        self._sessions.pop(session.local_id, None)
        self._by_remote.pop(session.remote_id, None)
        if self._by_node.get(session.node_id) is session:
            del self._by_node[session.node_id]
        session.elder = None

    def drop_node(self, node_id: bytes) -> None:
        """Forget all sessions with a node."""
        for session in [s for s in self._sessions.values() if s.node_id == node_id]:
            self.drop(session)

    def send(self, session: Session, data: bytes, out: Outbox) -> None:
        """Send one message (at most `PLAINTEXT_BYTES_MAX` bytes). A responder's first becomes the ACCEPT."""
        if session.unaccepted is not None and self._accept(session, data, out):
            return
        session.counter = counter = session.counter + 1
        head = session.prefix + counter.to_bytes(8, "big")
        out.append(SendDatagram(head + session.seal.encrypt(head[9:], data, head), session.address))

    def _accept(self, session: Session, data: bytes, out: Outbox) -> bool:
        """Send the ACCEPT; return whether `data` went with it."""
        spent, session.unaccepted = session.unaccepted, None
        assert spent is not None
        plain = encode(wire.Acceptance(session.local_id, self._flags, self._chain, data))
        fits = len(plain) <= wire.PLAINTEXT_BYTES_MAX
        if not fits:
            plain = encode(wire.Acceptance(session.local_id, self._flags, self._chain, b""))
        head = bytes((wire.ACCEPT,)) + session.remote_id + _FIRST_NONCE
        spent.accept = head + session.seal.encrypt(_FIRST_NONCE, plain, head)
        out.append(SendDatagram(spent.accept, session.address))
        return fits or not data

    # -- receiving

    def receive(self, data: bytes, address: Address, now: float, out: Outbox) -> SessionEvent | None:
        """Take one datagram in."""
        if not wire.HEADER_BYTES <= len(data) <= limits.DATAGRAM_BYTES_MAX:
            self.counters.garbage += 1
            return None
        kind = data[0]
        if kind == wire.MESSAGE:
            return self._on_message(data, address, now, out)
        try:
            if kind == wire.KNOCK:
                self._on_knock(data, address, now, out)
                return None
            if kind == wire.WHOAREYOU:
                return self._on_whoareyou(data, address, now, out)
            if kind == wire.HANDSHAKE:
                return self._on_handshake(data, address, now, out)
            if kind == wire.ACCEPT:
                return self._on_accept(data, address, now)
            if kind == wire.REFUSED:
                return self._on_refused(data, address)
        except WireError:
            pass
        self.counters.garbage += 1
        return None

    def _on_message(self, data: bytes, address: Address, now: float, out: Outbox) -> Received | None:
        session = self._sessions.get(data[1:9])
        if session is None or session.address != address or now > session.expires:
            if data[1:9] not in self._attempts:  # there its ACCEPT may still be on the way
                self._refuse(data, wire.CODE_NO_SESSION, address, now, out)
            return None
        counter = int.from_bytes(data[9:21], "big")
        if not session.is_fresh(counter):
            self.counters.replayed += 1
            return None
        try:
            plain = session.open.decrypt(data[9:21], data[21:], data[:21])
        except InvalidTag:
            self.counters.undecryptable += 1
            return None
        session.mark(counter)
        session.heard = now
        self._sessions.move_to_end(session.local_id)
        return Received(session, plain)

    def _refuse(self, data: bytes, code: int, address: Address, now: float, out: Outbox) -> None:
        """Answer with REFUSED, unless that would be larger than the packet or too many were sent lately."""
        self.counters.refused += 1
        if len(data) >= wire.REFUSED_BYTES and self._refusals.take(address[0], now):
            out.append(SendDatagram(wire.encode_refused(data, code), address))

    def _on_knock(self, data: bytes, address: Address, now: float, out: Outbox) -> None:
        knock = wire.decode_knock(data)
        if knock.version != limits.PROTOCOL_VERSION:
            self._refuse(data, UnknownType.code, address, now, out)
        elif knock.network_id != self._trust.network_id:
            self._refuse(data, UnknownNetwork.code, address, now, out)
        else:
            out.append(SendDatagram(self._challenges.whoareyou(knock, address, now), address))

    def _on_handshake(self, data: bytes, address: Address, now: float, out: Outbox) -> Received | None:
        shake = wire.decode_handshake(data)
        node_id = node_id_of(shake.key)
        challenges = self._challenges
        if not challenges.is_ours(shake.cookie, node_id, shake.session_id, shake.nonce, address, now):
            self.counters.replayed += 1
            return None
        spent = challenges.spent(shake.cookie)
        if spent is not None:
            if spent.accept and spent.signature == shake.signature and spent.accepts < ACCEPTS_MAX:
                spent.accepts += 1
                out.append(SendDatagram(spent.accept, address))
            else:
                self.counters.replayed += 1
            return None
        if not self._handshakes.take(address[0], now):
            self.counters.limited += 1
            return None
        try:
            session, message = self._open_handshake(data, shake, node_id, address, now)
        except WireError as error:
            self._refuse(data, error.code, address, now, out)
            return None
        session.unaccepted = challenges.spend(shake.cookie, shake.signature, now)
        self.counters.handshakes_accepted += 1
        self._add(session, now)
        return Received(session, message)

    def _open_handshake(
        self, data: bytes, shake: wire.Handshake, node_id: NodeId, address: Address, now: float
    ) -> tuple[Session, bytes]:
        prekey = self._challenges.prekey(shake.prekey_id, now)
        if prekey is None:
            raise Expired("prekey")
        transcript = wire.transcript(self._trust.network_id, shake, self.key, prekey.public)
        verify_bytes(shake.key, shake.signature, wire.handshake_signed_bytes(transcript), "handshake")
        theirs, ours = derive_ciphers(prekey.private, shake.ephemeral, transcript)
        head = wire.HANDSHAKE_HEADER_BYTES
        try:
            plain = theirs.decrypt(_FIRST_NONCE, data[head:], data[:head])
        except InvalidTag:
            raise Malformed("handshake does not decrypt") from None
        opening = wire.decode_opening(plain)
        server = bool(shake.flags & wire.FLAG_SERVER)
        grant = self._trust.admit(shake.key, opening.chain, server=server, unix=now + self._unix_offset)
        session = Session(
            key=shake.key, node_id=node_id, address=address, local_id=self._chance.randbytes(8),
            remote_id=shake.session_id, is_server=server, opens=theirs, seals=ours,
            operator=grant.prefix if grant is not None else None,
        )  # fmt: skip
        return session, opening.message

    def _on_whoareyou(
        self, data: bytes, address: Address, now: float, out: Outbox
    ) -> Challenged | Failed | None:
        who = wire.decode_whoareyou(data)
        attempt = self._attempts.get(who.session_id)
        if attempt is None or attempt.address != address or attempt.nonce != who.nonce or attempt.key:
            return None
        try:
            attempt.packet = self._shake(attempt, who, now)
        except WireError as error:
            self.abandon(attempt)
            return Failed(attempt, error)
        out.append(SendDatagram(attempt.packet, address))
        return Challenged(attempt)

    def _shake(self, attempt: Attempt, who: wire.Whoareyou, now: float) -> bytes:
        """Check the challenge and build the HANDSHAKE."""
        node_id = node_id_of(who.key)
        if attempt.expected is not None and node_id != attempt.expected:
            there, expected = format_node_id(node_id), format_node_id(attempt.expected)
            raise WrongPeer(f"{there} answers there, not {expected}")
        if node_id == self.node_id:
            raise WrongPeer("that address is this node's own")
        if now + self._unix_offset > who.not_after + limits.CLOCK_SKEW_SECONDS:
            raise Expired("the peer's prekey")
        self._check_prekey(who)
        attempt.key, attempt.node_id = who.key, node_id
        secret = X25519PrivateKey.from_private_bytes(attempt.ephemeral)
        shake = wire.Handshake(
            attempt.session_id, attempt.nonce, who.cookie, self.key, who.prekey[:8],
            secret.public_key().public_bytes_raw(), self._flags, b"",
        )  # fmt: skip
        transcript = wire.transcript(self._trust.network_id, shake, who.key, who.prekey)
        attempt.seal, attempt.open = derive_ciphers(secret, who.prekey, transcript)
        signature = self._private.sign(wire.handshake_signed_bytes(transcript))
        plain = encode(wire.Opening(self._chain, attempt.message))
        attempt.carried = len(plain) <= wire.OPENING_BYTES_MAX
        if not attempt.carried:
            plain = encode(wire.Opening(self._chain, b""))
        head = shake._replace(signature=signature).encode()
        return head + attempt.seal.encrypt(_FIRST_NONCE, plain, head)

    def _check_prekey(self, who: wire.Whoareyou) -> None:
        """Verify the prekey's signature, once per prekey."""
        name = who.key + who.prekey + who.signature + who.not_after.to_bytes(8, "big")
        if name in self._prekeys_seen:
            return
        signed = wire.prekey_signed_bytes(self._trust.network_id, who.prekey, who.not_after)
        verify_bytes(who.key, who.signature, signed, "the peer's prekey")
        self._prekeys_seen[name] = None
        if len(self._prekeys_seen) > PREKEYS_SEEN_MAX:
            self._prekeys_seen.popitem(last=False)

    def _on_accept(self, data: bytes, address: Address, now: float) -> Opened | Failed | None:
        attempt = self._attempts.get(data[1:9])
        if attempt is None or attempt.address != address or attempt.open is None or attempt.seal is None:
            return None
        try:
            plain = attempt.open.decrypt(_FIRST_NONCE, data[21:], data[:21])
        except InvalidTag:
            self.counters.undecryptable += 1
            return None
        self.abandon(attempt)
        try:
            accepted = wire.decode_acceptance(plain)
            server = bool(accepted.flags & wire.FLAG_SERVER)
            grant = self._trust.admit(
                attempt.key, accepted.chain, server=server, unix=now + self._unix_offset
            )
        except WireError as error:
            return Failed(attempt, error, refused_here=True)
        session = Session(
            key=attempt.key, node_id=attempt.node_id, address=address, local_id=attempt.session_id,
            remote_id=accepted.session_id, is_server=server, opens=attempt.open, seals=attempt.seal,
            operator=grant.prefix if grant is not None else None,
        )  # fmt: skip
        self.counters.handshakes_made += 1
        self._add(session, now)
        return Opened(session, attempt, accepted.message)

    def _on_refused(self, data: bytes, address: Address) -> Failed | Lost | None:
        session_id, nonce, code = wire.decode_refused(data)
        attempt = self._attempts.get(session_id)
        if attempt is not None and attempt.address == address and attempt.nonce == nonce and code:
            self.abandon(attempt)
            return Failed(attempt, error_of(code, f"{address[0]}:{address[1]} refused the handshake"))
        session = self._by_remote.get(session_id)
        if session is not None and session.address == address and code == wire.CODE_NO_SESSION:
            self.drop(session)
            return Lost(session)
        return None

    def _add(self, session: Session, now: float) -> None:
        session.expires = now + SESSION_SECONDS
        session.renew = now + RENEW_SECONDS
        session.heard = now
        self._sessions[session.local_id] = session
        self._by_remote[session.remote_id] = session
        # Both ends may have begun one at once, so the one before is kept too; no peer gets a third.
        elder = self._by_node.get(session.node_id)
        if elder is not None and elder.elder is not None:
            self.drop(elder.elder)
            elder.elder = None
        session.elder = elder
        self._by_node[session.node_id] = session
        if len(self._sessions) > SESSIONS_MAX:
            self.drop(next(iter(self._sessions.values())))

    def forget_old(self, now: float) -> None:
        """Free spent cookies and expired sessions; called now and then."""
        self._challenges.forget_old(now)
        for session in [s for s in self._sessions.values() if now > s.expires]:
            self.drop(session)
