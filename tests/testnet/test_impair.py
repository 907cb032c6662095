"""The bad line: what it does to datagrams is what it was told to, from one seed, within its bounds."""

import json
import random
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from ioc_node.errors import UsageError
from ioc_testnet.impair import CLIENTS_MAX, Impairment, Lane, open_impaired
from ioc_testnet.impair_view import parse_address

from .command import TESTNET

COUNT = 4000


def fates(
    line: Impairment, *, gap_seconds: float = 0.001, size: int = 1000
) -> tuple[Lane, list[list[float]]]:
    lane = Lane(line, "up")
    found = []
    for number in range(COUNT):
        due = lane.take(size, number * gap_seconds)
        for _ in due:
            lane.leave(size)
        found.append(due)
    return lane, found


def test_loss_and_duplicates_come_in_their_shares() -> None:
    lane, found = fates(Impairment(loss=0.05, duplicate=0.1))
    copies = Counter(map(len, found))
    assert copies[0] == lane.counters.lost == pytest.approx(0.05 * COUNT, rel=0.2)
    assert copies[2] == lane.counters.duplicated == pytest.approx(0.1 * 0.95 * COUNT, rel=0.2)
    assert copies[1] + copies[2] == lane.counters.passed


def test_delay_and_jitter_stay_within_their_bounds_and_reorder() -> None:
    _, found = fates(Impairment(delay_ms=50, jitter_ms=10))
    late = [due[0] - number * 0.001 for number, due in enumerate(found)]
    assert 0.05 <= min(late) < max(late) <= 0.0601
    arrivals = [due[0] for due in found]
    assert arrivals != sorted(arrivals)


def test_some_are_held_back() -> None:
    _, found = fates(Impairment(reorder=0.2, reorder_ms=7))
    late = Counter(round(due[0] - number * 0.001, 6) for number, due in enumerate(found))
    assert set(late) == {0.0, 0.007}
    assert late[0.007] == pytest.approx(0.2 * COUNT, rel=0.2)


def test_the_rate_is_kept_to_the_bit() -> None:
    _, found = fates(Impairment(rate_mbit_s=8), gap_seconds=0)
    assert [due[0] for due in found] == pytest.approx([(number + 1) * 0.001 for number in range(COUNT)])


def test_larger_datagrams_than_the_path_carries_vanish() -> None:
    lane, found = fates(Impairment(mtu_bytes=999))
    assert not any(found)
    assert lane.counters.too_large == COUNT


def test_the_queue_is_bounded() -> None:
    lane = Lane(Impairment(delay_ms=1000, queue_bytes_max=100_000), "up")
    held = sum(len(lane.take(1000, 0.0)) for _ in range(1000))
    assert held * 1000 <= 100_000
    assert lane.counters.overflowed == 1000 - held
    lane.leave(1000)
    assert len(lane.take(1000, 0.0)) == 1


def test_the_same_seed_gives_the_same_line() -> None:
    line = Impairment(loss=0.1, jitter_ms=3, reorder=0.1, duplicate=0.1)
    assert fates(line)[1] == fates(line)[1]
    assert fates(line)[1] != fates(Impairment(loss=0.1, jitter_ms=3, reorder=0.1, duplicate=0.1, seed=2))[1]


@pytest.mark.parametrize(
    "wrong", [{"loss": 1.1}, {"loss": -0.1}, {"delay_ms": -1}, {"jitter_ms": float("nan")}]
)
def test_an_impossible_line_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Impairment(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "127.0.0.1", "localhost:1", "127.0.0.1:x", "127.0.0.1:70000", ":1"])
def test_an_address_is_numeric(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_address(text)
    assert parse_address("[::1]:80") == ("::1", 80)


@asynccontextmanager
async def echoing() -> AsyncIterator[tuple[int, list[tuple[str, int]]]]:
    """A port that says everything back, and whom it heard."""
    heard: list[tuple[str, int]] = []
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))

        async def echo() -> None:
            while True:
                data, address = await sock.recvfrom(65_535)
                heard.append(address)
                await sock.sendto(data, address)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            yield sock.getsockname()[1], heard
            nursery.cancel_scope.cancel()


async def test_datagrams_go_there_and_back_late() -> None:
    async with (
        echoing() as (port, heard),
        open_impaired(("127.0.0.1", port), Impairment(delay_ms=20)) as line,
    ):
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, trio.fail_after(10):
            await sock.connect(("127.0.0.1", line.port))
            began = trio.current_time()
            for size in (0, 1, 1452, 65_507):
                data = random.Random(size).randbytes(size)
                await sock.send(data)
                assert await sock.recv(65_535) == data
            assert trio.current_time() - began >= 4 * 0.04
            assert len(set(heard)) == 1
            line.rebind()
            await sock.send(b"from elsewhere")
            assert await sock.recv(100) == b"from elsewhere"
            assert len(set(heard)) == 2
    assert line.up.counters.passed == line.down.counters.passed == 5


async def test_clients_are_bounded() -> None:
    async with echoing() as (port, heard), open_impaired(("127.0.0.1", port), Impairment()) as line:
        with trio.fail_after(10):
            for _ in range(CLIENTS_MAX + 10):
                with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    await sock.sendto(b"x", ("127.0.0.1", line.port))
                    await sock.recvfrom(10)
        assert len(line._backs) == CLIENTS_MAX
    assert len(set(heard)) >= CLIENTS_MAX


def test_the_command_carries_until_interrupted() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.settimeout(10)
        command = [*TESTNET, "impair", f"127.0.0.1:{target.getsockname()[1]}", "--loss", "0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            port = int(process.stderr.readline().split()[1].rpartition(":")[2])
            target.sendto(b"hello", ("127.0.0.1", port))
            assert target.recvfrom(100)[0] == b"hello"
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGINT
    assert json.loads(out.splitlines()[-1])["up"]["passed"] == 1


def test_the_command_refuses_nonsense_in_one_line() -> None:
    done = subprocess.run(
        [*TESTNET, "impair", "nowhere"], check=False, capture_output=True, text=True, timeout=30
    )
    assert done.returncode not in (0, 1)
    assert "HOST:PORT" in done.stderr
    assert "Traceback" not in done.stderr
