"""Plans: what was found once is right for as long as it is kept, and no longer."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ioc_node.core.steps import run_through
from ioc_node.market import plans
from ioc_node.market.plans import Plans
from ioc_node.market.query import QueryEngine
from ioc_wire.codec import encode
from ioc_wire.market import Cursor, Demand
from ioc_wire.records import Accelerator, Cpu, Price, StatusRow
from ioc_wire.tasks import AcceleratorDemand, Constraints, Resources
from tests.market.query_cases import UNIX, Provider, make_catalogue, make_engine

PATHS = [f"{kind}/{city}/az1/h{n}" for n, (kind, city) in enumerate([("gen", "3301"), ("ai", "3302")] * 4)]
HOST = st.fixed_dictionaries(
    {
        "path": st.sampled_from(PATHS),
        "cores": st.integers(1, 8),
        "runtimes": st.sampled_from([("process",), ("wasm",), ("process", "wasm")]),
        "labels": st.sampled_from([(), (("rack", "r1"),), (("rack", "r2"),)]),
        "gpus": st.integers(0, 2),
        "price": st.integers(1, 3),
        "free_milli": st.integers(0, 8000),
        "free": st.integers(0, 2000),
        "queued": st.integers(0, 1),
    }
)
CHANGE = st.one_of(
    st.tuples(st.just("put"), HOST),
    st.tuples(st.just("withdraw"), st.sampled_from(PATHS)),
    st.tuples(st.just("status"), st.sampled_from(PATHS), st.integers(0, 8000)),
)
GPU = (AcceleratorDemand("gpu", count_milli=1000),)
DEMANDS = (
    Demand(resources=Resources(cores=2)),
    Demand(resources=Resources(cores=1, accelerators=GPU)),
    Demand(resources=Resources(cores=1), constraints=Constraints(resource_class="ai", cities=("3302",))),
    Demand(resources=Resources(cores=1), runtimes=("wasm",), constraints=Constraints(price_micro_max=2000)),
    Demand(constraints=Constraints(where="label.rack = r1 or cores > 4 and queued = 0")),
    Demand(constraints=Constraints(where=" or ".join(f"cores = {n}" for n in (1, 2, 3, 5, 7)))),
)


def change(provider: Provider, what: tuple[Any, ...]) -> None:
    if what[0] == "put":
        host = what[1]
        gpus = (Accelerator("gpu", "v", "m", host["gpus"], 16384, "shared"),) if host["gpus"] else ()
        provider.put(
            host["path"],
            cpu=Cpu("x86_64", "x", host["cores"], host["cores"]),
            runtimes=host["runtimes"],
            labels=host["labels"],
            accelerators=gpus,
            prices=(Price("core-hour", 1000 * host["price"]),),
            free_milli=host["free_milli"],
            free=(host["free"],) if gpus else (),
            queued=host["queued"],
        )
        return
    slot = provider.own.slot_of(provider.cid(what[1]))
    if slot is None:
        return
    if what[0] == "withdraw":
        provider.own.withdraw(provider.cid(what[1]))
        provider.rows.pop(slot)
    else:
        provider.rows[slot] = StatusRow(slot, what[2], 16384, (), 0)


def answers(engine: QueryEngine, unix: float) -> list[bytes]:
    """Of every demand, by both policies, a page and the whole."""
    told = []
    for number, demand in enumerate(DEMANDS):
        for policy, after in (("cost", None), ("latency", None), ("cost", Cursor(0.0, 0))):
            steps = engine.finding(demand, policy, 2 + number, unix=unix, explain=True, after=after)
            told.append(encode(run_through(steps)))
    return told


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(CHANGE, min_size=1, max_size=3), min_size=1, max_size=5), st.sampled_from([1, 8]))
def test_an_engine_that_lives_on_answers_like_a_new_one(steps: list[Any], sparse: int) -> None:
    catalogue, provider = make_catalogue(), Provider("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "SPARSE", sparse)
        patch.setattr(plans, "FEW_KINDS", 1)
        engine = QueryEngine(catalogue, extent_rows=3)
        for number, step in enumerate(steps):
            unix = UNIX + number
            for what in step:
                change(provider, what)
            engine.patch(provider.public, provider.publish(catalogue, unix=unix))
            engine.patch_status(provider.public, 0)
            told = answers(engine, unix)
            assert told == answers(engine, unix)
            assert told == answers(QueryEngine(catalogue, extent_rows=3), unix)


def test_plans_are_bounded_and_do_not_depend_on_what_is_asked_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "PLANS_MAX", 2)
    provider = Provider("one")
    provider.put("gen/3301/az1/h1")
    kept = Plans(make_engine(provider)._table)

    def plan(cores: int, **fields: Any) -> object:
        return run_through(kept.taking(Demand(Resources(cores=cores), Constraints(**fields))))

    one, two = plan(1), plan(2)
    assert plan(1, price_micro_max=7, rtt_ms_max=3.0, data_at="cn.r1") is one
    plan(3)
    assert plan(1) is one
    assert plan(2) is not two


def test_what_a_large_expression_decided_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows with comparisons and with what providers made up: dozens of them would take hundreds of megabytes."""
    provider = Provider("one")
    provider.put("gen/3301/az1/h1")
    kept = Plans(make_engine(provider)._table)

    def plan(where: str) -> object:
        return run_through(kept.taking(Demand(constraints=Constraints(where=where))))

    small, large = "label.rack = r1", " or ".join(f"label.rack = r{n}" for n in range(40))
    assert plan(large) is plan(large)
    monkeypatch.setattr(plans, "EXPRESSION_BYTES_MAX", 8)
    assert plan(small) is plan(small)
    large += " or label.rack = r40"
    assert plan(large) is not plan(large)
    assert large not in {each.constraints.where for each in (*kept._plans, *kept._grounds)}


def test_a_host_that_is_gone_is_not_offered_though_the_table_does_not_know_it_yet() -> None:
    catalogue, provider = make_catalogue(), Provider("one")
    cids = [provider.put(f"gen/3301/az1/h{number}") for number in range(3)]
    provider.publish(catalogue)
    engine = QueryEngine(catalogue)

    def offered(limit: int) -> list[int]:
        offers = engine.find(Demand(), "cost", limit, unix=UNIX).offers
        return sorted(offer.status.slot for offer in offers)

    assert offered(3) == [0, 1, 2]
    provider.own.withdraw(cids[1])
    provider.rows.pop(1)
    provider.publish(catalogue, unix=UNIX + 1)
    assert offered(3) == offered(2) == [0, 2]
    catalogue.drop(provider.public)
    assert offered(3) == []
