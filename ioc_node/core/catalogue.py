"""All providers' catalogues as a core node holds them, and the decisions of synchronising them.

For each provider: a newer head makes it *lagging*, until entries are fetched whose Merkle root is the one that the
head signs. Two verified heads with one `seq` are a fork: the provider is quarantined (nothing of it is offered) until
both heads have expired, and the two heads are passed on as the proof. Two catalogues that hold the same heads have the
same digest, whatever order the heads came in.

Nothing here reads a clock: `unix` is seconds since 1970. Refusals are raised as wire errors and change nothing.
"""

import enum
import hashlib
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ioc_node.core.entry_book import EntryBook, MemoryBook
from ioc_node.core.intake import Intake, Refused
from ioc_node.core.interest import EVERYTHING, Interest, Interests
from ioc_node.core.replica import Applied, HeldStatus, Replica, Seen, head_hash
from ioc_node.core.slots import SLOTS_MAX
from ioc_node.core.steps import run_through
from ioc_node.core.trust import Trust
from ioc_wire import limits
from ioc_wire.authority import Grant
from ioc_wire.errors import (
    BrokenChain,
    Busy,
    Forked,
    Malformed,
    NotFound,
    OverQuota,
    Revoked,
    RoleNotGranted,
    TooLarge,
    WireError,
    WrongRoot,
)
from ioc_wire.gossip import HeadNews, HeadRow
from ioc_wire.records import Head, StatusBatch, check_period, decode_entry
from ioc_wire.signed import Signed, verify

EXPIRE_STEP: Final = 1024
"""Providers that one call of `expire` looks at: a few milliseconds."""
DIGESTS_MAX: Final = 64
"""Digests that are remembered until a head changes: one for each interest that a linked core node has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueBounds:
    """How much a catalogue takes in. An entry costs about 100 bytes of memory here and 1 KiB of its book."""

    providers_max: int = limits.PROVIDERS_MAX
    slots_max: int = SLOTS_MAX
    """Of one provider."""
    entries_max: int = 2_000_000
    """Of all providers together."""


class Standing(enum.Enum):
    """What a head turned out to be."""

    KNOWN = "known"
    """Not newer than what is known, or of a provider in quarantine."""
    LAGGING = "lagging"
    """Newer: entries have to be fetched."""
    UNWANTED = "unwanted"
    """It is not replicated here."""
    HELD = "held"
    """Newer, and it commits to the very entries that are held: nothing to fetch."""
    FORKED = "forked"
    """The second head for one seq: the provider is in quarantine from now on."""


class Catalogue:
    """Single owner: the gossip machine."""

    def __init__(
        self,
        trust: Trust,
        *,
        bounds: CatalogueBounds | None = None,
        book: EntryBook | None = None,
        interest: Interest = EVERYTHING,
    ) -> None:
        self._trust = trust
        self.bounds = bounds or CatalogueBounds()
        self.interests = Interests(interest)
        self._book: EntryBook = book if book is not None else MemoryBook()
        self._claims: defaultdict[str, set[bytes]] = defaultdict(set)
        self._replicas: dict[bytes, Replica] = {}
        self._entries = 0
        self._digests: dict[Interest, bytes] = {}
        self._in_order: list[Replica] | None = None
        """All replicas in order of provider; None where some came or went since."""
        self._expire_from = 0

    # -- reading

    def replica(self, provider: bytes) -> Replica | None:
        return self._replicas.get(provider)

    def providers(self) -> list[bytes]:
        """Every provider of which something is known, in order of key."""
        return [replica.provider for replica in self._ordered()]

    def _ordered(self) -> list[Replica]:
        if self._in_order is None:
            self._in_order = [self._replicas[provider] for provider in sorted(self._replicas)]
        return self._in_order

    @property
    def records(self) -> int:
        """Living identifiers of all providers."""
        return sum(replica.living for replica in self._replicas.values())

    def slots_announced(self, provider: bytes) -> int:
        """How many entries the newest head seen of a provider commits to; 0 where none was."""
        replica = self._replicas.get(provider)
        return replica.announced.head.slots if replica is not None and replica.announced is not None else 0

    def vector(self, interest: Interest = EVERYTHING) -> tuple[HeadRow, ...]:
        """The heads that are held, of providers that may have names within `interest`, in order of provider."""
        rows = (replica.row() for replica in self._within(interest))
        return tuple(row for row in rows if row is not None)

    def digest(self, interest: Interest = EVERYTHING) -> bytes:
        """SHA-256 over provider, seq and head hash of the vector: equal where the same heads are held, 32 bytes."""
        found = self._digests.get(interest)
        if found is None:
            marks = [replica.mark() for replica in self._within(interest)]
            if len(self._digests) >= DIGESTS_MAX:
                self._digests.clear()
            found = self._digests[interest] = hashlib.sha256(b"".join(marks)).digest()
        return found

    def _within(self, interest: Interest) -> list[Replica]:
        """In order of provider."""
        replicas = self._ordered()
        if interest.is_everything:
            return replicas
        return [replica for replica in replicas if interest.overlaps(replica.prefix)]

    def entries(self, provider: bytes, slots: Sequence[int]) -> list[bytes]:
        """The encoded entries in these slots, in this order; those that are not held are left out."""
        return self._book.get_many(provider, slots)

    def record(self, provider: bytes, slot: int) -> Signed | None:
        """The signed record in a slot, if it is alive."""
        replica = self._replicas.get(provider)
        if replica is None or not replica.is_alive(slot):
            return None
        return next((decode_entry(data).record for data in self.entries(provider, [slot])), None)

    def find(self, cid: str) -> Signed | None:
        """The signed record of an identifier; the one of the smallest provider key where several claim it."""
        return next((record for _, record in self._claimed(cid)), None)

    def claiming(self, cid: str) -> Replica | None:
        """The provider that holds an identifier; the one with the smallest key where several claim it."""
        return next((replica for replica, _ in self._claimed(cid)), None)

    def providers_of(self, prefix: str) -> list[bytes]:
        """Who holds identifiers under a provider's prefix, in order of key."""
        return sorted(self._claims.get(prefix, ()))

    def _claimed(self, cid: str) -> Iterator[tuple[Replica, Signed]]:
        """Who holds an identifier, with its record, in order of key: those that hold its prefix are looked at."""
        prefix = cid.removeprefix("ioc:").partition("/")[0]
        for provider in self.providers_of(prefix):
            replica = self._replicas[provider]
            for slot in replica.base.table.candidates(cid):
                for entry in map(decode_entry, self.entries(provider, [slot])):
                    if entry.cid == cid and entry.record is not None:
                        yield replica, entry.record

    # -- heads

    def consider(self, news: HeadNews, *, unix: float) -> Standing:
        """Verify a head and remember it if it is newer. A chain that is left out is the one that came before. Raises
        why it is refused.
        """
        provider = news.head.key
        name = head_hash(news.head)
        replica = self._replicas.get(provider)
        if not news.chain and replica is not None and replica.announced is not None:
            news = HeadNews(news.head, replica.announced.news.chain, news.contact)
        if replica is not None and (replica.fork is not None or self._is_known(replica, news.head, name)):
            return Standing.KNOWN
        head, grant = self._check(news, unix)
        replica = replica or self._new_replica(provider, grant)
        if replica is None:
            return Standing.UNWANTED
        seen = Seen(news, head, name)
        for other in (replica.announced, replica.held):
            if other is not None and other.head.seq == head.seq and other.hash != name:
                self._quarantine(replica, other, seen)
                return Standing.FORKED
        if head.seq <= replica.seq:
            return Standing.KNOWN
        replica.announced, replica.grant = seen, grant
        if replica.accept_same_root():
            self._digests.clear()
            return Standing.HELD
        return Standing.LAGGING

    def consider_fork(self, pair: Sequence[HeadNews], *, unix: float) -> Standing | None:
        """Two heads of one provider that came together. If they have one seq they prove a fork, also where a newer head
        is known by now, or where one of them has expired. None where they prove nothing. Raises why one is refused.
        """
        provider = pair[0].head.key
        replica = self._replicas.get(provider)
        if replica is not None and replica.fork is not None:
            return Standing.KNOWN
        heads = [verify(one.head, Head) for one in pair]
        names = [head_hash(one.head) for one in pair]
        if heads[0].seq != heads[1].seq or names[0] == names[1]:
            return None
        known = replica.announced.news.chain if replica is not None and replica.announced is not None else ()
        chain = pair[0].chain or pair[1].chain or known
        both = [
            Seen(HeadNews(one.head, chain, one.contact), head, name)
            for one, head, name in zip(pair, heads, names, strict=True)
        ]
        first, last = sorted(both, key=lambda seen: (seen.head.expires, seen.hash))
        self._check(first.news, min(unix, first.head.expires))
        _, grant = self._check(last.news, unix)
        replica = replica or self._new_replica(provider, grant)
        if replica is None:
            return Standing.UNWANTED
        self._quarantine(replica, first, last)
        return Standing.FORKED

    def _new_replica(self, provider: bytes, grant: Grant | None) -> Replica | None:
        """None where it is not replicated here. Raises `OverQuota`."""
        replica = Replica(provider, grant)
        if not self.interests.wants(provider, replica.prefix):
            return None
        if len(self._replicas) >= self.bounds.providers_max:
            raise OverQuota(f"{self.bounds.providers_max} providers are known here")
        self._replicas[provider] = replica
        self._in_order = None
        return replica

    def _is_known(self, replica: Replica, signed: Signed, name: bytes) -> bool:
        return any(seen is not None and seen.hash == name for seen in (replica.announced, replica.held))

    def _check(self, news: HeadNews, unix: float) -> tuple[Head, Grant | None]:
        key = news.head.key
        if key in self._trust.revoked:
            raise Revoked("the provider's key")
        head = verify(news.head, Head)
        check_period(head.issued, head.expires, limits.HEAD_SECONDS_MAX, unix, f"head {head.seq}")
        if head.slots > self.bounds.slots_max:
            raise TooLarge(
                f"catalogue of {head.slots} entries, {self.bounds.slots_max} are taken from one provider"
            )
        if news.contact is not None and news.contact.key != key:
            raise Malformed("a head's contact names another key than the head's")
        if not news.chain:
            if self._trust.certified:
                raise BrokenChain("this network is certified and the provider showed no chain")
            return head, None
        _, grant = self._trust.learn(news.chain, unix=unix)
        if grant.subject != key:
            raise BrokenChain("the chain was given to another key than the provider's")
        if "provider" not in grant.roles:
            raise RoleNotGranted(f"provider (the chain grants {', '.join(grant.roles)})")
        return head, grant

    def _quarantine(self, replica: Replica, first: Seen, second: Seen) -> None:
        self._forget_entries(replica)
        replica.fork, replica.announced = (first, second), second

    # -- entries

    def begin(self, provider: bytes, *, stored: bool = False) -> Intake:
        """Begin to take in entries of a provider whose head was seen: all, or those that changed after the head held.

        `stored`: they come from this catalogue's own book. Raises `NotFound` or `Forked`.
        """
        replica = self._replicas.get(provider)
        if replica is None or (replica.announced is None and replica.fork is None):
            raise NotFound("entries of a provider whose head was never seen")
        if replica.fork is not None:
            raise Forked(f"head {replica.seq}")
        return Intake(provider, replica.grant, replica.base, self._book, stored=stored)

    def close(self, intake: Intake, head: Signed, *, unix: float) -> Generator[None, None, Seen]:
        """Verify, in steps, that the entries lead to `head`; returns what `commit` wants.

        Raises `WrongRoot` (fetch that provider whole), `Forked`, `OverQuota`, or what is wrong with head or entry.
        """
        replica = self._replicas.get(intake.provider)
        if replica is None or replica.announced is None or head.key != intake.provider:
            raise NotFound("entries of a provider whose head was never seen")
        announced = replica.announced
        if head_hash(head) != announced.hash:
            self.consider(HeadNews(head, announced.news.chain, announced.news.contact), unix=unix)
        if replica.fork is not None:
            raise Forked(f"head {replica.seq}")
        target = replica.announced
        if head_hash(head) != target.hash:
            target = self._older_target(replica, head, unix)
        if target.head.seq > replica.held_seq:
            self._check_room(replica, target.head)
            yield from intake.close(target.head)
        return target

    def commit(self, intake: Intake, target: Seen) -> Applied:
        """Hold what was closed. Raises `Busy` where another intake was quicker, `OverQuota`, `NotFound`."""
        replica = self._replicas.get(intake.provider)
        if replica is None or replica.fork is not None:
            raise NotFound("the provider was forgotten while its entries came")
        if target.head.seq <= replica.held_seq:
            return Applied()
        if replica.base.version != intake.base.version:
            raise Busy("the catalogue changed while entries came")
        self._check_room(replica, target.head)
        self._entries += target.head.slots - replica.slots
        if intake.entries or target.head.slots < replica.slots:
            self._book.put(intake.provider, intake.entries, target.head.slots, size=intake.size)
        applied = replica.commit(intake, target)
        for prefix in intake.prefixes:
            self._claims[prefix].add(intake.provider)
        replica.accept_same_root()
        self._digests.clear()
        return applied

    def _check_room(self, replica: Replica, head: Head) -> None:
        if self._entries - replica.slots + head.slots > self.bounds.entries_max:
            raise OverQuota(f"{self.bounds.entries_max} entries are held here")

    def apply(self, provider: bytes, head: Signed, entries: Sequence[bytes], *, unix: float) -> Applied:
        """`begin`, `close` and `commit` without a pause."""
        intake = self.begin(provider)
        run_through(intake.add(entries))
        return self.commit(intake, run_through(self.close(intake, head, unix=unix)))

    def _older_target(self, replica: Replica, signed: Signed, unix: float) -> Seen:
        """A head between the one held and the one announced: a step on the way."""
        assert replica.announced is not None
        announced = replica.announced.news
        news = HeadNews(signed, announced.chain, announced.contact)
        head, _ = self._check(news, unix)
        return Seen(news, head, head_hash(signed))

    # -- status

    def apply_status(self, signed: Signed, *, unix: float) -> tuple[int | None, tuple[Refused, ...]]:
        """Take in a status batch if it is newer: for which part (None: it was not), and, in one, the rows that name no
        living slot of it.

        Raises `NotFound` for a provider without a head, and what is wrong with the batch.
        """
        replica = self._replicas.get(signed.key)
        if replica is None or replica.fork is not None:
            raise NotFound("status of a provider whose head was never seen, or that forked")
        if any(held.signed == signed for held in replica.statuses.values()):
            return None, ()
        batch = verify(signed, StatusBatch)
        held = replica.statuses.get(batch.part)
        if held is not None and batch.seq <= held.seq:
            return None, ()
        check_period(batch.issued, batch.expires, limits.STATUS_SECONDS_MAX, unix, f"status {batch.seq}")
        fresh_until = min(unix + batch.expires - batch.issued, batch.expires + limits.CLOCK_SKEW_SECONDS)
        replica.statuses[batch.part] = HeldStatus(signed, batch.seq, batch.expires, fresh_until)
        if replica.lagging:
            return batch.part, ()
        first = batch.part * limits.STATUS_ROWS_MAX
        alive = replica.base.table.alive_from(first, limits.STATUS_ROWS_MAX)
        unknown = [
            row.slot
            for row in batch.rows
            if not (first <= row.slot < first + len(alive) and alive[row.slot - first])
        ]
        if not unknown:
            return batch.part, ()
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        why = NotFound("no living identifier of this part has that slot")
        return batch.part, (Refused(f"status of slot {unknown[0]}{more}", why),)

    # -- time and persistence

    @property
    def expire_calls(self) -> int:
        """How many calls of `expire` look at everybody once."""
        return max(1, -(-len(self._replicas) // EXPIRE_STEP))

    def expire(self, *, unix: float) -> list[bytes]:
        """Forget what has expired or is not wanted any more, of EXPIRE_STEP providers after those of the last call:
        status, held heads with their entries; returns the providers that lost those."""
        gone: list[bytes] = []
        self.interests.expire(unix=unix)
        if self._expire_from >= len(self._replicas):
            self._expire_from = 0
        some = self._ordered()[self._expire_from : self._expire_from + EXPIRE_STEP]
        self._expire_from += EXPIRE_STEP
        for replica in some:
            provider = replica.provider
            for part, status in list(replica.statuses.items()):
                if unix > status.expires + limits.CLOCK_SKEW_SECONDS:
                    del replica.statuses[part]
            wanted = self.interests.wants(provider, replica.prefix)
            if not wanted or replica.ends() + limits.CLOCK_SKEW_SECONDS < unix:
                gone.append(provider)
                self.drop(provider)
            elif replica.held and replica.held.head.expires + limits.CLOCK_SKEW_SECONDS < unix:
                self._forget_entries(replica)
                gone.append(provider)
        return gone

    def restore(self, news: Sequence[HeadNews], entries: Sequence[bytes], *, unix: float) -> Applied:
        """Take up one provider's stored state, verified like everything from the network: one head with its entries,
        or the two heads of a fork. Raises why it cannot be believed any more; nothing of it stays then.
        """
        if not news:
            raise WrongRoot("no head is stored")
        provider = news[0].head.key
        try:
            if len(news) > 1:
                self.consider_fork(news, unix=unix)
                return Applied()
            self.consider(news[0], unix=unix)
            return self.apply(provider, news[0].head, entries, unix=unix)
        except WireError:
            self.drop(provider)
            raise

    def drop(self, provider: bytes) -> None:
        """Forget all about a provider."""
        replica = self._replicas.pop(provider, None)
        self._in_order = None
        self._digests.clear()
        if replica is not None:
            self._forget_entries(replica)

    def drop_revoked(self) -> list[bytes]:
        """Forget providers whose key or chain `Trust` was told is revoked; returns them."""
        gone: list[bytes] = []
        for provider, replica in list(self._replicas.items()):
            chain = replica.announced.news.chain if replica.announced is not None else ()
            if self._trust.has_ended(provider, chain):
                self.drop(provider)
                gone.append(provider)
        return gone

    def _forget_entries(self, replica: Replica) -> None:
        self._entries -= replica.slots
        self._digests.clear()
        for prefix in replica.prefixes:
            self._claims[prefix].discard(replica.provider)
            if not self._claims[prefix]:
                del self._claims[prefix]
        self._book.drop(replica.provider)
        replica.clear()
