"""Tickets: who may read which blob here, until when.

A ticket is a random 256-bit secret bound to one blob, one reader and a time. It travels over an
authenticated link. On the bulk connection the reader shows the secret and signs, with its node key, the
holder's key, a nonce that the holder made for this connection, and the ticket's digest. So a stolen
ticket is useless without the reader's key, and a recorded claim is useless on another connection. A
ticket may be used again until it expires: that is how a broken transfer resumes.
"""

import hmac
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.bandwidth import Traffic
from ioc_wire import limits
from ioc_wire.bulk import (
    TICKET_SECRET_BYTES,
    Claim,
    Endpoint,
    OffloadDescriptor,
    Ticket,
    claim_bytes,
    ticket_digest,
)
from ioc_wire.errors import BadSignature, Busy, Expired, ReplayedProof, TicketRefused, WrongPeer
from ioc_wire.signed import public_bytes, verify_bytes

TICKETS_MAX: Final = 65_536
TICKETS_PER_READER_MAX: Final = 4096


class TicketBook:
    """The tickets that this holder has issued and that are still good, at most `TICKETS_MAX`."""

    def __init__(self, holder: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._holder = holder
        self._clock = clock
        self._tickets: dict[bytes, Ticket] = {}
        self._traffic: dict[bytes, Traffic] = {}
        self._per_reader: dict[bytes, int] = {}
        self.on_revoked: Callable[[bytes], None] = lambda _digest: None
        """Told the digest of a ticket that is no longer good before its time."""

    def __len__(self) -> int:
        return len(self._tickets)

    def issue(
        self,
        blob: bytes,
        reader: bytes,
        *,
        seconds: float = limits.TICKET_SECONDS_MAX,
        size: int | None = None,
        endpoints: tuple[Endpoint, ...] = (),
        offloads: tuple[OffloadDescriptor, ...] = (),
        traffic: Traffic = "bulk",
    ) -> Ticket:
        """A new ticket for `reader` (a public key); `traffic` says here what for. Raises `Busy` when too many are
        out."""
        now = self._clock()
        self._require_room(reader, now)
        ticket = Ticket(
            secret=secrets.token_bytes(TICKET_SECRET_BYTES),
            blob=blob,
            holder=self._holder,
            reader=reader,
            expires=int(now + min(seconds, limits.TICKET_SECONDS_MAX)),
            size=size,
            endpoints=endpoints,
            offloads=offloads,
        )
        self.admit(ticket, traffic)
        return ticket

    def _require_room(self, reader: bytes, now: float) -> None:
        if self._is_full(reader):
            self._drop_expired(now)
        if self._is_full(reader):
            raise Busy("too many tickets are out; ask again when some have expired")

    def _is_full(self, reader: bytes) -> bool:
        return len(self._tickets) >= TICKETS_MAX or self._per_reader.get(reader, 0) >= TICKETS_PER_READER_MAX

    def admit(self, ticket: Ticket, traffic: Traffic) -> None:
        """A ticket that this holder has issued is out."""
        digest = ticket_digest(ticket.secret)
        if digest not in self._tickets:
            self._per_reader[ticket.reader] = self._per_reader.get(ticket.reader, 0) + 1
        self._tickets[digest] = ticket
        self._traffic[digest] = traffic

    def knows(self, reader: bytes) -> bool:
        """Whether a ticket of this reader (a public key) is out."""
        return reader in self._per_reader

    def traffic_of(self, ticket: Ticket) -> Traffic:
        """What a ticket was issued for."""
        return self._traffic.get(ticket_digest(ticket.secret), "bulk")

    async def prepare(self, digests: Sequence[bytes]) -> None:
        """Have what can be known of these tickets here, before they are looked for."""

    async def use_up(self, secrets: Sequence[bytes]) -> None:
        """These tickets were good for one reading."""
        for secret in secrets:
            self.revoke(secret)

    def known(self, digest: bytes) -> tuple[Ticket, Traffic] | None:
        """A ticket that is out, and what for."""
        ticket = self._tickets.get(digest)
        return (ticket, self._traffic[digest]) if ticket is not None else None

    def revoke(self, secret: bytes) -> bool:
        """Take a ticket back; whether it was still good. A transfer that uses it ends at its next chunk."""
        return self._drop(ticket_digest(secret))

    def revoke_readers(self, readers: Collection[bytes]) -> None:
        """Take back every ticket of these public keys."""
        for digest in [digest for digest, ticket in self._tickets.items() if ticket.reader in readers]:
            self._drop(digest)

    def drop(self, digests: Sequence[bytes]) -> None:
        """Take back tickets by the digests of their secrets."""
        for digest in digests:
            self._drop(digest)

    def is_good(self, ticket: Ticket) -> bool:
        """Whether a ticket found by `check` is still out and not expired."""
        return ticket_digest(ticket.secret) in self._tickets and self._clock() < ticket.expires

    def check(self, claim: Claim, *, digest: bytes, nonce: bytes) -> Ticket:
        """The ticket that `claim` proves for the connection on which `nonce` was asked.

        Raises `TicketRefused`, `Expired`, `WrongPeer` (another reader's) or `ReplayedProof`.
        """
        ticket = self.find(claim.secret, claim.reader)
        proof = claim_bytes(self._holder, nonce, ticket_digest(claim.secret))
        try:
            verify_bytes(claim.reader, claim.signature, proof, "bulk claim")
        except BadSignature:
            raise ReplayedProof("the claim was not signed for this connection") from None
        if not hmac.compare_digest(digest, ticket_digest(claim.secret)):
            raise TicketRefused("another ticket was announced")
        return ticket

    def find(self, secret: bytes, reader: bytes) -> Ticket:
        """The good ticket with this secret, shown by a reader who has proved itself on its connection already.

        Raises `TicketRefused`, `WrongPeer` or `Expired`.
        """
        ticket = self._tickets.get(ticket_digest(secret))
        if ticket is None or not hmac.compare_digest(ticket.secret, secret):
            raise TicketRefused("no such ticket here; ask the holder for a new one")
        if not hmac.compare_digest(ticket.reader, reader):
            raise WrongPeer("the ticket was issued to another reader")
        if self._clock() >= ticket.expires:
            self._drop(ticket_digest(ticket.secret))
            raise Expired("the ticket; ask the holder for a new one")
        return ticket

    def _drop(self, digest: bytes) -> bool:
        ticket = self._tickets.pop(digest, None)
        if ticket is None:
            return False
        del self._traffic[digest]
        left = self._per_reader[ticket.reader] - 1
        if left:
            self._per_reader[ticket.reader] = left
        else:
            del self._per_reader[ticket.reader]
        if self._clock() < ticket.expires:
            self.on_revoked(digest)
        return True

    def _drop_expired(self, now: float) -> None:
        for digest in [digest for digest, ticket in self._tickets.items() if ticket.expires <= now]:
            self._drop(digest)


def make_claim(ticket: Ticket, key: Ed25519PrivateKey, nonce: bytes) -> Claim:
    """A reader's proof for the connection on which its holder asked `nonce`."""
    digest = ticket_digest(ticket.secret)
    signature = key.sign(claim_bytes(ticket.holder, nonce, digest))
    return Claim(ticket.secret, public_bytes(key), signature)
