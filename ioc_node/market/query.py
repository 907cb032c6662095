"""Demand queries on a core node: which records with status could serve a demand, ranked, and why the others could not.

The answer depends on the catalogue and the time alone: two core nodes that hold the same heads and status answer the
same demand with the same bytes. Only hosts (records of type `node`) with an address are offered; aggregates are not.

Nothing here takes long at once: a query and the pieces of a patch are generators of steps (`ioc_node.core.steps`). Of
these only one goes on at a time; between their steps `patch_status` may be called, or a step of `patching_status`.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from typing import Final

import structlog

from ioc_node.api import OverviewRow
from ioc_node.core.catalogue import Catalogue
from ioc_node.core.replica import HeldStatus, Replica
from ioc_node.core.steps import run_through
from ioc_node.errors import UsageError
from ioc_node.market.columns import Table
from ioc_node.market.extents import EXTENT_ROWS
from ioc_node.market.offering import Candidate, Offering, contact_of, offer_of
from ioc_node.market.plans import Plans
from ioc_node.market.policies import Context, Policy, Ranking, find_policies, load_policy
from ioc_node.market.scan import Scan
from ioc_node.market.status_columns import reading
from ioc_node.market.summing import summing
from ioc_wire import limits
from ioc_wire.codec import decode
from ioc_wire.errors import NotFound, WireError
from ioc_wire.market import Contact, Cursor, Demand, Offer, OffersFound, Removal
from ioc_wire.records import ResourceRecord, decode_entry

log = structlog.get_logger()

CANDIDATES_MIN: Final = 64
"""So many rows at least, the cheapest, are given to the policy."""
STEP_RECORDS: Final = 64
PIECE_SLOTS: Final = 128
"""What is swapped in one step: each may be of a kind of its own."""
TURN_SLOTS: Final = 64
"""The piece of a patch for which a query waits: some 2 ms."""
REMOVALS_MAX: Final = 32
UNSETTLED: Final = bytes(32)
"""The digest of an answer from a table that is behind its catalogue."""


class QueryEngine:
    """Answers demands from columns over `catalogue`. Tell it of every change with `patch` (or `pieces`) and
    `patch_status`.
    """

    def __init__(self, catalogue: Catalogue, *, extent_rows: int = EXTENT_ROWS) -> None:
        self._catalogue = catalogue
        self._table = Table(extent_rows)
        self._plans = Plans(self._table)
        self._offering = Offering(catalogue, self._table)
        find_policies()
        for provider in catalogue.providers():
            self.patch(provider, None)

    @property
    def rows(self) -> int:
        """Hosts that could be offered if their status allows it."""
        return self._table.living

    # -- following the catalogue

    def patch(self, provider: bytes, slots: Sequence[int] | None) -> None:
        """Identifiers of `provider` in `slots` came, changed or went (None: any of them)."""
        for piece in self.pieces(provider, slots):
            run_through(piece)

    def pieces(
        self, provider: bytes, slots: Sequence[int] | None, *, in_turns: Callable[[], bool] = lambda: False
    ) -> Iterator[Generator[None, None, None]]:
        """`patch` in pieces, each in steps; between pieces a query may go first. One patch at a time. Pieces are small
        while others wait for their turns: for each piece, a provider's rows are gone through once.
        """
        if slots is None:
            replica = self._catalogue.replica(provider)
            slots = range(max(self._table.slots_of(provider), replica.slots if replica is not None else 0))
        left = iter(slots)
        while piece := list(islice(left, TURN_SLOTS if in_turns() else PIECE_SLOTS)):
            yield self._patching(provider, piece)

    def _patching(self, provider: bytes, slots: Sequence[int]) -> Generator[None, None, None]:
        staged: list[int] = []
        swapped = False
        try:
            replica = self._catalogue.replica(provider)
            alive = [slot for slot in slots if replica.is_alive(slot)] if replica is not None else []
            for start in range(0, len(alive), STEP_RECORDS):
                assert replica is not None
                staged += self._table.stage(
                    provider, self._hosts(replica, alive[start : start + STEP_RECORDS])
                )
                yield
            done = self._table.swap(provider, slots, staged)
            swapped = True
            self._offering.forget(done.gone)
            for part in done.new_parts:
                yield from self.patching_status(provider, part)
        finally:
            if not swapped:
                self._table.unstage(staged)

    def patch_status(self, provider: bytes, part: int) -> None:
        """`provider` has new status for one part of its slots."""
        run_through(self.patching_status(provider, part))

    def patching_status(self, provider: bytes, part: int) -> Generator[None, None, None]:
        """`patch_status` in steps, between which anything else may go on. Nothing of it is to be seen before the last
        one; where newer status comes meanwhile, that has to be told, and this is left out.
        """
        status = self._status(provider, part)
        told = (yield from reading(status)) if status is not None else None
        if self._status(provider, part) is status:
            self._table.set_status(provider, part, told)

    def _status(self, provider: bytes, part: int) -> HeldStatus | None:
        replica = self._catalogue.replica(provider)
        return replica.statuses.get(part) if replica is not None else None

    def _hosts(self, replica: Replica, slots: Sequence[int]) -> list[tuple[int, ResourceRecord, bool]]:
        found = []
        for data in self._catalogue.entries(replica.provider, slots):
            entry = decode_entry(data)
            if entry.record is None:
                continue
            try:
                record = decode(entry.record.payload, ResourceRecord)
            except WireError as error:
                log.info("record_unreadable", slot=entry.slot, error=str(error))
                continue
            if record.type == "node":
                found.append((entry.slot, record, contact_of(replica, record) is not None))
        return found

    def summing(self, *, unix: float) -> Generator[None, None, tuple[OverviewRow, ...]]:
        """What is held, per node prefix, in steps."""
        return summing(self._catalogue, self._table, unix=unix)

    # -- answering

    def find(self, demand: Demand, policy: str, limit: int, *, unix: float) -> OffersFound:
        """`finding` without a pause."""
        return run_through(self.finding(demand, policy, limit, unix=unix))

    def finding(
        self,
        demand: Demand,
        policy: str,
        limit: int,
        *,
        unix: float,
        settled: bool = True,
        explain: bool = True,
        after: Cursor | None = None,
        providers: Sequence[bytes] | None = None,
        nearest_first: bool = False,
    ) -> Generator[None, None, OffersFound]:
        """Ranked offers, at most `limit`, and per condition how many rows it removed; the nearest misses only where
        there is no offer, or to `explain`. Of a page, the hosts that come `after` the one before. Of `providers` alone
        where some are named, the hosts of the first of them before cheaper ones if `nearest_first`. The digest is
        UNSETTLED where the table is not `settled`. Raises `NotFound` for a policy that is not installed here.
        """
        try:
            rank = load_policy(policy)
        except UsageError as error:
            raise NotFound(str(error)) from None
        limit = min(max(limit, demand.gang), limits.OFFERS_MAX)
        whole = after is not None or nearest_first  # what comes next is not the policy's to choose
        scan = Scan(
            demand,
            self._table,
            self._plans,
            unix=unix,
            count=limit if whole else max(CANDIDATES_MIN, 2 * limit),
            after=after,
            providers=providers,
            nearest_first=nearest_first,
        )
        yield from scan.run()
        short = scan.matching < demand.gang
        ranked: list[Offer] = []
        if not short:
            rows, estimates = scan.cheapest()
            enough = limit if isinstance(rank, Ranking) and rank.by_price else len(rows)
            candidates = yield from self._offering.candidates(rows, estimates, enough)
            ranked = self._ranked(candidates, rank, Context(demand, limit=limit))[:limit]
        if explain or not ranked:
            yield from scan.explain()
        removals = scan.removals(self._name_of)
        if short and scan.matching:
            missed = f"{scan.matching} hosts can serve it, {demand.gang} are wanted together"
            removals = (*removals, Removal("gang", scan.matching, missed))
        digest = self._catalogue.digest() if settled else UNSETTLED
        return OffersFound(
            tuple(ranked),
            scan.considered,
            removals[-REMOVALS_MAX:],
            digest,
            scan.matching,
            scan.cursor if after is not None else None,
        )

    def _ranked(self, candidates: Sequence[Candidate], policy: Policy, context: Context) -> list[Offer]:
        places = self._offering.places(candidates, context.demand)
        if isinstance(policy, Ranking):
            ranked = policy.rank(places, context)
            return [offer_of(candidates[at], places[at], reasons) for at, reasons in ranked]
        return policy(list(map(offer_of, candidates, places)), context)

    def serving(
        self, demand: Demand, *, unix: float, providers: Sequence[bytes] | None = None
    ) -> Generator[None, None, dict[bytes, Contact]]:
        """The providers with hosts that can serve a demand, of `providers` where some are named, and where each takes
        links. In steps."""
        scan = Scan(demand, self._table, self._plans, unix=unix, count=0, providers=providers)
        yield from scan.run()
        return (yield from self._offering.contacts(scan.examples()))

    def _name_of(self, row: int) -> str:
        provider, slot = self._table.owner_of(row)
        return next((decode_entry(data).cid for data in self._catalogue.entries(provider, [slot])), "a host")
