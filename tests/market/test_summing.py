"""What a core node holds, summed up: per node prefix, per precision, and only what is fresh counts as told."""

from ioc_node.cli.overview import sum_up
from ioc_node.core.catalogue import Catalogue
from ioc_node.core.steps import run_through
from ioc_node.market.query import QueryEngine
from ioc_wire.gossip import HeadNews
from ioc_wire.records import Accelerator, StatusRow
from tests.core.gossip_staple import Provider, certified
from tests.core.staple import UNIX
from tests.runtime.gossip_cases import host_record

A100 = Accelerator("gpu", "nvidia", "A100", 8, 81920, peak=(("fp64", 9_700), ("fp16", 312_000)))
CARD = Accelerator("npu", "acme", "card", 2, 32768, peak=(("fp16", 1_000),), int8_gops=5_000)


def publish(catalogue: Catalogue, provider: Provider, *groups: tuple[Accelerator, ...]) -> None:
    for number, accelerators in enumerate(groups):
        cid = provider.cid(f"h{number}")
        provider.own.put(host_record(provider.key, cid, now=UNIX, accelerators=accelerators), unix=UNIX)
    provider.own.commit(unix=UNIX)
    assert provider.own.head is not None
    catalogue.consider(HeadNews(provider.own.head, provider.chain, None), unix=UNIX)
    catalogue.apply(provider.public, provider.own.head, provider.own.entries_after(0), unix=UNIX)


def test_sums_per_node_prefix() -> None:
    catalogue = Catalogue(certified())
    assert run_through(QueryEngine(catalogue).summing(unix=UNIX)) == ()
    alice, bob, carol = Provider("a", 20001), Provider("b", 20002), Provider("c", 20003, "ibank")
    publish(catalogue, alice, (A100,), ())
    publish(catalogue, bob, (A100, CARD))
    publish(catalogue, carol, (CARD,))
    for signed in alice.own.sign_status([StatusRow(0, 2000, 1, (3500,)), StatusRow(1, 8000, 1)], unix=UNIX):
        catalogue.apply_status(signed, unix=UNIX)
    industry, region = run_through(QueryEngine(catalogue).summing(unix=UNIX + 1))
    assert (industry.node, region.node) == ("cn.ibank", "cn.r3301")
    assert (industry.providers, industry.connected, industry.identifiers, industry.hosts) == (1, 0, 1, 1)
    assert industry.peak_gops == (("fp16", 2_000), ("int8", 10_000))
    assert (region.providers, region.connected, region.identifiers, region.hosts) == (2, 1, 3, 3)
    assert (region.cores_milli, region.cores_told_milli, region.cores_free_milli) == (24_000, 16_000, 10_000)
    assert region.accelerators == 18
    assert (region.hosts_told, region.accelerators_told_milli, region.accelerators_free_milli) == (
        2,
        8_000,
        3_500,
    )
    whole = sum_up((industry, region))
    assert (whole.node, whole.providers, whole.hosts, whole.accelerators) == ("all", 3, 4, 20)
    assert dict(whole.peak_gops)["int8"] == 20_000
    assert region.peak_gops == (("fp16", 16 * 312_000 + 2_000), ("fp64", 16 * 9_700), ("int8", 10_000))
    assert region.head_issued == UNIX
    for signed in alice.own.sign_status([StatusRow(0, 1 << 60, 1, (2_000_000,))], unix=UNIX + 1):
        catalogue.apply_status(signed, unix=UNIX + 1)
    boasting = run_through(QueryEngine(catalogue).summing(unix=UNIX + 1))[1]
    assert (boasting.cores_free_milli, boasting.cores_told_milli) == (8_000, 8_000)
    assert (boasting.accelerators_free_milli, boasting.accelerators_told_milli) == (8_000, 8_000)
    (_, later) = run_through(QueryEngine(catalogue).summing(unix=UNIX + 5000))
    assert (later.connected, later.cores_told_milli) == (0, 0)
