"""Ranking: reasons in words, ties spread, own leases in mind; and what RTTs take away."""

import contextlib
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioc_node.core.roads import Capability, OwnRoad
from ioc_node.errors import UsageError
from ioc_node.market.demand import explain, make_demand
from ioc_node.market.policies import Context, Outstanding, cost, latency, load_policy, record_of
from ioc_node.market.pricing import format_micro
from ioc_node.market.routes import (
    Measured,
    apply_rtts,
    check_offers,
    route_text,
    transport_to,
    with_estimates,
)
from ioc_wire.market import Offer, OffersFound, Removal, RttEstimate
from ioc_wire.records import Network, Price
from tests.market.query_cases import UNIX, Provider, make_engine

DEMAND = make_demand(cores=2)


def offers_of(*hosts: tuple[str, int, int, int]) -> list[Offer]:
    """(name, price, free cores, queued), each of a provider of its own, in order of price."""
    providers = []
    for name, price, free, queued in hosts:
        provider = Provider(name)
        provider.put(
            f"gen/3301/az1/{name}",
            prices=(Price("core-hour", price * 1_000_000),),
            free_milli=free * 1000,
            queued=queued,
            network=Network(10_000, ("shm",)),
        )
        providers.append(provider)
    return list(make_engine(*providers).find(make_demand(cores=1), "cost", 32, unix=UNIX).offers)


def hosts(offers: list[Offer]) -> list[str]:
    return [record_of(offer).cid.rsplit("/", 1)[1] for offer in offers]


def test_cost_prefers_the_cheap_then_the_idle() -> None:
    offers = offers_of(("a", 5, 8, 1), ("b", 5, 8, 0), ("c", 5, 4, 0), ("d", 1, 2, 9), ("e", 9, 8, 0))
    ranked = cost(offers, Context(DEMAND))
    assert hosts(ranked) == ["d", "b", "c", "a", "e"]
    assert ranked[0].reasons == (
        "cheapest: 1.0 per core-hour, at most 1.0 for the task",
        "2 of 8 cores free, 9 waiting",
    )


def test_equal_tasks_spread_over_equal_providers() -> None:
    offers = offers_of(("a", 5, 8, 0), ("b", 5, 8, 0), ("c", 5, 8, 0), ("d", 5, 8, 0))
    taken: dict[str, Outstanding] = {}
    for _ in range(8):
        best = record_of(cost(offers, Context(DEMAND, taken))[0]).cid
        before = taken.get(best, Outstanding())
        taken[best] = Outstanding(before.leases + 1, before.cores_milli + 2000)
    assert sorted(one.leases for one in taken.values()) == [2, 2, 2, 2]


def test_what_own_leases_have_filled_comes_last_even_if_cheapest() -> None:
    offers = offers_of(("a", 1, 4, 0), ("b", 9, 8, 0))
    cheap = record_of(cost(offers, Context(DEMAND))[0]).cid
    assert hosts(cost(offers, Context(DEMAND, {cheap: Outstanding(1, 3000)}))) == ["b", "a"]


def test_who_says_that_more_is_free_than_there_is_gains_nothing() -> None:
    offers = offers_of(("honest", 1, 8, 0), ("boaster", 1, 1 << 40, 0))
    ranked = cost(offers, Context(DEMAND))
    assert [offer.reasons[1] for offer in ranked] == ["8 of 8 cores free"] * 2
    cids = [record_of(offer).cid for offer in ranked]
    assert cids == sorted(cids)


def test_latency_prefers_the_near_and_does_not_split_hairs() -> None:
    offers = offers_of(("a", 5, 8, 1), ("b", 9, 8, 0), ("c", 1, 8, 0), ("d", 1, 8, 0))
    rtts = {"a": 310, "b": 480, "c": 20_000, "d": -1}
    measured = [
        msgspec.structs.replace(offer, rtt_us=rtts[name])
        for offer, name in zip(offers, hosts(offers), strict=True)
    ]
    ranked = latency(measured, Context(DEMAND))
    assert hosts(ranked) == ["b", "a", "c", "d"]
    assert [offer.reasons[0] for offer in ranked] == [
        "RTT 0.5 ms, measured", "RTT 0.3 ms, measured", "RTT 20.0 ms, measured", "RTT not measured",
    ]  # fmt: skip


def test_what_is_estimated_stands_by_its_estimate_and_says_so() -> None:
    offers = offers_of(("a", 5, 8, 0), ("b", 5, 8, 0), ("c", 5, 8, 0))
    keys = {name: offer.provider.key for name, offer in zip(hosts(offers), offers, strict=True)}
    offers = [
        msgspec.structs.replace(offer, rtt_us=30_000) if offer.provider.key == keys["b"] else offer
        for offer in offers
    ]
    near = RttEstimate(4_000, 1_000, 9_000, "triangulated", 5)
    known = with_estimates(offers, {keys["a"]: near, keys["b"]: near})
    ranked = latency(known, Context(DEMAND))
    assert hosts(ranked) == ["a", "b", "c"]
    assert [offer.reasons[0] for offer in ranked] == [
        "RTT estimated 4 ms (triangulated over 5 core nodes)", "RTT 30.0 ms, measured", "RTT not measured",
    ]  # fmt: skip
    assert route_text(ranked[0], "quic/qh3 (another host)") == (
        "RTT estimated 4 ms (triangulated over 5 core nodes); quic/qh3 (another host)"
    )
    claimed = [msgspec.structs.replace(offer, rtt_us=1, estimate=near) for offer in offers]
    assert all(offer.rtt_us == -1 and offer.estimate is None for offer in check_offers(claimed, unix=UNIX))


def test_policies_are_found_by_name() -> None:
    assert load_policy("latency") is latency
    with pytest.raises(UsageError, match="there are cost, latency"):
        load_policy("cheapest")


def test_unreachable_and_distant_offers_go_with_their_reason() -> None:
    offers = offers_of(("a", 5, 8, 0), ("b", 5, 8, 0), ("c", 5, 8, 0))
    keys = {name: offer.provider.key for name, offer in zip(hosts(offers), offers, strict=True)}
    measured = {
        keys["a"]: Measured(400),
        keys["b"]: Measured(-1, "nobody answers"),
        keys["c"]: Measured(31_000),
    }
    kept, removals = apply_rtts(offers, measured, make_demand(max_rtt_ms=20))
    assert [(offer.rtt_us, host) for offer, host in zip(kept, hosts(kept), strict=True)] == [(400, "a")]
    assert [(removal.condition, removal.removed) for removal in removals] == [("reachable", 1), ("rtt", 1)]
    assert removals[1].nearest.endswith("/c is 31.0 of the 20 ms away")
    kept, removals = apply_rtts(offers, {}, make_demand())
    assert len(kept) == 3
    assert not removals
    found = OffersFound((), 3, (Removal("cores", 1, "x"),), bytes(32))
    assert explain(found, removals) == "cannot be placed on any of 3 hosts: cores: 1 removed; nearest miss x"


def test_routes_name_the_transport_and_why() -> None:
    (offer,) = offers_of(("a", 5, 8, 0))
    shm = OwnRoad("shm", Capability(True, "same host", scope="host", mb_s=1000))
    cooling = replace(shm, cooling_seconds=4.0, failure="the other end hung up")
    near, far = ("127.0.0.1",), ("192.0.2.1",)
    shared = transport_to(offer, own=(shm,), own_hosts=near, engine="qh3")
    assert route_text(offer, shared) == "RTT not measured; shm (same host)"
    assert transport_to(offer, own=(shm,), own_hosts=far, engine="qh3") == "quic/qh3 (shm: another host)"
    assert (
        transport_to(offer, own=(), own_hosts=near, engine="aioquic") == "quic/aioquic (no offload in common)"
    )
    assert transport_to(offer, own=(cooling,), own_hosts=near, engine="qh3") == (
        "quic/qh3 (shm: failed, tried again in 4 s: the other end hung up)"
    )


def test_a_record_that_its_provider_did_not_sign_is_no_offer() -> None:
    one, two = offers_of(("a", 5, 8, 0), ("b", 5, 8, 0))
    forged = msgspec.structs.replace(one, record=msgspec.structs.replace(one.record, signature=bytes(64)))
    borrowed = msgspec.structs.replace(one, provider=two.provider)
    assert check_offers([forged, borrowed, two], unix=UNIX) == [two]
    assert check_offers([two], unix=UNIX + 90_000) == []


# -- demands


def test_a_friendly_demand() -> None:
    demand = make_demand(
        accelerators="gpu:h100:8, gpu:0.25",
        accelerator_memory="40GiB",
        memory="1.5GiB",
        duration="90m",
        within="cn.r3301,ioc:cn.r1100.20004/ai/",
        max_rtt_ms=20,
        max_price=0.12,
    )
    first, second = demand.resources.accelerators
    assert (first.type, first.models, first.count_milli, first.memory_mib_min) == (
        "gpu",
        ("h100",),
        8000,
        40960,
    )
    assert (second.models, second.count_milli) == ((), 250)
    assert demand.resources.memory_mib == 1536
    assert demand.wall_seconds == 5400
    assert demand.constraints.allow == ("cn.r3301", "ioc:cn.r1100.20004/ai")
    assert demand.constraints.price_micro_max == 120_000


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"accelerators": "h100"}, "accelerators: 'h100' does not read TYPE:COUNT"),
        ({"accelerators": "gpu:h100:1.2345"}, "does not read TYPE:COUNT"),
        ({"accelerators": "gpu:0"}, "the count is not between"),
        ({"accelerators": "gpu:1", "min_tflops": 3}, "say of which precision"),
        ({"accelerators": "gpu:1", "precision": "fp12"}, "'fp12' is none of fp64"),
        ({"precision": "fp16"}, "name some, as gpu:1"),
        ({"cores": 0}, "cores: 0 is not between"),
        ({"cores": float("nan")}, "cores: nan is not between"),
        ({"memory": "16 apples"}, "memory: '16 apples' is no size"),
        ({"memory": -1}, "memory: -1 MiB is not between"),
        ({"duration": "soon"}, "duration: 'soon' is no duration"),
        ({"duration": "31d"}, "is not between 1 s and 30 days"),
        ({"resource_class": "big"}, "class: 'big' is none of gen, ai, sup, edge"),
        ({"within": "CN"}, "within: 'CN' is not a prefix"),
        ({"max_rtt_ms": 0}, "max-rtt-ms: 0 is not between"),
        ({"max_price": -1}, "max-price: -1 is not between"),
        ({"services": ["x" * 200]}, "the demand is too large or has an empty word"),
    ],
)
def test_a_wrong_demand_is_one_clear_line(options: dict[str, object], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_demand(**options)  # type: ignore[arg-type]
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_demand_or_a_usage_error(text: str) -> None:
    for option in ("accelerators", "memory", "duration", "within", "runtimes"):
        with contextlib.suppress(UsageError):
            make_demand(**{option: text})  # type: ignore[arg-type]


def test_money_reads_as_written() -> None:
    written = [format_micro(micro) for micro in (0, 1, 120_000, 1_000_000, 1_230_000)]
    assert written == ["0.0", "0.000001", "0.12", "1.0", "1.23"]
