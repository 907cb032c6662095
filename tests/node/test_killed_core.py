"""A core node killed (SIGKILL) while hosts come, change and go: each time it reopens what fits together, and ends with
the very head that the provider signed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

import ioc_node
from ioc_node import api
from ioc_node.client import open_remote
from ioc_node.config import NodeConfig
from ioc_node.core.replica import head_hash
from ioc_node.errors import PeerUnreachable, UsageError
from ioc_wire.errors import Busy
from tests.node.conftest import MakeHome
from tests.testnet.command import NODE

KILLS = 6
HOSTS = 400


@contextmanager
def running(config: NodeConfig, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The node's own process, killed at the end."""
    with log.open("ab") as told:
        process = subprocess.Popen(
            [*NODE, "--home", str(config.home), "up"], stdout=subprocess.DEVNULL, stderr=told
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


async def status_of(config: NodeConfig) -> api.NodeStatus:
    """Once it answers."""
    while True:
        try:
            async with open_remote(config.home) as node:
                return await node.status()
        except (PeerUnreachable, Busy):
            await trio.sleep(0.05)


def write_inventory(file: Path, chance: random.Random) -> None:
    lines = ["path,cores,memory_mib"]
    lines += [
        f"gen/3301/az1/x{n},{chance.randrange(1, 65)},65536" for n in range(HOSTS) if chance.random() < 0.9
    ]
    file.with_suffix(".new").write_text("\n".join(lines) + "\n")
    file.with_suffix(".new").replace(file)


async def follow(node: ioc_node.Node, collector: api.AddCollector) -> None:
    """Once it has started."""
    while True:
        try:
            await node.add_collector(collector)
        except UsageError:
            await trio.sleep(0.05)
        else:
            return


async def rewrite_for_ever(file: Path, chance: random.Random, stop: trio.Event) -> None:
    while not stop.is_set():
        write_inventory(file, chance)
        await trio.sleep(0.15)


@pytest.mark.slow
async def test_a_core_node_killed_under_load_holds_the_providers_head(
    make_home: MakeHome, tmp_path: Path
) -> None:
    chance = random.Random(11)
    core = make_home("core", "regional")
    (core.home / "config.toml").write_text(f'role = "regional"\nport = {core.port}\n')
    provider = make_home("provider", "provider", bootstrap=(f"127.0.0.1:{core.port}",))
    file, log, stop = tmp_path / "hosts.csv", tmp_path / "core.log", trio.Event()
    write_inventory(file, chance)
    with trio.fail_after(240):
        async with ioc_node.open_node(provider) as node, trio.open_nursery() as nursery:
            options = json.dumps({"file": str(file)}).encode()
            await follow(node, api.AddCollector("inventory", 0.1, options))
            nursery.start_soon(rewrite_for_ever, file, chance, stop)
            for _ in range(KILLS):
                with running(core, log) as process:
                    while (await status_of(core)).catalogue_records < HOSTS // 2:
                        await trio.sleep(0.05)
                    await trio.sleep(chance.random() * 1.5)
                    os.kill(process.pid, signal.SIGKILL)
            stop.set()
            assert node.provider is not None
            own = node.provider.home.own
            with running(core, log):
                began = time.monotonic()
                while True:
                    status = await status_of(core)
                    assert own.head is not None
                    mark = own.key + own.seq.to_bytes(8, "big") + head_hash(own.head)
                    if status.catalogue_digest == hashlib.sha256(mark).digest():
                        break
                    assert time.monotonic() - began < 60
                    await trio.sleep(0.1)
            assert status.catalogue_records == len(own.records())
            nursery.cancel_scope.cancel()
    told = log.read_text()
    assert "stored_catalogue_dropped" not in told
    assert "corrupt" not in told
    assert "Traceback" not in told
