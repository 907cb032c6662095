"""Offloads in whole nodes: what the route of an offer says is what a blob then takes."""

from pathlib import Path

import ioc_node
from ioc_node.config import BulkConfig
from tests.node.conftest import MakeHome
from tests.node.three_nodes import MIB, Three, open_three

UCX = {"interfaces": ["lo"], "transports": ["tcp"]}


async def route_and_road(nodes: Three, folder: Path) -> tuple[str, str]:
    """The transport of the provider's offer, and how a blob came from it."""
    found = await nodes.consumer.find(ioc_node.Demand(cores=1, runtimes="wasm"))
    (route,) = found.routes
    data = bytes(range(256)) * (9 * MIB // 256)
    (folder / "data").write_bytes(data)
    added = await nodes.provider.add(folder / "data")
    got = await nodes.consumer.get(added.blob, folder / "copy")
    assert (folder / "copy").read_bytes() == data
    return route.partition("; ")[2], f"{got.transport} ({got.reason})"


async def test_shared_memory_is_the_route_and_the_road(make_home: MakeHome, tmp_path: Path) -> None:
    async with open_three(make_home) as nodes:
        route, road = await route_and_road(nodes, tmp_path)
    assert route == "shm (same host)"
    assert road == "shm (same host, shared)"


async def test_nothing_in_common_means_quic(make_home: MakeHome, tmp_path: Path) -> None:
    async with open_three(make_home, bulk=BulkConfig(offloads=())) as nodes:
        route, road = await route_and_road(nodes, tmp_path)
    assert route == "quic/qh3 (no offload in common)"
    assert road == "quic/qh3 (shm: not here)"


async def test_ucx_is_the_road_where_both_ends_have_it(make_home: MakeHome, tmp_path: Path) -> None:
    bulk = BulkConfig(offloads=("ucx",), offload_options={"ucx": UCX})
    async with open_three(make_home, provider={"bulk": bulk}, bulk=bulk) as nodes:
        route, road = await route_and_road(nodes, tmp_path)
    assert route == "ucx (both ends have it)"
    assert road == "ucx (both ends have it, tcp/lo)"


async def test_a_node_runs_without_an_offload_that_cannot_be_used(
    make_home: MakeHome, tmp_path: Path
) -> None:
    bulk = BulkConfig(offloads=("telepathy", "ucx"), offload_options={"ucx": {"interfaces": ["nonesuch0"]}})
    async with open_three(make_home, bulk=bulk) as nodes:
        _, road = await route_and_road(nodes, tmp_path)
        told = {each.about: each.text for each in nodes.consumer.status().warnings}
        assert nodes.provider.status().offloads == ("shm: same host",)
    assert road == "quic/qh3 (shm: not here)"
    assert told["offload telepathy"].startswith("no offload of that name is installed; there are ")
    assert told["offload ucx"].startswith(
        "bulk.offload_options.ucx: no interface nonesuch0 with an IPv4 address"
    )
