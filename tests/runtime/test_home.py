"""A provider whose home core node is lost: closed, or stopped without a word. It is offered once, as before."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.runtime.gossip_cases import CoreNode, open_core, open_provider, until

HOST = "ioc:cn.r3301.20001/gen/3301/az1/h1"
ROOT = Path(__file__).parents[2]
CHILD = """
import sys, trio
from tests.runtime.gossip_cases import open_core

async def main():
    async with open_core("mallory") as core:
        print(core.links.port, core.contact.key.hex(), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def status_seq(node: CoreNode, provider: bytes) -> int:
    replica = node.gossip.catalogue.replica(provider)
    return replica.status_seq if replica is not None else 0


async def test_a_provider_whose_home_closes_lives_at_its_standby() -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(open_core("alice"))
        bob = await stack.enter_async_context(open_core("bob"))
        bob.links.keep((alice.contact.host, alice.contact.port))
        one = await stack.enter_async_context(open_provider("one", "cn.r3301.20001"))
        one.links.keep((alice.contact.host, alice.contact.port))
        one.put(HOST)
        await until(lambda: one.home.link is not None and one.home.standby is not None)
        home = one.home.link
        assert home is not None
        left = bob if home.peer.key == alice.contact.key else alice
        await until(lambda: left.gossip.catalogue.find(HOST) is not None)
        seq, told = one.own.seq, status_seq(left, one.own.key)
        home.drop_nowait("the test ends it")
        await until(lambda: one.home.link is not None and one.home.link is not home)
        await until(lambda: status_seq(left, one.own.key) > told)
        assert left.gossip.catalogue.records == 1
        replica = left.gossip.catalogue.replica(one.own.key)
        assert replica is not None
        assert replica.held_seq == seq


async def test_a_provider_that_lost_its_state_has_the_last_word() -> None:
    """What it published before it was restored has the higher number, by a clock that was ahead."""
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(open_core("alice"))
        before, after = (f"ioc:cn.r3301.20001/gen/3301/az1/{host}" for host in ("before", "after"))
        async with open_provider("one", "cn.r3301.20001") as lost:
            lost.links.keep((alice.contact.host, alice.contact.port))
            lost.put(before)
            lost.own.commit(unix=time.time() + 100)
            await until(lambda: alice.gossip.catalogue.find(before) is not None)
        one = await stack.enter_async_context(open_provider("one", "cn.r3301.20001"))
        one.put(after)
        one.links.keep((alice.contact.host, alice.contact.port))
        await until(lambda: alice.gossip.catalogue.find(after) is not None)
        assert alice.gossip.catalogue.find(before) is None
        replica = alice.gossip.catalogue.replica(one.own.key)
        assert replica is not None
        assert replica.held_seq == one.own.seq > lost.own.seq
        assert replica.fork is None


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A core node in a process of its own, which says its port and key."""
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    yield process
    process.kill()
    process.communicate()


async def test_a_home_that_is_stopped_without_a_word_is_left(
    child: subprocess.Popen[str], record_property: Callable[[str, object], None]
) -> None:
    assert child.stdout is not None
    port, key = (await trio.to_thread.run_sync(child.stdout.readline)).split()
    async with open_core("alice") as alice, open_provider("one", "cn.r3301.20001") as one:
        await one.links.connect(("127.0.0.1", int(port)), bytes.fromhex(key))
        one.put(HOST)
        await until(lambda: one.home.published_seq == one.own.seq > 0)
        alice.links.keep(("127.0.0.1", int(port)))
        await until(lambda: one.home.standby is not None)
        await until(lambda: status_seq(alice, one.own.key) > 0)
        seq, told = one.own.seq, status_seq(alice, one.own.key)
        os.kill(child.pid, signal.SIGSTOP)
        began = trio.current_time()
        await until(lambda: one.home.link is not None and one.home.link.peer.key == alice.contact.key, 20)
        await until(lambda: status_seq(alice, one.own.key) > told, 20)
        record_property("home_stopped_s", round(trio.current_time() - began, 2))
        assert alice.gossip.catalogue.records == 1
        replica = alice.gossip.catalogue.replica(one.own.key)
        assert replica is not None
        assert replica.held_seq == seq
