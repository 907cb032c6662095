"""Who may read, proved by whom, until when."""

import pytest

from ioc_node.bulk import tickets as book
from ioc_node.bulk.tickets import TicketBook, make_claim
from ioc_wire.bulk import Claim, Ticket, ticket_digest
from ioc_wire.errors import Busy, Expired, ReplayedProof, TicketRefused, WrongPeer
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB, CAROL

NONCE = b"n" * 32
BLOB = b"b" * 32


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alice(clock: Clock) -> TicketBook:
    return TicketBook(public_bytes(ALICE), clock=clock)


def check(alice: TicketBook, claim: Claim, ticket: Ticket, nonce: bytes = NONCE) -> Ticket:
    return alice.check(claim, digest=ticket_digest(ticket.secret), nonce=nonce)


def test_a_ticket_opens_its_blob_for_its_reader_until_it_expires(alice: TicketBook, clock: Clock) -> None:
    ticket = alice.issue(BLOB, public_bytes(BOB), seconds=60)
    claim = make_claim(ticket, BOB, NONCE)
    assert check(alice, claim, ticket) == ticket
    assert check(alice, make_claim(ticket, BOB, b"m" * 32), ticket, b"m" * 32) == ticket  # a resumed transfer
    assert alice.is_good(ticket)
    clock.now += 60
    assert not alice.is_good(ticket)
    with pytest.raises(Expired):
        check(alice, claim, ticket)
    assert len(alice) == 0


def test_another_reader_cannot_use_it(alice: TicketBook) -> None:
    ticket = alice.issue(BLOB, public_bytes(BOB))
    with pytest.raises(WrongPeer):
        check(alice, make_claim(ticket, CAROL, NONCE), ticket)
    stolen = make_claim(ticket, CAROL, NONCE)
    with pytest.raises(ReplayedProof):
        check(alice, Claim(stolen.secret, public_bytes(BOB), stolen.signature), ticket)


def test_a_recorded_claim_is_useless_on_another_connection(alice: TicketBook) -> None:
    ticket = alice.issue(BLOB, public_bytes(BOB))
    with pytest.raises(ReplayedProof):
        check(alice, make_claim(ticket, BOB, NONCE), ticket, b"m" * 32)


def test_a_guessed_or_revoked_ticket_is_refused(alice: TicketBook) -> None:
    ticket = alice.issue(BLOB, public_bytes(BOB))
    guessed = Claim(bytes(32), public_bytes(BOB), make_claim(ticket, BOB, NONCE).signature)
    with pytest.raises(TicketRefused):
        check(alice, guessed, ticket)
    with pytest.raises(TicketRefused):
        alice.check(make_claim(ticket, BOB, NONCE), digest=bytes(32), nonce=NONCE)
    assert alice.revoke(ticket.secret)
    assert not alice.revoke(ticket.secret)
    with pytest.raises(TicketRefused):
        check(alice, make_claim(ticket, BOB, NONCE), ticket)


def test_all_tickets_of_a_revoked_reader_end(alice: TicketBook) -> None:
    tickets = [alice.issue(BLOB, public_bytes(BOB)) for _ in range(2)]
    other = alice.issue(BLOB, bytes(32))
    alice.revoke_readers({public_bytes(BOB)})
    assert not any(alice.is_good(ticket) for ticket in tickets)
    assert alice.is_good(other)


def test_the_table_is_bounded_and_forgets_the_expired(
    alice: TicketBook, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "TICKETS_PER_READER_MAX", 3)
    for _ in range(3):
        alice.issue(BLOB, public_bytes(BOB), seconds=10)
    with pytest.raises(Busy):
        alice.issue(BLOB, public_bytes(BOB))
    alice.issue(BLOB, public_bytes(CAROL))
    clock.now += 11
    alice.issue(BLOB, public_bytes(BOB))
    assert len(alice) == 2
