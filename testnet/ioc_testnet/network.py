"""A local network of node processes, as a library: started, watched, hurt and ended.

    async with open_testnet() as testnet:
        await testnet["provider-1"].kill()
        async with testnet["consumer-1"].client() as node: ...

Leaving the block ends every process and removes the folder, also after a cancellation, also those that other commands
(`ioc-testnet start`) have started meanwhile. If this process is killed, its nodes end by themselves.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final

import msgspec
import trio

from ioc_node.client import RemoteNode, open_remote
from ioc_node.config import NodeConfig
from ioc_node.errors import NodeError, PeerUnreachable, UsageError
from ioc_testnet.founding import SavedNode, SavedTestnet, found_testnet, saved_node
from ioc_testnet.processes import NodeProcess, end_processes, last_words, spawn_node, start_mark, wait_ready
from ioc_testnet.topology import Topology, load_topology
from ioc_wire.authority import CORE_ROLES
from ioc_wire.errors import WireError
from ioc_wire.market import Demand

STATE_NAME: Final = "testnet.json"
JOIN_SECONDS_MAX: Final = 60.0
POLL_SECONDS: Final = 0.05


class TestnetNode:
    """One node of a local network, running or not."""

    __test__: ClassVar = False  # pytest: not a test

    def __init__(self, testnet: "Testnet", saved: SavedNode) -> None:
        self._testnet = testnet
        self.saved = saved
        self.home = Path(saved.home)
        self.name = saved.name
        self.role = saved.role
        self.port = saved.port
        self._process = NodeProcess(saved.pid, saved.mark)

    @property
    def pid(self) -> int:
        """The process, 0 while the node is down."""
        return self._process.pid if self.alive else 0

    @property
    def alive(self) -> bool:
        return self._process.alive

    @property
    def process(self) -> NodeProcess:
        return self._process

    def client(self) -> AbstractAsyncContextManager[RemoteNode]:
        """Ask the node over its control socket."""
        return open_remote(self.home)

    async def start(self) -> None:
        """Start it and wait until it listens. Raises `UsageError` where it runs, `NodeError` where it cannot."""
        if self.alive:
            raise UsageError(f"{self.name} is running already (pid {self.pid})")
        self._process, ready = spawn_node(self.home, parent_fd=self._testnet.parent_fd)
        self._testnet.save()
        await wait_ready(ready, self.name, self.home)

    async def kill(self) -> None:
        """End it at once (SIGKILL), as a power cut would."""
        self._process.send(signal.SIGKILL)
        await self._process.wait()
        self._testnet.save()

    async def stop(self) -> None:
        """End it in order (SIGTERM)."""
        await end_processes([self._process])
        self._testnet.save()

    def words(self, lines: int = 1) -> str:
        """The end of its log."""
        return last_words(self.home, lines)


class Testnet:
    """The nodes of a local network, by name. Made by `open_testnet` and `attach_testnet`."""

    __test__: ClassVar = False  # pytest: not a test

    def __init__(self, folder: Path, saved: SavedTestnet, parent_fd: int | None) -> None:
        self.folder = folder
        self.parent_fd = parent_fd
        self.topology = saved.topology
        self.keep = False
        """Set it to leave the network up when the block ends."""
        self._saved = saved
        self.nodes = {node.name: TestnetNode(self, node) for node in saved.nodes}

    def __getitem__(self, name: str) -> TestnetNode:
        try:
            return self.nodes[name]
        except KeyError:
            raise UsageError(f"there is no node {name!r}; there are: {', '.join(self.nodes)}") from None

    def __iter__(self) -> Iterator[TestnetNode]:
        return iter(self.nodes.values())

    def with_role(self, role: str) -> list[TestnetNode]:
        return [node for node in self if node.role == role]

    @property
    def core_nodes(self) -> list[TestnetNode]:
        return [node for node in self if node.role in CORE_ROLES]

    async def start(self, *, started: Callable[[TestnetNode], None] = lambda node: None) -> None:
        """Start all nodes side by side; `started` is told of each that listens. Raises the first `NodeError`."""
        failures: list[NodeError] = []

        async def start_one(node: TestnetNode) -> None:
            try:
                await node.start()
            except NodeError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()
            else:
                started(node)

        async with trio.open_nursery() as nursery:
            for node in self:
                nursery.start_soon(start_one, node)
        if failures:
            raise failures[0]

    async def wait_joined(self, *, joined: Callable[[TestnetNode], None] = lambda node: None) -> None:
        """Until every node with a bootstrap peer has joined, every core node's catalogue holds all identifiers that
        it is interested in, and a consumer (or else the last node) can resolve each of them.

        Raises `PeerUnreachable` naming the first that has not within a minute, `NodeError` for one that ended.
        """
        waiting, node = "nobody has joined", next(iter(self))
        with trio.move_on_after(JOIN_SECONDS_MAX) as patience:
            for node in sorted(self, key=lambda node: node.role in CORE_ROLES):
                waiting = f"{node.name} has not joined"
                await self._wait_joined_one(node)
                joined(node)
            waiting = "an identifier cannot be resolved"
            await self._wait_resolvable()
        if patience.cancelled_caught:
            raise PeerUnreachable(
                f"{waiting} within {JOIN_SECONDS_MAX:.0f} s; {node.name} says: {node.words()}"
            )

    def _expected(self, node: TestnetNode) -> int:
        """How many identifiers a core node must hold."""
        if node.role not in CORE_ROLES:
            return 0
        interest = NodeConfig.load(node.home).interest()
        names = (name for each in self for name in each.saved.identifiers)
        return sum(interest.covers_area(name) for name in names)

    async def _wait_joined_one(self, node: TestnetNode) -> None:
        expected = self._expected(node)
        async with node.client() as client:
            while True:
                status = await client.status()
                complete = status.catalogue_records >= expected
                if (status.joined or not node.saved.bootstrap) and complete:
                    return
                await trio.sleep(POLL_SECONDS)
                if not node.alive:
                    raise NodeError(f"{node.name} has ended: {node.words()}")

    async def _wait_resolvable(self) -> None:
        asker = next(iter(self.with_role("consumer")), list(self)[-1])
        left = [identifier for node in self for identifier in node.saved.identifiers]
        async with asker.client() as client:
            while left:
                try:
                    await client.resolve(left[-1])
                    left.pop()
                except WireError:  # not found: servers are still getting to know each other
                    await trio.sleep(POLL_SECONDS)

    async def wait_offered(self, count: int, asked: str) -> None:
        """Until node `asked` is offered `count` resources for the smallest demand."""
        async with self[asked].client() as client:
            with trio.fail_after(JOIN_SECONDS_MAX):
                while True:
                    try:
                        found = await client.find(Demand(), limit=max(count, 1))
                    except (WireError, NodeError):
                        found = None
                    if found is not None and len(found.found.offers) >= count:
                        return
                    await trio.sleep(POLL_SECONDS)

    def save(self) -> None:
        """Write the state file, whole or not at all."""
        nodes = tuple(
            msgspec.structs.replace(node.saved, pid=node.pid, mark=node.process.mark if node.alive else "")
            for node in self
        )
        self._saved = msgspec.structs.replace(self._saved, nodes=nodes)
        write_state(self.folder, self._saved)

    async def end(self) -> None:
        """End every process and remove the folder; not to be interrupted."""
        processes = [node.process for node in self]
        try:
            for node in read_state(self.folder).nodes:  # those that other commands have started
                if all(node.pid != process.pid for process in processes):
                    processes.append(NodeProcess(node.pid, node.mark))
        except UsageError:
            pass  # the state file was not written yet, or is gone
        await end_processes(processes)
        shutil.rmtree(self.folder, ignore_errors=True)


def default_folder() -> Path:
    """Where a network is kept that was given no folder: one per user."""
    return Path(tempfile.gettempdir()) / f"ioc-testnet-{os.geteuid()}"


def write_state(folder: Path, saved: SavedTestnet) -> None:
    temporary = folder / f".{STATE_NAME}.{os.getpid()}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(saved), indent=1))
    temporary.replace(folder / STATE_NAME)


def read_state(folder: Path) -> SavedTestnet:
    """The state file of the network in `folder`. Raises `UsageError` where there is none or it is another's."""
    path = folder / STATE_NAME
    try:
        if path.stat().st_uid != os.geteuid():
            raise UsageError(f"{path} belongs to another user")
        return msgspec.json.decode(path.read_bytes(), type=SavedTestnet)
    except FileNotFoundError:
        raise UsageError(f"no testnet is up in {folder}; start one with `ioc-testnet up`") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{path} cannot be used: {error}") from None


def attach_testnet(folder: Path) -> Testnet:
    """The network that runs in `folder`. Nodes started through it are not tied to this process."""
    return Testnet(folder, read_state(folder), None)


@asynccontextmanager
async def open_testnet(
    topology: Topology | str | Path = "default",
    *,
    folder: Path | None = None,
    detached: bool = False,
    start: bool = True,
) -> AsyncIterator[Testnet]:
    """Found a network in `folder` (a new temporary one), start it, and end it when the block ends.

    `detached` nodes outlive this process if `Testnet.keep` is set by then. Without `start` nothing runs yet.
    """
    if not isinstance(topology, Topology):
        topology = load_topology(topology)
    folder = claim_folder(folder)
    parent_read, parent_write = os.pipe2(os.O_CLOEXEC)
    testnet: Testnet | None = None
    try:
        nodes = tuple(saved_node(node) for node in found_testnet(topology, folder))
        owner = os.getpid()
        saved = SavedTestnet(topology.name, time.time(), owner, start_mark(owner), nodes)
        testnet = Testnet(folder, saved, None if detached else parent_read)
        testnet.save()
        if start:
            await testnet.start()
        yield testnet
    finally:
        os.close(parent_read)
        if testnet is None:
            shutil.rmtree(folder, ignore_errors=True)
        elif not testnet.keep:
            await testnet.end()
        os.close(parent_write)


def claim_folder(folder: Path | None) -> Path:
    """A folder for a new network: `folder` itself if it is free, else `UsageError`; a temporary one for None.

    A folder that a network left behind whose processes are all gone (its parent was killed) is cleared.
    """
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="ioc-testnet-"))
    folder = folder.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not folder.is_dir() or any(folder.iterdir()):
            saved = read_state_or_complain(folder)
            if any(alive(saved)):
                raise UsageError(
                    f"a testnet is up in {folder} already: `ioc-testnet down`, or choose another --dir"
                ) from None
            shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder


def read_state_or_complain(folder: Path) -> SavedTestnet:
    """As `read_state`, in words for somebody who wants to start a network there."""
    try:
        return read_state(folder)
    except UsageError:
        raise UsageError(f"{folder} is not empty and holds no testnet; choose another --dir") from None


def alive(saved: SavedTestnet) -> Iterable[bool]:
    """Whether the owner, and each node, is running."""
    yield bool(saved.owner_mark) and start_mark(saved.owner_pid) == saved.owner_mark
    for node in saved.nodes:
        yield bool(node.mark) and start_mark(node.pid) == node.mark
