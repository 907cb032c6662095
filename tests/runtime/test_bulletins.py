"""Bulletins between real nodes: two core nodes and a consumer, in an open network."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from ioc_node import api
from ioc_node.errors import RequestRefused, UsageError
from ioc_node.node import Node, open_node
from ioc_wire.bulletins import Bulletin
from ioc_wire.signed import verify
from tests.node.conftest import MakeHome, make_home, network_text

__all__ = ["make_home", "network_text"]


def message(title: str, *, about: str = "") -> api.PublishBulletin:
    return api.PublishBulletin(title, "text", about, "warning", 3600)


async def titles(node: Node) -> set[str]:
    return {verify(news.statement, Bulletin).title for news in (await node.list_bulletins()).news}


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(10):
        while not await holds():
            await trio.sleep(0.02)


async def test_everybody_reads_what_core_nodes_publish(make_home: MakeHome) -> None:
    first = make_home("first", "national")
    second = make_home("second", "regional", bootstrap=(f"127.0.0.1:{first.port}",))
    third = make_home("third", "consumer", bootstrap=(f"127.0.0.1:{second.port}",))

    async def both(node: Node, *expected: str) -> None:
        async def holds() -> bool:
            return await titles(node) == set(expected)

        await until(holds)

    async with open_node(first) as one:
        one.publish_bulletin(message("before the others came"))
        async with open_node(second) as two:
            await both(two, "before the others came")  # compared on link up
            two.publish_bulletin(message("told at once"))
            await both(one, "before the others came", "told at once")
            async with open_node(third) as reader:
                with trio.fail_after(10):
                    await reader.wait_joined()
                await both(reader, "before the others came", "told at once")
                with pytest.raises(UsageError, match="consumer node"):
                    reader.publish_bulletin(message("not mine to tell"))
            with pytest.raises(RequestRefused, match="not delegated"):
                two.publish_bulletin(message("of others", about="cn.r3301"))
            with pytest.raises(RequestRefused, match="control character"):
                two.publish_bulletin(message("\x1b[2J"))
            with pytest.raises(RequestRefused, match="title"):
                two.publish_bulletin(message("x" * 121))
    async with open_node(first) as again:  # kept over a restart
        assert await titles(again) == {"before the others came", "told at once"}
