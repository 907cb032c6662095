"""The population of `bench.catalogue` (the same bytes again, good signatures and roots), its rows and its SQL."""

import argparse
from collections import Counter
from pathlib import Path

import pytest

from bench.catalogue import FIGURES, remarks_of, rows_of, systems_of
from bench.catalogue_files import Made, change_sets, opened, write
from bench.catalogue_load import matching
from bench.catalogue_measure import Load, Measurements
from bench.catalogue_queries import DEMANDS, hosts_file, sql_of
from bench.catalogue_records import HOSTS, Population
from bench.peers.catalogue_sql import Sqlite
from ioc_node.core.catalogue import Catalogue
from ioc_node.core.trust import Trust
from ioc_node.market.query import QueryEngine
from ioc_wire.authority import verify_chain
from ioc_wire.merkle import leaf_hash, root_of
from ioc_wire.records import Head, decode_entry, verify_record
from ioc_wire.signed import public_bytes, verify

ISSUED = 1_790_000_000
POPULATION = Population(ISSUED, records=600, providers=5)
NOW = ISSUED + 60.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder: Path = tmp_path_factory.mktemp("population")
    write(POPULATION, folder, processes=1)
    return opened(POPULATION, folder)


def trust() -> Trust:
    return Trust(
        network_id=bytes(32), admission="certified", roots=frozenset({public_bytes(POPULATION.root)})
    )


def test_the_same_parameters_give_the_same_bytes(made: Made, tmp_path: Path):
    write(Population(ISSUED, records=600, providers=5), tmp_path, processes=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 5 + len(made.change_sets) + 1
    assert all((made.folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    assert Population(ISSUED, 600, 5, seed=5).provider(1).record(7) != POPULATION.provider(1).record(7)


def test_signatures_names_and_roots_are_good(made: Made):
    for number in range(5):
        provider = POPULATION.provider(number)
        news, entries = made.catalogue(number)
        grant = verify_chain(news.chain, roots={public_bytes(POPULATION.root)}, now=NOW)
        assert (grant.subject, grant.prefix) == (provider.name, provider.prefix)
        head = verify(news.head, Head)
        assert (head.root, head.slots) == (root_of([leaf_hash(entry) for entry in entries]), provider.size)
        for slot, data in enumerate(entries):
            entry = decode_entry(data)
            assert entry.record is not None
            record, cid = verify_record(entry.record, now=NOW)
            assert (entry.slot, record, cid.prefix) == (slot, provider.record(slot), provider.prefix)


def test_changes_lead_from_head_to_head(made: Made):
    catalogue = Catalogue(trust())
    for number in range(5):
        news, entries = made.catalogue(number)
        catalogue.consider(news, unix=NOW)
        assert not catalogue.apply(news.head.key, news.head, entries, unix=NOW).refused
    assert catalogue.records == 600
    assert made.change_sets == change_sets(600) == (1, 1, 1, 100, 100, 100)
    for index, count in enumerate(made.change_sets):
        changed = 0
        for change in made.changes(index):
            provider = change.news.head.key
            replica = catalogue.replica(provider)
            assert replica is not None
            assert replica.held_seq == change.after_seq
            catalogue.consider(change.news, unix=NOW)
            changed += len(catalogue.apply(provider, change.news.head, change.entries, unix=NOW).slots)
        assert changed == count
        assert made.change_totals[index].entry_bytes > made.change_totals[index].record_bytes
    assert 570 < catalogue.records < 600  # some were withdrawn


def test_hosts_are_drawn_as_the_inventory_has_them():
    assert sum(kind.nodes for kind in HOSTS) == 1523
    assert sum(kind.nodes * kind.gpus for kind in HOSTS) == 6212
    provider = POPULATION.provider(0)
    drawn = Counter(
        record.accelerators[0].model if record.accelerators else ""
        for slot in range(1, 1500)
        if (record := provider.record(slot)).type == "node"
    )
    share = sum(kind.nodes for kind in HOSTS if kind.model == "g2") / 1523
    assert abs(drawn["g2"] / drawn.total() - share) < 0.05


def test_sizes_are_skewed_and_add_up():
    sizes = Population(ISSUED).sizes
    assert sum(sizes) == 1_020_000
    assert len(sizes) == 136
    assert max(sizes) > 10 * min(sizes)


PROMISED = [
    "verify_speedup",
    "full_sync_s",
    "full_sync_bytes_ratio",
    "sync_1000_extra_bytes",
    "sync_1000_s",
    "query_selective_p99_ms",
    "query_broad_p99_ms",
    "query_updates10k_p99_ms",
    "resident_mb",
]
UNITS = {
    "_ms": "ms",
    "_s": "s",
    "_bytes": "bytes",
    "_mb": "MB",
    "_percent": "%",
    "_ratio": "x",
    "_speedup": "x",
}


def test_every_promised_row_is_there_once_with_a_target_and_a_unit_that_fits():
    figures = {figure.name: figure for figure in FIGURES}
    assert len(figures) == len(FIGURES)
    assert all(figures[name].target is not None for name in PROMISED)
    for name, figure in figures.items():
        assert [unit for suffix, unit in UNITS.items() if name.endswith(suffix)] == [figure.unit]


def test_rows_are_the_worse_kind_beside_each_system_that_answered(made: Made):
    measurements = Measurements(made, Load(quick=True))
    measurements.add("sync_1000_s", 3.0, 0.5, 0.7)
    measurements.add("selective@10000.latency", *[0.002] * 99, 0.5)
    measurements.add("broad@10000.latency", *[0.004] * 99, 0.009)
    measurements.add("selective@10000.latency", 0.001, system="sqlite")
    measurements.matches |= {"ours": {"broad": [3]}, "sqlite": {"broad": [4]}}
    sync, query = rows_of(measurements)
    assert (sync.name, sync.ours, sync.peer, sync.runs) == ("sync_1000_s", 0.7, None, 3)
    assert (query.name, query.ours, query.peer) == ("query_updates10k_p99_ms", 500.0, 1.0)
    remarks = list(remarks_of(measurements))
    assert "query_updates10k_p99_ms 500 (target 10 ms)" in remarks[0]
    assert "sync_1000_s" not in remarks[0]
    assert "sqlite found [4] hosts for broad, ours [3]" in remarks


def test_sql_finds_the_hosts_that_the_query_engine_finds(made: Made, tmp_path: Path):
    """The bench's SQL says what its demands say: asked of an engine over the same records and status."""
    catalogue = Catalogue(trust())
    for number in range(5):
        news, entries = made.catalogue(number)
        catalogue.consider(news, unix=NOW)
        catalogue.apply(news.head.key, news.head, entries, unix=NOW)
        provider = POPULATION.provider(number)
        for part in provider.parts:
            batch = provider.status(provider.status_rows(part), part, seq=1, unix=ISSUED, seconds=600)
            catalogue.apply_status(batch, unix=NOW)
    engine = QueryEngine(catalogue)
    orders = {"hosts": str(hosts_file(made)), "database": str(tmp_path / "hosts.db"), "indexes": [["model"]]}
    database = Sqlite(orders)
    for kind, cases in DEMANDS.items():
        for case, sql in zip(cases, sql_of(kind), strict=True):
            found = database.fetch(f"SELECT count(*) FROM hosts WHERE {sql['where']}")[0][0]
            assert found == matching(engine.find(case.demand, "cost", 32, unix=NOW))
            assert found or kind == "selective"


def test_peers_are_chosen_by_name():
    assert systems_of("none") == ()
    assert systems_of("all") == ("sqlite", "duckdb")
    with pytest.raises(argparse.ArgumentTypeError, match="no such peer: redis"):
        systems_of("redis")
