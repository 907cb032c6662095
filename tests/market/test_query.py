"""Demand queries: what is offered, in which order, at which price, and why the rest is not."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ioc_node.core.steps import run_through
from ioc_node.market.demand import explain, make_demand
from ioc_node.market.policies import record_of
from ioc_node.market.pricing import Estimate, prices_of
from ioc_node.market.query import PIECE_SLOTS, TURN_SLOTS, QueryEngine
from ioc_wire.codec import encode
from ioc_wire.errors import NotFound
from ioc_wire.market import Cursor, Demand, OffersFound
from ioc_wire.records import Accelerator, Cpu, Price, StatusRow
from tests.market.query_cases import UNIX, Provider, make_catalogue, make_engine


def names(found: OffersFound) -> list[str]:
    return [record_of(offer).cid.split("/", 1)[1] for offer in found.offers]


def removed(found: OffersFound) -> dict[str, int]:
    return {removal.condition: removal.removed for removal in found.removals}


def ask(
    engine: QueryEngine, *, policy: str = "cost", limit: int = 32, unix: float = UNIX, **options: Any
) -> OffersFound:
    return engine.find(make_demand(**options), policy, limit, unix=unix)


def h100(count: int, **fields: Any) -> Accelerator:
    given_fields = {"peak": (("fp16", 989_000), ("fp64", 34_000)), **fields}
    return Accelerator("gpu", "nvidia", "h100", count, 81_559, **given_fields)


def test_only_hosts_are_offered_and_cheapest_first() -> None:
    one, two = Provider("one"), Provider("two")
    one.put("gen/3301/az1/dear", prices=(Price("core-hour", 300_000),))
    one.put("gen/3301/az1", type="pool")
    two.put("gen/3301/az1/cheap", prices=(Price("core-hour", 100_000),))
    found = ask(make_engine(one, two))
    assert names(found) == ["gen/3301/az1/cheap", "gen/3301/az1/dear"]
    assert found.considered == 2
    assert found.offers[0].reasons[0] == "cheapest: 0.1 per core-hour, at most 0.1 for the task"
    assert found.offers[0].provider.key == two.public


def test_estimate_is_exact_and_rounded_up_once() -> None:
    prices = prices_of(
        (Price("core-hour", 120_000), Price("gib-hour", 10), Price("task", 7), Price("core-hour", 1))
    )
    demand = make_demand(cores=2, memory=512, duration=1800)
    assert Estimate(demand)(prices, 0) == 120_000 + 3 + 7  # 2 cores for half an hour, 2.5 rounded up, flat
    assert Estimate(demand)(prices, 60_000) == 60_000 + 3 + 7  # the price now counts
    eight = make_demand(accelerators="gpu:h100:8", cores=1, memory=0, duration=3600)
    assert Estimate(eight)(prices_of((Price("accelerator-hour", 2_000_000),)), 0) == 16_000_000


@pytest.mark.parametrize(
    ("options", "condition", "nearest"),
    [
        ({"cores": 64}, "cores", "has 8 of the 64 cores"),
        ({"cores": 6}, "free cores", "has 4 of the 6 cores free"),
        ({"memory": "64GiB"}, "memory", "has 16384 of the 65536 MiB of memory"),
        ({"disk": "1TiB"}, "disk", "has 100000 of the 1048576 MiB of disk"),
        ({"runtimes": "wasm,process"}, "runtimes", "has wasm, not process, wasm"),
        ({"resource_class": "ai"}, "class", "is not ai"),
        ({"cities": "1100"}, "city", "is not in 1100"),
        ({"within": "cn.r3301"}, "allow", "is outside of cn.r3301"),
        ({"avoid": "p2p"}, "deny", "is within p2p"),
        ({"architectures": "aarch64"}, "architecture", "has x86_64, not aarch64"),
        ({"services": "slurm"}, "services", "lacks one of slurm"),
        ({"accelerators": "gpu:h100:8"}, "accelerators", "has 0 of the 8 h100 accelerators"),
        (
            {"accelerators": "gpu:0.5", "accelerator_memory": 1024, "precision": "fp16", "min_tflops": 312.5},
            "accelerators",
            "has 0 of the 0.5 gpu accelerators of 1024 MiB with 312.5 TFLOPS in fp16",
        ),
        ({"max_price": 0.1}, "price", "costs 0.12 per core-hour, at most 0.1 is paid"),
        ({"duration": "2d"}, "duration", "has 86400 of the 172800 seconds that a task may run"),
    ],
)
def test_every_condition_names_its_nearest_miss(
    options: dict[str, Any], condition: str, nearest: str
) -> None:
    one = Provider("one")
    cid = one.put("gen/3301/az1/h1", free_milli=4000)
    found = ask(make_engine(one), **options)
    assert not found.offers
    assert removed(found) == {condition: 1}
    assert found.removals[0].nearest == f"{cid} {nearest}"
    assert f"{condition}: 1 removed; nearest miss {cid}" in explain(found)


def test_the_nearest_of_several_is_the_one_that_lacks_least() -> None:
    one = Provider("one")
    for cores in (2, 4, 3):
        one.put(f"gen/3301/az1/c{cores}", cpu=Cpu("x86_64", "m", cores, cores), free_milli=cores * 1000)
    found = ask(make_engine(one), cores=64)
    assert removed(found) == {"cores": 3}
    assert found.removals[0].nearest.endswith("/c4 has 4 of the 64 cores")


def test_places_are_told_apart_label_by_label() -> None:
    one = Provider("one")
    one.put("gen/3301/az1/h1")
    one.put("gen/3301/az1/h12")
    one.put("gen/3301/az2/h1")
    one.put("ai/3301/az1/h1")
    engine = make_engine(one)
    assert sorted(names(ask(engine, within=one.cid("gen/3301/az1")))) == [
        "gen/3301/az1/h1",
        "gen/3301/az1/h12",
    ]
    assert names(ask(engine, within=one.cid("gen/3301/az1/h1"))) == ["gen/3301/az1/h1"]
    assert names(ask(engine, within=f"ioc:{one.prefix}/ai")) == ["ai/3301/az1/h1"]
    assert names(ask(engine, within="p2p", avoid=[one.cid("gen"), "cn"])) == ["ai/3301/az1/h1"]
    assert len(names(ask(engine, within=one.prefix))) == 4


def test_accelerators_are_counted_exactly_and_precisions_never_mixed() -> None:
    one = Provider("one")
    one.put("ai/3301/az1/full", accelerators=(h100(8),), free=(8000,))
    one.put("ai/3301/az1/busy", accelerators=(h100(8),), free=(7999,))
    one.put(
        "ai/3301/az1/two",
        accelerators=(h100(2, sharing="shared"), h100(8, sharing="shared")),
        free=(2000, 400),
    )
    one.put("gen/3301/az1/none")
    engine = make_engine(one)
    found = ask(engine, accelerators="gpu:h100:8")
    assert names(found) == ["ai/3301/az1/full"]
    assert removed(found) == {"accelerators": 1, "free accelerators": 2}
    assert names(ask(engine, accelerators="gpu:0.4")) == [
        "ai/3301/az1/two"
    ]  # only shared devices are divided
    assert sorted(names(ask(engine, accelerators="gpu:7"))) == ["ai/3301/az1/busy", "ai/3301/az1/full"]
    both = ask(engine, accelerators=["gpu:h100:2", "gpu:h100:0.4"])
    assert names(both) == ["ai/3301/az1/two"]
    assert not ask(engine, accelerators=["gpu:h100:2", "gpu:h100:0.401"]).offers
    assert names(ask(engine, accelerators=["gpu:h100:0.4", "gpu:H100:2"])) == ["ai/3301/az1/two"]
    assert len(ask(engine, accelerators="gpu:a100/h100:1").offers) == 3
    assert names(ask(engine, accelerators="gpu:8", precision="fp16", min_tflops=900)) == ["ai/3301/az1/full"]
    assert not ask(engine, accelerators="gpu:8", precision="fp64", min_tflops=900).offers
    assert not ask(engine, accelerators="gpu:8", precision="fp8", min_tflops=1).offers
    assert not ask(engine, accelerators="gpu:1", accelerator_memory="96GiB").offers


def test_what_one_group_alone_can_serve_is_not_taken_by_others() -> None:
    one = Provider("one")
    mixed = (h100(1), Accelerator("gpu", "nvidia", "L4", 1, 24576))
    one.put("ai/3301/az1/mixed", accelerators=mixed, free=(1000, 1000))
    engine = make_engine(one)
    for wanted in (["gpu:1", "gpu:h100:1"], ["gpu:h100:1", "gpu:1"], ["gpu:1", "gpu:l4:1"]):
        assert names(ask(engine, accelerators=wanted)) == ["ai/3301/az1/mixed"]
    assert not ask(engine, accelerators=["gpu:1", "gpu:l4:1", "gpu:1"]).offers


def test_silent_and_expired_providers_are_not_offered() -> None:
    one, two = Provider("one"), Provider("two")
    one.put("gen/3301/az1/h1")
    two.put("gen/3301/az1/h2")
    catalogue = make_catalogue()
    one.publish(catalogue)
    two.publish(catalogue, status=False)
    engine = QueryEngine(catalogue)
    found = ask(engine)
    assert names(found) == ["gen/3301/az1/h1"]
    assert removed(found) == {"status": 1}
    assert removed(ask(engine, unix=UNIX + 31)) == {"status": 2}
    assert removed(ask(engine, unix=UNIX + 86401)) == {"record": 2}


def test_changes_are_patched_in() -> None:
    one = Provider("one")
    one.put("gen/3301/az1/h1")
    one.put("gen/3301/az1/h2")
    catalogue = make_catalogue()
    one.publish(catalogue)
    engine = QueryEngine(catalogue)
    one.own.withdraw(one.cid("gen/3301/az1/h1"))
    one.put("gen/3301/az1/h3", prices=(Price("core-hour", 1),))
    engine.patch(one.public, one.publish(catalogue, unix=UNIX + 1))
    assert names(ask(engine)) == ["gen/3301/az1/h3", "gen/3301/az1/h2"]
    assert engine.rows == 2
    one.rows[1] = StatusRow(1, 0, 16384)
    one.publish(catalogue, unix=UNIX + 2)
    engine.patch_status(one.public, 0)
    assert names(ask(engine)) == ["gen/3301/az1/h3"]
    catalogue.drop(one.public)
    engine.patch(one.public, None)
    assert explain(ask(engine)) == "cannot be placed: no provider's hosts are known here yet"


def test_status_is_entered_in_steps_and_seen_at_once() -> None:
    """A batch is read while queries go on; they see all of it or nothing. What is newer meanwhile is not undone."""
    one = Provider("one")
    for host in range(4):
        one.put(f"gen/3301/az1/h{host}")
    catalogue = make_catalogue()
    one.publish(catalogue)
    engine = QueryEngine(catalogue)
    one.rows = {slot: StatusRow(slot, 0, 16384) for slot in range(2)}
    one.publish(catalogue, unix=UNIX + 1)
    first = engine.patching_status(one.public, 0)
    for _ in range(4):
        next(first)
        assert len(ask(engine).offers) == 4
    one.rows = {slot: StatusRow(slot, 8000, 16384) for slot in range(3)}
    one.publish(catalogue, unix=UNIX + 2)
    assert next(first, None) is None  # it is left out
    assert len(ask(engine).offers) == 4
    steps = list(engine.patching_status(one.public, 0))
    assert len(steps) == 4
    assert len(ask(engine).offers) == 3


def test_pieces_of_a_patch_are_small_while_others_wait() -> None:
    one = Provider("one")
    for host in range(3):
        one.put(f"gen/3301/az1/h{host}")
    catalogue = make_catalogue()
    one.publish(catalogue)
    engine = QueryEngine(catalogue)
    slots = range(PIECE_SLOTS + 2 * TURN_SLOTS)
    turns = iter([True, False, True, False])
    pieces = engine.pieces(one.public, slots, in_turns=lambda: next(turns))
    assert sum(1 for piece in pieces if run_through(piece) is None) == 3
    assert engine.rows == 3


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(NotFound, match="'fast' is not installed; there are cost, latency"):
        ask(make_engine(), policy="fast")


def test_the_answer_does_not_depend_on_the_order_of_arrival() -> None:
    """Two core nodes with one state answer with the same bytes, also among hundreds of equals."""
    providers = [Provider(f"p{i}") for i in range(6)]
    for provider in providers:
        for host in range(60):
            provider.put(f"gen/3301/az1/h{host}", free_milli=8000 - host % 3)
    demands = [
        make_demand(cores=1),
        make_demand(cores=7.999),
        make_demand(cores=9),
        make_demand(accelerators="gpu:1"),
    ]
    answers = []
    for seed in range(3):
        order = list(providers)
        random.Random(seed).shuffle(order)
        catalogue = make_catalogue()
        engine = QueryEngine(catalogue)
        for provider in order:
            slots = provider.publish(catalogue) or None
            engine.patch(provider.public, slots)
        for provider in order[:3]:  # rows are removed and come again elsewhere
            engine.patch(provider.public, None)
        answers.append([encode(engine.find(demand, "cost", 32, unix=UNIX)) for demand in demands])
    assert answers[0] == answers[1] == answers[2]


@settings(max_examples=40, deadline=None)
@given(
    hosts=st.lists(
        st.tuples(
            st.integers(1, 16), st.integers(0, 16000), st.sampled_from([0, 1, 5, 1 << 62]), st.integers(0, 4),
            st.integers(0, 4000),
        ),
        max_size=12,
    ),
    cores=st.sampled_from([0.5, 1, 3, 8, 16]),
    gpu_milli=st.sampled_from([0, 500, 1000, 2000]),
)  # fmt: skip
def test_columns_agree_with_a_plain_reading(
    hosts: list[tuple[int, ...]], cores: float, gpu_milli: int
) -> None:
    one = Provider("one")
    expected = []
    for number, (total, free, price, gpus, gpu_free) in enumerate(hosts):
        path = f"gen/3301/az1/h{number}"
        groups = (h100(gpus, sharing="shared"),) if gpus else ()
        one.put(
            path,
            cpu=Cpu("x86_64", "m", total, total),
            free_milli=free,
            prices=(Price("core-hour", price),),
            accelerators=groups,
            free=(gpu_free,) if gpus else (),
        )
        enough_gpu = gpu_milli == 0 or min(gpu_free, gpus * 1000) >= gpu_milli
        if total >= cores and free >= cores * 1000 and enough_gpu:
            expected.append((-(-price * int(cores * 1000) // 1000), path))
    demand: Demand = make_demand(cores=cores, accelerators=f"gpu:{gpu_milli / 1000:.3f}" if gpu_milli else ())
    found = make_engine(one).find(demand, "cost", 32, unix=UNIX)
    assert sorted(names(found)) == sorted(path for _, path in expected)
    prices = [offer.price_micro for offer in found.offers]
    assert prices == sorted(min(price, (1 << 63) - 1) for price, _ in expected)
    assert sum(removed(found).values()) + len(found.offers) == found.considered == len(hosts)


def test_only_hosts_of_the_providers_named_and_of_the_first_one_first() -> None:
    one, two, three = Provider("one"), Provider("two"), Provider("three")
    for provider, price in ((one, 100_000), (two, 300_000), (three, 200_000)):
        for host in ("h1", "h2"):
            provider.put(f"gen/3301/az1/{host}", prices=(Price("core-hour", price),))
    engine = make_engine(one, two, three)

    def offered(limit: int = 32, **options: Any) -> list[bytes]:
        steps = engine.finding(make_demand(cores=1), "cost", limit, unix=UNIX, **options)
        return [offer.provider.key for offer in run_through(steps).offers]

    named = (two.public, three.public, b"x" * 32, two.public)
    assert offered(providers=named) == [three.public] * 2 + [two.public] * 2
    assert offered(2, providers=named, nearest_first=True) == [two.public] * 2
    assert offered(providers=()) == []
    found = run_through(engine.finding(make_demand(cores=1), "cost", 32, unix=UNIX, providers=named))
    assert removed(found) == {"provider": 2}
    assert found.matching == 4
    page = run_through(
        engine.finding(make_demand(cores=1), "cost", 3, unix=UNIX, providers=named, after=Cursor(0.0, 0))
    )
    assert page.cursor is not None
    rest = run_through(
        engine.finding(make_demand(cores=1), "cost", 3, unix=UNIX, providers=named, after=page.cursor)
    )
    assert len(page.offers) + len(rest.offers) == 4


def test_who_can_serve_a_demand_and_where() -> None:
    busy, free, small = Provider("busy"), Provider("free"), Provider("small")
    busy.put("gen/3301/az1/h1", free_milli=0)
    for host in range(40):
        free.put(f"gen/3301/az1/h{host}")
    small.put("gen/3301/az1/h1", cpu=Cpu("x86_64", "cpu", 1, 1), free_milli=1000)
    engine = make_engine(busy, free, small)

    def serving(**options: Any) -> set[bytes]:
        return set(run_through(engine.serving(make_demand(cores=2), unix=UNIX, **options)))

    assert serving() == {free.public}
    assert serving(providers=(busy.public,)) == set()
    assert serving(providers=(busy.public, free.public)) == {free.public}
    (contact,) = run_through(engine.serving(make_demand(cores=2), unix=UNIX)).values()
    assert contact == ask(engine, cores=2).offers[0].provider
