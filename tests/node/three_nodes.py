"""A core node, a provider and a consumer in the test's own loop, and tasks for them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest
import trio
import trio.lowlevel

import ioc_node
from ioc_node.errors import (
    TaskFailed,
)
from tests.node.conftest import MakeHome

HELLO = Path(__file__).parents[2] / "examples" / "hello.toml"
MIB = 1 << 20


def one_line(error: BaseException) -> str:
    line = str(error)
    assert line
    assert "\n" not in line
    return line


class Three:
    """A core node, a provider and a consumer that know each other."""

    def __init__(self, core: ioc_node.Node, provider: ioc_node.Node, consumer: ioc_node.Node) -> None:
        self.core = core
        self.provider = provider
        self.consumer = consumer


@asynccontextmanager
async def open_three(
    make_home: MakeHome, *, provider: Mapping[str, object] = MappingProxyType({}), **consumer: object
) -> AsyncIterator[Three]:
    core_config = make_home("core", "regional")
    first = (f"127.0.0.1:{core_config.port}",)
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(ioc_node.open_node(core_config))
        serving = await stack.enter_async_context(
            ioc_node.open_node(make_home("provider", "provider", bootstrap=first, **provider))
        )
        node = await stack.enter_async_context(
            ioc_node.open_node(make_home("consumer", "consumer", bootstrap=first, **consumer))
        )
        with trio.fail_after(10):
            await node.wait_joined()
            assert serving.provider is not None
            await serving.provider.home.wait_published()
            while not (await node.find(ioc_node.Demand(cores=1, runtimes="wasm"))).found.offers:
                await trio.sleep(0.05)
        yield Three(core, serving, node)


async def failed(node: ioc_node.Node, spec: ioc_node.TaskSpec, *, seconds: float = 5) -> str:
    task = await node.submit(spec)
    with trio.fail_after(seconds), pytest.raises(TaskFailed) as caught:
        await task.result()
    return one_line(caught.value)


def changed(spec: ioc_node.TaskSpec, **fields: object) -> ioc_node.TaskSpec:
    return ioc_node.TaskSpec.of(msgspec.structs.replace(spec.definition, **fields), folder=spec.folder)
