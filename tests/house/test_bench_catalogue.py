"""The generated population of `bench.catalogue`: the same bytes again, valid signatures, roots that match."""

from collections import Counter
from pathlib import Path

import pytest

from bench.catalogue_files import Made, change_sets, opened, write
from bench.catalogue_records import HOSTS, Population
from ioc_node.core.catalogue import Catalogue
from ioc_node.core.trust import Trust
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
    names = sorted(path.name for path in made.folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
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
    sizes = Population(ISSUED).sizes()
    assert sum(sizes) == 1_020_000
    assert len(sizes) == 136
    assert max(sizes) > 10 * min(sizes)
