"""Which core nodes are alive: SWIM with Lifeguard's suspicion, and three precautions of our own.

Sources: SWIM (Das, Gupta, Motivala, DSN 2002); Lifeguard (Dadgar, Phillips, Currey, arXiv 1707.00788). Ours: nobody
can declare a member dead for others, each node probes it once itself before it believes that; a node that was stalled
blames nobody for the time; dead members are probed now and then, so that islands find each other.

A state machine without input or output: `handle` takes what happened and returns what to do.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core import membership_events as ev
from ioc_node.core.broadcasts import Broadcasts, Statement
from ioc_node.core.chance import Chance
from ioc_node.core.membership_events import Member, Settings, State
from ioc_node.core.membership_news import check_accused, check_alive
from ioc_node.core.membership_probes import Pending, Probes
from ioc_node.core.rates import RateTable
from ioc_node.core.suspicion import Suspicion
from ioc_node.core.trust import Trust
from ioc_wire import limits
from ioc_wire import membership as wire
from ioc_wire.codec import Message
from ioc_wire.errors import OverQuota, WireError
from ioc_wire.market import Contact
from ioc_wire.signed import Signed, public_bytes, sign

URGENT_PER_PERIOD: Final = 8
"""Probes besides the one of each period: of the suspected, and of whom others hold alive or dead."""
INTRODUCED_MAX: Final = 1024
INTRODUCTIONS_PER_PERIOD: Final = 4
INTRODUCTION_PERIODS_MAX: Final = 60
"""A contact that does not answer is tried again after 2, 4, 8 ... periods, at most so many."""
FORGET_SECONDS: Final = 86400.0
"""Dead members are forgotten after so long, unless they return before."""
TOLD_MAX: Final = 64
"""Statements in one answer to a comparison."""
LEAVE_TOLD: Final = 8
"""Members that are told goodbye; they tell the others."""
STATEMENTS_PER_SECOND: Final = 100.0
STATEMENTS_BURST: Final = 2048.0
"""New statements of one peer that are looked at: each may cost a signature check."""
ASKED_PER_SECOND: Final = 8.0
ASKED_BURST: Final = 64.0
"""Comparisons and probes on request, for one peer."""

_GONE: Final = (State.DEAD, State.LEFT)


@dataclass(slots=True)
class _Known:
    contact: Contact
    incarnation: int
    news: wire.AliveNews
    state: State
    since: float
    suspicion: Suspicion | None = None


@dataclass(slots=True)
class _Introduced:
    contact: Contact
    next_at: float
    tries: int = 0


@dataclass(slots=True)
class _Turn:
    """One call of `handle`."""

    now: float
    effects: list[ev.Effect] = field(default_factory=list)
    budget: int = URGENT_PER_PERIOD


class Membership:
    """One core node's view. `contact` is where it takes links; `chain` makes it a core node. `now` is seconds on the
    caller's clock, `unix_offset` what makes it seconds since 1970."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        contact: Contact,
        chain: tuple[Signed, ...],
        trust: Trust,
        chance: Chance,
        *,
        unix_offset: float,
        settings: Settings = ev.OURS,
    ) -> None:
        self.key = public_bytes(key)
        self._private, self._contact, self._chain = key, contact, chain
        self._trust, self._chance, self._settings = trust, chance, settings
        self._unix_offset = unix_offset
        self._probes = Probes(settings, chance)
        self._broadcasts = Broadcasts(settings.retransmits)
        self._members: dict[bytes, _Known] = {}
        self._living: dict[bytes, None] = {}
        self._suspected: dict[bytes, None] = {}
        self._urgent: dict[bytes, None] = {}
        self._introduced: dict[bytes, _Introduced] = {}
        self._statements = RateTable(STATEMENTS_PER_SECOND, STATEMENTS_BURST)
        self._asked = RateTable(ASKED_PER_SECOND, ASKED_BURST)
        self._period_at: float | None = None
        self._due = float("inf")
        self._periods = chance.randrange(max(settings.compare_periods, 1))
        self._incarnation = 0
        self._own = wire.AliveNews(sign(key, wire.Alive(contact, 0)), chain)
        self._left = False

    # -- what others read

    @property
    def members(self) -> tuple[Member, ...]:
        """All but this node, those that are gone too."""
        return tuple(
            Member(one.contact, one.state, one.incarnation, one.since) for one in self._members.values()
        )

    @property
    def living(self) -> int:
        """Members that are not gone, this node not counted."""
        return len(self._living)

    @property
    def health(self) -> int:
        return self._probes.health

    @property
    def incarnation(self) -> int:
        return self._incarnation

    def state(self, key: bytes) -> State | None:
        known = self._members.get(key)
        return None if known is None else known.state

    def digest(self) -> bytes:
        """As `CompareMembers` says."""
        rows = [(key, one.incarnation, one.state in _GONE) for key, one in self._members.items()]
        rows.append((self.key, self._incarnation, self._left))
        packed = b"".join(key + struct.pack(">QB", number, gone) for key, number, gone in sorted(rows))
        return hashlib.sha256(packed).digest()

    def deadline(self) -> float:
        """When `Tick` is due."""
        return self._due

    # -- events

    def handle(self, event: ev.Event, *, now: float) -> list[ev.Effect]:
        """What follows from `event`, in order."""
        turn = _Turn(now)
        if self._period_at is None:
            self._begin(turn)
        match event:
            case ev.Received(peer, message) if peer != self.key and not self._left:
                self._receive(turn, peer, message)
            case ev.LinkUp(peer, contact):
                if contact is not None and peer not in self._living:
                    self._introduce(turn, contact)
            case ev.LinkDown(peer):
                if peer in self._living:
                    self._urgent[peer] = None
            case ev.Introduced(contacts):
                for contact in contacts:
                    self._introduce(turn, contact)
            case ev.KeyRevoked():
                self._drop_revoked(turn)
            case ev.Leave():
                self._leave(turn)
            case _:
                pass
        if not self._left:
            self._pass_time(turn)
        return turn.effects

    def _begin(self, turn: _Turn) -> None:
        self._period_at = turn.now + self._chance.random() * self._settings.period_seconds
        self._due = self._period_at
        self._raise_incarnation(turn.now)

    def _raise_incarnation(self, now: float, *, left: bool = False) -> None:
        """Begins with the time: a restarted node never says less than it said before."""
        self._incarnation = max(self._incarnation + 1, int(now + self._unix_offset))
        alive = wire.Alive(self._contact, self._incarnation, left)
        self._own = wire.AliveNews(sign(self._private, alive), self._chain)
        self._broadcasts.add_alive(self.key, self._own)

    def _introduce(self, turn: _Turn, contact: Contact) -> None:
        known = contact.key in self._living or contact.key in self._introduced
        if contact.key != self.key and not known and len(self._introduced) < INTRODUCED_MAX:
            self._introduced[contact.key] = _Introduced(contact, turn.now)

    def _drop_revoked(self, turn: _Turn) -> None:
        for key in [key for key, one in self._members.items() if self._trust.has_ended(key, one.news.chain)]:
            self._forget(key)
            turn.effects.append(ev.MemberWent(key))

    def _forget(self, key: bytes) -> None:
        del self._members[key]
        for table in (self._living, self._suspected, self._urgent):
            table.pop(key, None)

    def _leave(self, turn: _Turn) -> None:
        if self._left:
            return
        self._raise_incarnation(turn.now, left=True)
        told = self._chance.sample(list(self._living), min(LEAVE_TOLD, len(self._living)))
        for key in told:
            self._send(turn, self._members[key].contact, wire.MembersTold(wire.MemberNews((self._own,))))
        self._left = True
        self._due = float("inf")

    # -- time

    def _pass_time(self, turn: _Turn) -> None:
        now, settings = turn.now, self._settings
        late = now - self._due
        if settings.own_stalls and late > settings.period_seconds:
            self._excuse(late)
        for seq, pending in self._probes.unanswered(now):
            self._ask_others(turn, seq, pending)
        for pending in self._probes.failed(now):
            self._miss(turn, pending)
        for key in list(self._suspected):
            self._judge(turn, key)
        assert self._period_at is not None
        if now >= self._period_at:
            self._period_at = now + settings.period_seconds * self._probes.slowness
            self._begin_period(turn)
        ends = [self._suspicion_ends(key) for key in self._suspected]
        self._due = max(min([self._period_at, self._probes.deadline(), *ends]), now)

    def _suspicion_ends(self, key: bytes) -> float:
        suspicion = self._members[key].suspicion
        assert suspicion is not None
        if self._settings.own_probe and not suspicion.probed:
            return float("inf")  # the probe's end comes first
        return suspicion.ends(len(self._living) + 1, self._settings)

    def _excuse(self, late: float) -> None:
        """This node was stalled: what it waited for gets another chance."""
        self._probes.feel(1)
        for key in self._probes.drop_all():
            self._urgent[key] = None
        for key in self._suspected:
            suspicion = self._members[key].suspicion
            if suspicion is not None:
                suspicion.started += late
                suspicion.probed = False
                self._urgent[key] = None

    def _begin_period(self, turn: _Turn) -> None:
        self._periods += 1
        urgent = [key for key in self._urgent if key in self._members][:URGENT_PER_PERIOD]
        for key in urgent:
            del self._urgent[key]
            self._probe(turn, key)
        target = self._probes.next_target(self._living)
        if target is not None:
            self._probe(turn, target)
        if self._periods % self._settings.dead_periods == 0:
            self._probe_dead(turn)
        if self._periods % self._settings.compare_periods == 0 and self._living:
            (key,) = self._chance.sample(list(self._living), 1)
            self._send(turn, self._members[key].contact, wire.CompareMembers(self.digest()))
        self._try_introduced(turn)

    def _probe_dead(self, turn: _Turn) -> None:
        for key in [
            key
            for key, one in self._members.items()
            if one.state in _GONE and turn.now > one.since + FORGET_SECONDS
        ]:
            self._forget(key)
        dead = [key for key, one in self._members.items() if one.state is State.DEAD]
        if dead:
            self._probe(turn, self._chance.sample(dead, 1)[0])

    def _try_introduced(self, turn: _Turn) -> None:
        due = [one for one in self._introduced.values() if one.next_at <= turn.now]
        for one in due[:INTRODUCTIONS_PER_PERIOD]:
            one.tries += 1
            periods = min(2**one.tries, INTRODUCTION_PERIODS_MAX)
            one.next_at = turn.now + periods * self._settings.period_seconds
            self._send(turn, one.contact, wire.Probe(0, self._news_for(one.contact.key)))

    # -- probes

    def _probe(self, turn: _Turn, key: bytes) -> None:
        if not self._probes.is_probing(key):
            seq = self._probes.begin(key, turn.now)
            self._send(turn, self._members[key].contact, wire.Probe(seq, self._news_for(key)))

    def _ask_others(self, turn: _Turn, seq: int, pending: Pending) -> None:
        known = self._members.get(pending.target)
        if known is None or known.state in _GONE:
            return
        others = [key for key in self._living if key != pending.target]
        for key in self._chance.sample(others, min(self._settings.indirect, len(others))):
            pending.asked[key] = False
            contact = self._members[key].contact
            self._send(turn, contact, wire.AskProbe(seq, pending.target, self._news_for(key)))

    def _miss(self, turn: _Turn, pending: Pending) -> None:
        if pending.relay is not None:
            asker, seq = pending.relay
            if self._settings.lifeguard:
                self._answer(turn, asker, seq, reached=False)
            return
        known = self._members.get(pending.target)
        if known is None or known.state in _GONE:
            return
        if known.suspicion is None or known.suspicion.answered:
            known.suspicion = Suspicion(turn.now)
        known.suspicion.probed = True
        accusers = known.suspicion.accusers
        if self.key not in accusers and len(accusers) <= self._settings.confirmations:
            accused = sign(self._private, wire.Accused(pending.target, known.incarnation))
            accusers[self.key] = accused
            self._broadcasts.add_accused(pending.target, accused)
        self._set_state(turn, pending.target, State.SUSPECT)

    def _judge(self, turn: _Turn, key: bytes) -> None:
        known = self._members[key]
        suspicion = known.suspicion
        assert suspicion is not None
        if turn.now < suspicion.ends(len(self._living) + 1, self._settings):
            return
        if self._settings.own_probe and not suspicion.probed:
            self._urgent[key] = None
            return
        self._set_state(turn, key, State.DEAD)

    def _set_state(self, turn: _Turn, key: bytes, state: State) -> None:
        known = self._members[key]
        if known.state is state:
            return
        was_gone = known.state in _GONE
        known.state, known.since = state, turn.now
        self._suspected.pop(key, None)
        if state is State.SUSPECT:
            self._suspected[key] = None
            turn.effects.append(ev.MemberSuspected(key))
        if state in _GONE:
            self._living.pop(key, None)
            turn.effects.append(ev.MemberWent(key))
        else:
            self._living[key] = None
            if was_gone:
                turn.effects.append(ev.MemberCame(known.contact))

    # -- messages

    def _send(self, turn: _Turn, contact: Contact, message: Message) -> None:
        turn.effects.append(ev.Send(contact, message))

    def _news_for(self, key: bytes, *, greet: bool = False) -> wire.MemberNews:
        """What rides along. Whom this node does not hold alive is told why (Lifeguard's buddy), and who is asking."""
        first: list[Statement] = []
        known = self._members.get(key)
        if greet or known is None or known.state is not State.ALIVE:
            first.append(self._own)
        if known is not None and known.state in (State.SUSPECT, State.DEAD) and self._settings.lifeguard:
            if known.state is State.DEAD:
                first.append(sign(self._private, wire.Accused(key, known.incarnation)))
            elif known.suspicion is not None and known.suspicion.accusers:
                first.append(next(iter(known.suspicion.accusers.values())))
        return self._broadcasts.take(len(self._living) + 1, tuple(first))

    def _answer(self, turn: _Turn, peer: bytes, seq: int, *, reached: bool, greet: bool = False) -> None:
        known = self._members.get(peer)
        if known is not None:
            news = self._news_for(peer, greet=greet)
            self._send(turn, known.contact, wire.ProbeAnswered(seq, reached, news))

    def _receive(self, turn: _Turn, peer: bytes, message: Message) -> None:
        match message:
            case wire.Probe(seq, news):
                self._take(turn, peer, news)
                greet = any(each.statement.key == peer for each in news.alive)
                self._answer(turn, peer, seq, reached=True, greet=greet)
            case wire.AskProbe(seq, target, news):
                self._take(turn, peer, news)
                self._probe_for(turn, peer, seq, target)
            case wire.ProbeAnswered(seq, reached, news):
                self._take(turn, peer, news)
                pending = self._probes.answer(peer, seq, reached=reached)
                if pending is not None:
                    self._reach(turn, peer, pending)
            case wire.CompareMembers(digest):
                if digest != self.digest() and self._asked.take(peer, turn.now):
                    self._reply(turn, peer, wire.MembersVector(self._rows()))
            case wire.MembersVector(rows):
                if self._asked.take(peer, turn.now):
                    self._compare(turn, peer, rows)
            case wire.MembersTold(news, wanted):
                self._take(turn, peer, news, doubt=True)
                if wanted and self._asked.take(peer, turn.now):
                    self._tell(turn, peer, wanted, ())
            case _:
                pass

    def _reply(self, turn: _Turn, peer: bytes, message: Message) -> None:
        known = self._members.get(peer)
        if known is not None:
            self._send(turn, known.contact, message)

    def _probe_for(self, turn: _Turn, peer: bytes, seq: int, target: bytes) -> None:
        known = self._members.get(target)
        if known is None or not self._asked.take(peer, turn.now):
            return
        own = self._probes.begin_for(peer, seq, target, turn.now)
        if own is not None:
            self._send(turn, known.contact, wire.Probe(own, self._news_for(target)))

    def _reach(self, turn: _Turn, peer: bytes, pending: Pending) -> None:
        if pending.relay is not None:
            self._answer(turn, pending.relay[0], pending.relay[1], reached=True)
            return
        known = self._members.get(pending.target)
        if known is None or not self._settings.own_probe or peer != pending.target:
            return
        if known.state is State.SUSPECT and known.suspicion is not None:
            known.suspicion.answered = True
            self._set_state(turn, pending.target, State.ALIVE)

    # -- statements

    def _take(self, turn: _Turn, peer: bytes, news: wire.MemberNews, *, doubt: bool = False) -> None:
        """`doubt`: the peer knows that this node may hold dead whom it tells of."""
        for each in news.alive:
            self._believe(turn, peer, "alive", each, doubt=doubt)
        for accused in news.accused:
            self._believe(turn, peer, "accused", accused)

    def _believe(
        self, turn: _Turn, peer: bytes, what: str, statement: Statement, *, doubt: bool = False
    ) -> None:
        try:
            if isinstance(statement, Signed):
                self._take_accused(turn, peer, statement)
            else:
                self._take_alive(turn, peer, statement, doubt=doubt)
        except WireError as error:
            turn.effects.append(ev.Refused(peer, what, error))

    def _charge(self, turn: _Turn, peer: bytes) -> None:
        if not self._statements.take(peer, turn.now):
            raise OverQuota("statements about members")

    def _take_alive(self, turn: _Turn, peer: bytes, news: wire.AliveNews, *, doubt: bool) -> None:
        key = news.statement.key
        known = self._members.get(key)
        if key == self.key:
            return
        if known is not None and known.news.statement == news.statement:
            if doubt and known.state is State.DEAD and turn.budget > 0:
                turn.budget -= 1
                self._urgent[key] = None
            return
        self._charge(turn, peer)
        alive = check_alive(news, self._trust, unix=turn.now + self._unix_offset)
        if known is not None and alive.incarnation <= known.incarnation:
            return
        if known is None:
            if alive.left:
                return  # who was never here needs no goodbye
            self._make_room()
            state = State.LEFT  # until it is entered below, so that it comes
            known = _Known(alive.contact, alive.incarnation, news, state, turn.now)
            self._members[key] = known
        moved = known.contact != alive.contact
        known.contact, known.incarnation, known.news = alive.contact, alive.incarnation, news
        known.suspicion = None
        self._introduced.pop(key, None)
        self._broadcasts.add_alive(key, news)
        if alive.left:
            self._set_state(turn, key, State.LEFT)
            return
        came = known.state in _GONE
        self._set_state(turn, key, State.ALIVE)
        if moved and not came:
            turn.effects.append(ev.MemberCame(known.contact))
        if came and key == peer:
            self._send(turn, known.contact, wire.CompareMembers(self.digest()))

    def _make_room(self) -> None:
        if len(self._members) < limits.MEMBERS_MAX - 1:  # a vector names this node too
            return
        gone = [key for key, one in self._members.items() if one.state in _GONE]
        if not gone:
            raise OverQuota("members")
        self._forget(min(gone, key=lambda key: self._members[key].since))

    def _take_accused(self, turn: _Turn, peer: bytes, signed: Signed) -> None:
        if signed.key == self.key:
            return
        accuser = self._members.get(signed.key)
        if signed.key != peer and (accuser is None or accuser.state in _GONE):
            return
        self._charge(turn, peer)
        accused = check_accused(signed, self._trust)
        if accused.key == self.key:
            if accused.incarnation == self._incarnation:
                self._raise_incarnation(turn.now)
                self._probes.feel(1)
            return
        known = self._members.get(accused.key)
        if known is None or known.state in _GONE or accused.incarnation != known.incarnation:
            return
        if accuser is None or accuser.state in _GONE:
            return
        self._add_accuser(turn, known, signed)

    def _add_accuser(self, turn: _Turn, known: _Known, signed: Signed) -> None:
        key = known.contact.key
        if known.suspicion is None:
            known.suspicion = Suspicion(turn.now)
            self._set_state(turn, key, State.SUSPECT)
        suspicion = known.suspicion
        if signed.key in suspicion.accusers or len(suspicion.accusers) > self._settings.confirmations:
            return
        suspicion.accusers[signed.key] = signed
        self._broadcasts.add_accused(key, signed)
        if self._settings.own_probe and not suspicion.probed:
            self._urgent[key] = None

    # -- comparison

    def _rows(self) -> tuple[wire.MemberRow, ...]:
        rows = [
            wire.MemberRow(key, one.incarnation, one.state in _GONE) for key, one in self._members.items()
        ]
        return (*rows, wire.MemberRow(self.key, self._incarnation, self._left))

    def _compare(self, turn: _Turn, peer: bytes, rows: Iterable[wire.MemberRow]) -> None:
        theirs = {row.key: row for row in rows}
        wanted: list[bytes] = []
        for row in theirs.values():
            known = self._members.get(row.key)
            if row.key == self.key:
                continue
            if known is None:
                if not row.gone:
                    wanted.append(row.key)
            elif row.incarnation > known.incarnation:
                wanted.append(row.key)
            elif known.state is State.DEAD and not row.gone and len(self._urgent) < 4 * URGENT_PER_PERIOD:
                self._urgent[row.key] = None
        told = [key for key, one in self._members.items() if self._is_news(one, theirs.get(key))]
        own = theirs.get(self.key)
        if own is None or own.gone or own.incarnation < self._incarnation:
            told.append(self.key)
        if told or wanted:
            self._tell(turn, peer, told, tuple(wanted[:TOLD_MAX]))

    @staticmethod
    def _is_news(one: _Known, row: wire.MemberRow | None) -> bool:
        """Whether who has `row` of a member should be told what this node has."""
        if row is None:
            return one.state not in _GONE
        if row.incarnation != one.incarnation:
            return row.incarnation < one.incarnation
        return row.gone and one.state is State.ALIVE

    def _tell(self, turn: _Turn, peer: bytes, keys: Iterable[bytes], wanted: tuple[bytes, ...]) -> None:
        chosen = [key for key in keys if key == self.key or key in self._members][: limits.NEWS_MAX]
        for start in range(0, max(len(chosen), 1), TOLD_MAX):
            news = tuple(
                self._own if key == self.key else self._members[key].news
                for key in chosen[start : start + TOLD_MAX]
            )
            self._reply(turn, peer, wire.MembersTold(wire.MemberNews(news), wanted if start == 0 else ()))
