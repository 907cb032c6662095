"""The query's table: what is in sight, what is freed, and queries in steps."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ioc_node.core.steps import run_through
from ioc_node.market import extents, plans, query, scan
from ioc_node.market.query import QueryEngine
from ioc_wire.market import Demand, OffersFound
from ioc_wire.records import Accelerator
from ioc_wire.tasks import AcceleratorDemand, Constraints, Resources
from tests.market.query_cases import UNIX, Provider, make_catalogue, make_engine

GPU = Accelerator("gpu", "v", "m", 4, 16384, "shared")


def offered(found: OffersFound) -> list[int]:
    return sorted(offer.status.slot for offer in found.offers)


def test_what_no_row_refers_to_is_freed() -> None:
    catalogue, provider = make_catalogue(), Provider("one")
    engine = QueryEngine(catalogue, extent_rows=1)
    for number in range(40):
        cid = provider.put(f"gen/{number:04d}/az1/h{number}", runtimes=(f"r{number}",), accelerators=(GPU,))
        engine.patch(provider.public, provider.publish(catalogue, unix=UNIX + 2 * number))
        assert provider.own.withdraw(cid)
        engine.patch(provider.public, provider.publish(catalogue, unix=UNIX + 2 * number + 1))
    table = engine._table
    assert engine.rows == 0
    assert (len(table.kinds.pools), len(table.kinds.shapes), len(table.traits), len(table.owners)) == (0,) * 4
    assert len(table) <= 2 * extents.RESERVED_MIN
    assert len(table.kinds) == 1


def test_a_host_that_changes_is_never_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "PIECE_SLOTS", 50)
    catalogue, provider = make_catalogue(), Provider("one")
    engine = QueryEngine(catalogue, extent_rows=25)
    for number in range(200):
        provider.put(f"gen/3301/az1/h{number}")
    changed = provider.publish(catalogue)
    assert changed == tuple(range(200))
    seen = []
    for piece in engine.pieces(provider.public, changed):
        run_through(piece)
        seen.append(engine.rows)
    assert seen == [50, 100, 150, 200]
    for piece in engine.pieces(provider.public, None):
        next(piece)
        assert engine.rows == 200
        found = engine.find(Demand(resources=Resources(cores=1)), "cost", 64, unix=UNIX)
        assert (found.considered, found.removals) == (200, ())
        run_through(piece)
    abandoned = next(engine.pieces(provider.public, None))
    next(abandoned)
    abandoned.close()
    assert engine.rows == 200
    assert len(engine._table) <= 400


def test_an_answer_from_a_table_that_is_behind_has_no_digest() -> None:
    engine = make_engine(Provider("one"))
    demand = Demand(resources=Resources(cores=1))
    assert run_through(engine.finding(demand, "cost", 8, unix=UNIX, settled=False)).digest == bytes(32)
    assert engine.find(demand, "cost", 8, unix=UNIX).digest != bytes(32)


def test_the_nearest_miss_is_told_to_whom_it_helps() -> None:
    provider = Provider("one")
    provider.put("gen/3301/az1/h1", free_milli=8000)
    provider.put("gen/3301/az1/h2", free_milli=3000)
    engine = make_engine(provider)

    def nearest(cores: int, *, explain: bool) -> list[str]:
        steps = engine.finding(
            Demand(resources=Resources(cores=cores)), "cost", 8, unix=UNIX, explain=explain
        )
        return [removal.nearest for removal in run_through(steps).removals]

    assert nearest(4, explain=False) == [""]
    assert "h2 has 3 of the 4 cores free" in nearest(4, explain=True)[0]
    assert "h1 has 8 of the 9 cores" in nearest(9, explain=False)[0]


HOSTS = st.lists(
    st.fixed_dictionaries(
        {
            "city": st.sampled_from(["3301", "3302"]),
            "kind": st.sampled_from(["gen", "ai"]),
            "runtimes": st.sampled_from([("process",), ("wasm",), ("process", "wasm")]),
            "gpus": st.integers(0, 4),
            "free": st.integers(0, 4000),
            "free_milli": st.integers(0, 9000),
        }
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=40, deadline=None)
@given(
    HOSTS,
    st.sampled_from(["", "gen", "ai"]),
    st.integers(0, 3000),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from([1, 2, 1000]),
    st.sampled_from([0, 3, 1000]),
    st.sampled_from([0, 2, 128]),
)
def test_blocks_find_what_one_by_one_does(
    hosts: list[dict[str, Any]],
    kind: str,
    gpu_milli: int,
    cores: int,
    wasm: bool,
    sparse: int,
    few: int,
    keys: int,
) -> None:
    provider = Provider("one")
    for number, host in enumerate(hosts):
        gpus = Accelerator("gpu", "v", "m", host["gpus"], 16384, "shared")
        provider.put(
            f"{host['kind']}/{host['city']}/az1/h{number}",
            runtimes=host["runtimes"],
            accelerators=(gpus,) if host["gpus"] else (),
            free=(min(host["free"], host["gpus"] * 1000),) if host["gpus"] else (),
            free_milli=host["free_milli"],
        )
    wanted = (AcceleratorDemand("gpu", count_milli=gpu_milli),) if gpu_milli else ()
    demand = Demand(
        resources=Resources(cores=cores, accelerators=wanted),
        constraints=Constraints(resource_class=kind, cities=("3301",)),
        runtimes=("wasm",) if wasm else (),
    )
    expected = [
        number
        for number, host in enumerate(hosts)
        if kind in ("", host["kind"])
        and host["city"] == "3301"
        and (not wasm or "wasm" in host["runtimes"])
        and (not gpu_milli or min(host["free"], host["gpus"] * 1000) >= gpu_milli)
        and min(8000, host["free_milli"]) >= cores * 1000
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "BLOCK_ROWS", 6)
        patch.setattr(scan, "SAMPLE_ROWS", 2)
        patch.setattr(plans, "SPARSE", sparse)
        patch.setattr(scan, "SPARSE", sparse)
        patch.setattr(plans, "FEW_KINDS", few)
        patch.setattr(extents, "KEYS_MAX", keys)
        engine = make_engine(provider, extent_rows=3)
        found = engine.find(demand, "cost", 64, unix=UNIX)
    assert offered(found) == expected
    assert found.considered == len(hosts)
    assert sum(removal.removed for removal in found.removals) == len(hosts) - len(expected)


def test_a_host_that_changes_keeps_its_status() -> None:
    catalogue, provider = make_catalogue(), Provider("one")
    provider.put("gen/3301/az1/h0", accelerators=(GPU,), free=(2500,), free_milli=3000)
    engine = QueryEngine(catalogue)
    engine.patch(provider.public, provider.publish(catalogue))
    cid = provider.put("gen/3301/az1/h0", accelerators=(GPU,), memory_mib=99, free=(1,), free_milli=1)
    engine.patch(provider.public, provider.publish(catalogue, unix=UNIX + 1, status=False))
    demand = Demand(resources=Resources(cores=1, memory_mib=99, accelerators=(AcceleratorDemand("gpu"),)))
    (offer,) = engine.find(demand, "cost", 8, unix=UNIX).offers
    assert (offer.status.free_cores_milli, offer.status.free_accelerators_milli) == (3000, (2500,))
    assert offer.record == provider.own.record(cid)
