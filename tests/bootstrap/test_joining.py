"""Joining: the order of sources, back-off of each, words for `status`, and never giving up (in virtual time)."""

import math
import random

import pytest
import trio
from trio.testing import MockClock

from ioc_bootstrap.addresses import Address, BadAddress, parse_address
from ioc_bootstrap.joining import Bootstrapper, DialFailed, Joining, PeerSource, peer_sources

A, B, C = (parse_address(f"10.0.0.{n}:4600") for n in (1, 2, 3))


class Remembered:
    def __init__(self, *peers: str) -> None:
        self.peers = list(peers)
        self.saved: list[tuple[str, bytes, int]] = []

    def load_peers(self) -> list[tuple[str, bytes]]:
        return [(text, bytes(32)) for text in self.peers]

    def save_peer(self, address: str, key: bytes, seen: int) -> None:
        self.saved.append((address, key, seen))


def bootstrapper(*addresses: Address) -> Bootstrapper:
    return Bootstrapper([PeerSource("option", addresses)], random.Random(1))


def test_sources_are_asked_in_order_and_each_address_once():
    sources = peer_sources(
        option=["o:1"],
        config=["c:1", "o:1"],
        network=[Address("n", 1)],
        environment=" e:1, c:1 ,",
        memory=Remembered("m:1", "nonsense", "e:1"),
    )
    assert [source.name for source in sources] == [
        "option",
        "config",
        "network file",
        "environment",
        "remembered",
    ]
    boot = Bootstrapper(sources, random.Random(1))
    assert [address.host for address in boot.addresses] == ["o", "c", "n", "e", "m"]
    assert [boot.next_due(0.0) for _ in range(6)] == [*boot.addresses, None]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"option": ["x"]}, "--bootstrap: 'x' has no port"),
        ({"config": ["x:0"]}, "bootstrap in config.toml: 'x:0': port 0"),
        ({"environment": "a:1,x"}, "IOC_BOOTSTRAP: 'x' has no port"),
    ],
)
def test_bad_address_names_its_source(options: dict[str, list[str]], line: str):
    with pytest.raises(BadAddress, match=line):
        peer_sources(**options)  # type: ignore[arg-type]


def test_pauses_double_with_jitter_up_to_a_minute_for_each_address_alone():
    boot = bootstrapper(A, B)
    now = 0.0
    pauses = []
    for _ in range(12):
        while boot.next_due(now) is None:
            now = boot.deadline()
        boot.failed(A, "refused", now)
        boot._targets[B].due = math.inf
        pauses.append(boot.deadline() - now)
    for n, pause in enumerate(pauses):
        longest = min(60.0, 0.5 * 2**n)
        assert longest / 2 <= pause <= longest
    assert len({round(pause, 3) for pause in pauses[-4:]}) == 4
    boot._targets[B].due = now
    assert boot.next_due(now) == B


def test_state_in_words():
    assert bootstrapper().state(0) == "bootstrap: no peer is known; waiting to be contacted"
    boot = bootstrapper(A, B, C)
    assert boot.state(0) == "bootstrap: trying 3 peers, 0 did not answer so far"
    for _ in range(4):
        for address in (A, B, C):
            boot.failed(address, "Connection refused", 0.0)
    assert boot.state(0) == "bootstrap: 3 peers tried, all down, next try in 3 s (Connection refused)"
    boot.succeeded(B)
    assert boot.state(0) == "bootstrap: joined, 1 of 3 peers reached"
    boot.lost(9.0)
    assert boot.next_due(9.0) == A


async def test_node_joins_by_itself_when_a_peer_returns_after_hours(mock_clock: MockClock):
    mock_clock.autojump_threshold = 0
    returns_at = trio.current_time() + 3 * 3600
    attempts: list[float] = []
    connected: list[Address] = []
    memory = Remembered()

    async def dial(address: Address) -> bytes:
        attempts.append(trio.current_time())
        await trio.sleep(0.1)
        if trio.current_time() < returns_at or address != B:
            raise DialFailed("Connection refused")
        connected.append(address)
        return b"k" * 32

    joining = Joining(
        bootstrapper(A, B, C), dial, lambda: len(connected), memory=memory, clock=lambda: 1234.5
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(joining.run)
        await trio.sleep(60)
        assert "all down, next try in" in joining.state()
        assert not joining.joined.is_set()
        await joining.joined.wait()
        assert trio.current_time() - returns_at < 61
        assert joining.state() == "bootstrap: joined, 1 of 3 peers reached"
        assert memory.saved == [("10.0.0.2:4600", b"k" * 32, 1234)]
        assert len(attempts) < 3 * (20 + 3 * 3600 / 30)
        connected.clear()  # and lost again: it is dialed at once, not after the longest pause
        lost_at = trio.current_time()
        while not connected:
            await trio.sleep(1)
        assert trio.current_time() - lost_at < 10
        nursery.cancel_scope.cancel()


async def test_hanging_peer_does_not_keep_the_others_waiting(mock_clock: MockClock):
    mock_clock.autojump_threshold = 0
    connected: list[Address] = []

    async def dial(address: Address) -> bytes:
        if address != C:
            await trio.sleep_forever()
        connected.append(address)
        return bytes(32)

    joining = Joining(bootstrapper(A, B, C), dial, lambda: len(connected))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(joining.run)
        with trio.fail_after(1):
            await joining.joined.wait()
        nursery.cancel_scope.cancel()
    assert connected == [C]
