"""A catalogue filled in memory, as gossip would have left it, and a query engine over it."""

from typing import Any

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.core.trust import Trust
from ioc_node.market.extents import EXTENT_ROWS
from ioc_node.market.query import QueryEngine
from ioc_wire.cid import self_certified_prefix
from ioc_wire.gossip import HeadNews
from ioc_wire.records import Place, StatusRow
from ioc_wire.signed import public_bytes
from tests.runtime.gossip_cases import host_record, key_of

UNIX = 1_800_000_000


class Provider:
    """One provider of an open network: its own catalogue, and where it was published to."""

    def __init__(self, name: str) -> None:
        self.key = key_of(name)
        self.public = public_bytes(self.key)
        self.prefix = self_certified_prefix(self.public)
        self.own = OwnCatalogue(self.key)
        self.rows: dict[int, StatusRow] = {}
        self.version = 0

    def cid(self, path: str) -> str:
        return f"ioc:{self.prefix}/{path}"

    def put(
        self, path: str, *, free_milli: int = 8000, queued: int = 0, free: Any = (), **fields: Any
    ) -> str:
        cid = self.cid(path)
        self.version += 1
        record = host_record(
            self.key, cid, version=self.version, now=UNIX, **({"place": place(path)} | fields)
        )
        slot = self.own.put(record, unix=UNIX)
        self.rows[slot] = StatusRow(slot, free_milli, 16384, free, queued)
        return cid

    def publish(self, *catalogues: Catalogue, unix: float = UNIX, status: bool = True) -> tuple[int, ...]:
        """Commit and bring head, entries and status to the catalogues; returns the slots that changed."""
        commit = self.own.commit(unix=unix)
        assert self.own.head is not None
        for catalogue in catalogues:
            replica = catalogue.replica(self.public)
            after = replica.held_seq if replica is not None else 0
            catalogue.consider(HeadNews(self.own.head, (), None), unix=unix)
            catalogue.apply(self.public, self.own.head, self.own.entries_after(after), unix=unix)
            if status:
                for batch in self.own.sign_status(self.rows.values(), unix=unix):
                    catalogue.apply_status(batch, unix=unix)
        return commit.slots if commit is not None else ()


def place(path: str) -> Place:
    return Place("cn", path.split("/")[1], "az1")


def make_catalogue() -> Catalogue:
    return Catalogue(Trust(network_id=bytes(32), admission="open", roots=()))


def make_engine(*providers: Provider, extent_rows: int = EXTENT_ROWS) -> QueryEngine:
    catalogue = make_catalogue()
    for provider in providers:
        provider.publish(catalogue)
    return QueryEngine(catalogue, extent_rows=extent_rows)
