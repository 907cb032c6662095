"""Links between two real endpoints on loopback: requests, streams, notices, flow, failure of one of many."""

import statistics
import time

import pytest
import trio

from ioc_node.errors import PeerUnreachable, PortInUse, UsageError
from ioc_node.runtime.links import LinkSettings
from ioc_wire.errors import Malformed, NotFound, RemoteFault, TooLarge, Unserved
from tests.runtime.link_cases import (
    Answers,
    Ask,
    Count,
    Crash,
    News,
    Number,
    Told,
    Unwanted,
    Wait,
    open_node,
    until,
)


async def test_request_is_answered_both_ways_over_one_link():
    async with open_node(1, roles=("provider",)) as alice, open_node(2, roles=("regional",)) as bob:
        link = await alice.connect(("127.0.0.1", bob.port))
        assert link.peer.key == bob.local.public_key
        assert link.peer.roles == ("regional",)
        assert link.peer.endpoint == ("127.0.0.1", bob.port)
        assert await link.request(Ask("hello"), Told) == Told("hello")
        back = bob.link(alice.local.public_key)
        assert back is not None
        assert back.peer.roles == ("provider",)
        assert back.peer.endpoint == ("127.0.0.1", alice.port)
        assert await back.request(Ask("and back"), Told) == Told("and back")
        assert await alice.connect(("127.0.0.1", bob.port)) is link


async def test_stream_yields_every_item_in_order_and_then_ends():
    async with open_node(1) as alice, open_node(2) as bob:
        link = await alice.connect(("127.0.0.1", bob.port))
        async with link.open_stream(Count(1000), Number) as numbers:
            assert [number.value async for number in numbers] == list(range(1000))
        await until(lambda: link.streams == 0)


@pytest.mark.parametrize(
    ("how", "error", "line"),
    [
        ("wire", NotFound, "no such thing"),
        ("node", RemoteFault, "the disk is full: free some space"),
        ("group", NotFound, "in a group"),
        ("key", RemoteFault, "internal error"),
        ("nothing", RemoteFault, "internal error"),
    ],
)
async def test_failing_answer_ends_its_own_stream_only(how: str, error: type[Exception], line: str):
    async with open_node(1) as alice, open_node(2) as bob:
        link = await alice.connect(("127.0.0.1", bob.port))
        with pytest.raises(error, match=line):
            await link.request(Crash(how))
        assert await link.request(Ask("still there"), Told) == Told("still there")


async def test_unserved_request_wrong_answer_type_and_too_large_message_are_named():
    async with open_node(1) as alice, open_node(2) as bob:
        link = await alice.connect(("127.0.0.1", bob.port))
        with pytest.raises(Unserved, match="Unwanted"):
            await link.request(Unwanted())
        with pytest.raises(Malformed, match="expected Number, got Told"):
            await link.request(Ask("x"), Number)
        with pytest.raises(TooLarge):
            await link.request(Ask("x", bytes(1 << 20)))
        big = bytes(1 << 20)[:-100]
        assert (await link.request(Ask("fits", big), Told)).data == big


async def test_leaving_a_stream_or_a_request_cancels_its_answer_at_the_peer():
    answers = Answers()
    async with open_node(1) as alice, open_node(2, answers=answers) as bob:
        link = await alice.connect(("127.0.0.1", bob.port))
        async with link.open_stream(Count(10**9), Number) as numbers:
            async for number in numbers:
                if number.value == 100:
                    break
        await answers.until(lambda seen: "count 1000000000" in seen.cancelled)
        with trio.move_on_after(0.05):
            await link.request(Wait("w"))
        await answers.until(lambda seen: "w" in seen.cancelled)
        assert await link.request(Ask("ok"), Told) == Told("ok")
        peer = bob.link(alice.local.public_key)
        assert peer is not None
        await until(lambda: peer.streams == 0)
        assert peer._budget.bytes_held == link._budget.bytes_held == 0


async def test_slow_consumer_holds_its_own_stream_and_blocks_nobody():
    answers = Answers()
    settings = LinkSettings(stream_credit=8)
    async with open_node(1, settings=settings) as alice, open_node(2, answers=answers) as bob:
        link = await alice.connect(("127.0.0.1", bob.port))
        async with link.open_stream(Count(1000, size=10_000), Number) as slow:
            for _ in range(200):
                assert await link.request(Ask("quick"), Told) == Told("quick")
            async with link.open_stream(Count(500), Number) as other:
                assert len([number async for number in other]) == 500
            assert answers.sent == 500 + 8
            assert len([number async for number in slow]) == 1000


async def test_thousands_of_requests_share_a_link():
    async with open_node(1) as alice, open_node(2) as bob:
        link = await alice.connect(("127.0.0.1", bob.port))

        async def ask(start: int) -> None:
            for number in range(start, start + 20):
                assert await link.request(Ask(str(number)), Told) == Told(str(number))

        async with trio.open_nursery() as nursery:
            for start in range(0, 4_000, 20):
                nursery.start_soon(ask, start)


async def test_notices_arrive_in_order_and_a_failing_taker_loses_only_its_own():
    answers = Answers()
    async with open_node(1) as alice, open_node(2, answers=answers) as bob:
        link = await alice.connect(("127.0.0.1", bob.port))
        for value in (1, -2, 3):
            assert link.notify_nowait(News(value))
        await answers.until(lambda seen: seen.news == [1, 3])
        sent = [link.notify_nowait(News(value)) for value in range(500)]
        assert False in sent  # the queue is bounded, and says so at once
        await answers.until(lambda seen: seen.news[-1] == sent.index(False) - 1)


async def test_broken_link_ends_requests_and_streams_with_one_clear_error():
    answers = Answers()
    async with open_node(1) as alice:
        async with open_node(2, answers=answers) as bob:
            link = await alice.connect(("127.0.0.1", bob.port))
            caught: list[BaseException] = []

            async def wait() -> None:
                with pytest.raises(PeerUnreachable, match="broke: closed by the peer") as error:
                    await link.request(Wait("w"))
                caught.append(error.value)

            nursery: trio.Nursery
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await answers.until(lambda seen: "w" in seen.waiting)
                back = bob.link(alice.local.public_key)
                assert back is not None
                await back.aclose()
            assert len(caught) == 1
        with pytest.raises(PeerUnreachable, match="is down"):
            await link.request(Ask("x"))
        assert not link.notify_nowait(News(1))
        assert alice.link(link.peer.key) is None
        with pytest.raises(PeerUnreachable, match="refused"):
            await alice.connect(("127.0.0.1", bob.port))


async def test_link_events_are_told_once_each():
    async with open_node(1) as alice, open_node(2) as bob:
        up: list[bytes] = []
        down: list[bytes] = []
        bob.on_link_up(lambda link: up.append(link.peer.key))
        bob.on_link_up(lambda link: {}["a bug in a listener"])
        bob.on_link_down(lambda link: down.append(link.peer.key))
        link = await alice.connect(("127.0.0.1", bob.port))
        await link.request(Ask("x"))
        assert (up, down) == ([alice.local.public_key], [])
        await link.aclose()
        await until(lambda: down == [alice.local.public_key])


async def test_port_in_use_and_unknown_host_are_one_clear_line():
    async with open_node(1) as alice:
        with pytest.raises(
            PortInUse, match=f"TCP port {alice.port} on 127.0.0.1 cannot be used: Address already"
        ):
            async with open_node(2, port=alice.port):
                pass
    with pytest.raises(UsageError, match=r"cannot listen on no\.such\.host\.invalid"):
        async with open_node(2, host="no.such.host.invalid"):
            pass


async def test_latency_of_a_request_and_of_connecting():
    async with open_node(1) as alice, open_node(2) as bob:
        begun = time.perf_counter()
        link = await alice.connect(("127.0.0.1", bob.port))
        connect_ms = (time.perf_counter() - begun) * 1e3
        taken = []
        for _ in range(500):
            begun = time.perf_counter()
            await link.request(Ask("x"))
            taken.append((time.perf_counter() - begun) * 1e3)
        print(f"link request p50 {statistics.median(taken):.2f} ms, connect {connect_ms:.1f} ms")  # noqa: T201
        assert statistics.median(taken) < 20
