"""The demonstration: the main job from end to end, on a local network, with real input and a picture that is checked.

Each step says what it does and shows what came of it; `facts` collects the same for programs.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import plain, print_json, span_text, stdout
from ioc_node.cli.finding import found_facts
from ioc_node.cli.identifiers import resolved_facts
from ioc_node.cli.receipts import render_receipts
from ioc_node.cli.story import follow_on
from ioc_node.client import RemoteNode
from ioc_node.errors import TaskFailed, UsageError
from ioc_node.tasks.definition import TaskSpec
from ioc_testnet import demo_view as view
from ioc_testnet.commands import print_usage, render_nodes, testnet_facts
from ioc_testnet.interrupts import run_in_order
from ioc_testnet.network import Testnet, TestnetNode, alive, default_folder, open_testnet, read_state
from ioc_testnet.terrain import (
    Elevation,
    Pixels,
    compare,
    cut_tiles,
    load_elevation,
    read_png,
    reference_picture,
    workflow_document,
)
from ioc_testnet.topology import Topology, load_topology
from ioc_wire.market import Demand, demand_of
from ioc_wire.tasks import WorkflowDefinition

TILES_MAX: Final = 256
PICTURE: Final = "terrain.png"


def run_demo(folder: Path | None, topology: str, *, tiles: str, out: Path, keep: bool, as_json: bool) -> int:
    """Run the demonstration and return the exit code. Whatever happens, nothing stays behind (but with `keep`)."""
    plan = load_topology(topology)
    if not plan.role_count("consumer") or not plan.role_count("provider"):
        raise UsageError(f"topology {plan.name}: the demo needs a consumer and a provider")
    rows, cols = parse_tiles(tiles)
    elevation = load_elevation()
    if out.is_dir():
        raise UsageError(f"--out: {out} is a folder; name the file to write")
    demo = Demo(stdout(), plan, elevation, rows, cols, out.absolute())
    if keep and folder is None and not _is_taken(default_folder()):
        folder = default_folder()

    async def program() -> None:
        async with open_testnet(plan, folder=folder, detached=keep, start=False) as net:
            await demo.run(net)
            if keep:
                net.keep = True
                print_usage(demo.console, net, detached=True)

    code = run_in_order(program)
    if code:
        return code
    demo.console.print(
        "" if keep else "The network has ended: no process, no port, no temporary folder is left.",
        style="dim",
    )
    if as_json:
        print_json(demo.facts)
    return 0


def parse_tiles(text: str) -> tuple[int, int]:
    """`4x4` as rows and columns. Raises `UsageError`."""
    match = re.fullmatch(r"(\d{1,3})x(\d{1,3})", text)
    rows, cols = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= rows * cols <= TILES_MAX:
        raise UsageError(
            f"--tiles: expected ROWSxCOLUMNS such as 4x4, at most {TILES_MAX} tiles, not {text!r}"
        )
    return rows, cols


def _is_taken(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        return any(alive(read_state(folder)))
    except UsageError:
        return True


class Demo:
    """The steps, in the order in which they are shown."""

    def __init__(
        self, console: Console, plan: Topology, elevation: Elevation, rows: int, cols: int, out: Path
    ) -> None:
        self.console = console
        self.facts: dict[str, Any] = {}
        self._plan = plan
        self._elevation = elevation
        self._rows, self._cols = rows, cols
        self._out = out
        self._step = 0

    async def run(self, net: Testnet) -> None:
        """All steps, from founding the network to the picture. Raises `TaskFailed` where the picture is wrong."""
        began = time.monotonic()
        await self._start_network(net)
        await self._register(net)
        consumer = net.with_role("consumer")[0]
        async with consumer.client() as client:
            await self._resolve(net, client)
            spec = self._cut(net)
            await self._find(client, len(net.with_role("provider")), spec)
            ended = await self._run_job(net, client, spec)
            await self._show_transfers(net)
            await self._show_tasks(net, client, ended)
            await self._show_receipts(client)
            await trio.to_thread.run_sync(self._check_picture, ended)
        self.facts["seconds"] = round(time.monotonic() - began, 3)
        self.console.print(
            f"\nDone in {span_text(self.facts['seconds'])}. The picture: ", end="", style="bold"
        )
        self.console.print(plain(self._out), soft_wrap=True)

    @contextmanager
    def _doing(self, title: str, text: str = "") -> Iterator[None]:
        """Announce a step, and say that it goes on."""
        self._step += 1
        self.console.print(f"\n[bold cyan]{self._step}. {title}[/]")
        if text:
            self.console.print(plain(text), style="dim")
        yield

    async def _start_network(self, net: Testnet) -> None:
        counts = ", ".join(
            f"{self._plan.role_count(role)} {role}" for role in view.ROLES if self._plan.role_count(role)
        )
        text = (
            f"{counts}: each a process of its own with a fresh key, a delegation from the root keys down, "
            "and one bootstrap address."
        )
        with self._doing("Start a network", text):
            began = time.monotonic()
            with view.counting(self.console, len(net.nodes), "listening") as count:
                await net.start(started=count)
            with view.counting(self.console, len(net.nodes), "joined") as count:
                await net.wait_joined(joined=count)
            render_nodes(self.console, net)
            self.console.print(f"{len(net.nodes)} nodes joined in {span_text(time.monotonic() - began)}")
        self.facts["nodes"] = testnet_facts(net)["nodes"]

    async def _register(self, net: Testnet) -> None:
        with self._doing(
            "Register identifiers", "Every provider signs a record per identifier and stores it in the DHT."
        ):
            registered: list[tuple[TestnetNode, api.RegisteredRow]] = []
            for node in net.with_role("provider"):
                async with node.client() as client:
                    registered += [(node, row) for row in await client.register()]
            view.render_registered(self.console, registered)
        refused = [row for _, row in registered if not row.stored]
        if refused:
            raise TaskFailed(
                f"{refused[0].cid} was not stored: {'; '.join(refused[0].refused) or 'nobody took it'}"
            )
        self.facts["identifiers"] = [row.cid for _, row in registered]

    async def _resolve(self, net: Testnet, client: RemoteNode) -> None:
        cid = net.with_role("provider")[0].saved.identifiers[-1]
        with self._doing("Resolve one identifier", f"The consumer asks the DHT for {cid}"):
            found = await client.resolve(cid)
            view.render_resolved(self.console, net, found)
        facts = resolved_facts(found)
        self.facts["resolved"] = {
            name: facts[name] for name in ("cid", "holder", "source", "hops", "asked", "elapsed_ms")
        }

    def _cut(self, net: Testnet) -> TaskSpec:
        rows, cols = self._elevation.heights.shape
        text = (
            f"{rows} x {cols} heights (Jacksboro fault, USGS; shipped with matplotlib) become "
            f"{self._rows * self._cols} tiles: one task shades each, one more joins them."
        )
        with self._doing("Cut the elevation model", text):
            folder = net.folder / "job"
            folder.mkdir()
            tiles = cut_tiles(self._elevation, self._rows, self._cols)
            for tile in tiles:
                (folder / tile.name).write_bytes(tile.data)
            view.render_cut(self.console, tiles)
        document = msgspec.to_builtins(workflow_document(tiles))
        return TaskSpec.parse(document, folder=folder, source="terrain")

    async def _find(self, client: RemoteNode, providers: int, spec: TaskSpec) -> None:
        assert isinstance(spec.definition, WorkflowDefinition)
        task = spec.definition.tasks[0]
        demand: Demand = demand_of(task)
        with self._doing("Ask who could do it", view.demand_text(demand, task.policy)):
            found = await client.find(demand, policy=task.policy)
            for _ in range(100):
                if len(found.found.offers) >= providers:
                    break
                await trio.sleep(0.1)
                found = await client.find(demand, policy=task.policy)
            view.render_offers(self.console, found)
        if not found.found.offers:
            raise TaskFailed("nobody offers what a shading task needs")
        self.facts["offers"] = found_facts(found)["offers"]

    async def _run_job(self, net: Testnet, client: RemoteNode, spec: TaskSpec) -> api.Result:
        with self._doing(
            "Run the job",
            "Tiles go to the providers, WebAssembly shades them in a sandbox, shades go on to the joiner.",
        ):
            began = time.monotonic()
            workflow = await client.submit(spec)
            if self.console.is_terminal:
                await follow_on(self.console, client, workflow, logs=False)
            else:
                await view.follow_briefly(self.console, client, workflow)
            ended = await client.result(workflow, folder=net.folder / "result")
            self.console.print(
                f"the workflow ended as {ended.state} after {span_text(time.monotonic() - began)}"
            )
        rows = await client.workflow(workflow)
        self.facts["tasks_total"] = len(rows)
        self.facts["tasks_complete"] = sum(row.state == "COMPLETE" for row in rows)
        if ended.state != "COMPLETE":
            view.render_tasks(self.console, rows)
            raise TaskFailed(f"the workflow ended as {ended.state}: {ended.reason}")
        return ended

    async def _show_transfers(self, net: Testnet) -> None:
        moved: list[tuple[TestnetNode, api.TransferRow]] = []
        for node in net:
            async with node.client() as client:
                moved += [(node, row) for row in await client.transfers()]
        with self._doing("What moved"):
            view.render_transfers(self.console, net, moved)
        self.facts["bytes_moved"] = sum(row.bytes_moved for _, row in moved)

    async def _show_tasks(self, net: Testnet, client: RemoteNode, ended: api.Result) -> None:
        with self._doing("Tasks, their state and place"):
            view.render_tasks(self.console, await client.workflow(ended.task))

    async def _show_receipts(self, client: RemoteNode) -> None:
        with self._doing("Receipts", "Measured and signed by the provider, countersigned by the consumer."):
            found = await client.receipts(verify=True)
            render_receipts(self.console, found, shown=view.ROWS_SHOWN)
        self.facts["receipts_verified"] = sum(not row.fault for row in found.rows)
        bad = [row.fault for row in found.rows if row.fault]
        if bad or len(found.rows) < self.facts["tasks_complete"]:
            raise TaskFailed(
                f"{len(found.rows)} receipts for {self.facts['tasks_complete']} tasks, {len(bad)} bad: {bad[:1]}"
            )

    def _check_picture(self, ended: api.Result) -> None:
        with self._doing(
            "Compare the picture", "The same computation in NumPy, in one piece, pixel by pixel."
        ):
            path = next((Path(file) for file in ended.files if file.endswith(PICTURE)), None)
            if path is None:
                raise TaskFailed(
                    f"the workflow brought no {PICTURE} back, only: {', '.join(ended.files) or 'nothing'}"
                )
            data = path.read_bytes()
            picture: Pixels = read_png(data)
            result = compare(picture, reference_picture(self._elevation))
            if not result.identical:
                raise TaskFailed(
                    f"the picture is wrong: {result.differing} pixels differ from NumPy's, by up to "
                    f"{result.max_difference} of 255"
                )
            write_picture(self._out, data)
            rows, cols = picture.shape[:2]
            self.console.print(f"all {rows * cols:,} pixels ({cols} x {rows}) are the same", style="green")
        self.facts["result_path"] = str(self._out)
        self.facts["result_sha256"] = hashlib.sha256(data).hexdigest()


def write_picture(path: Path, data: bytes) -> None:
    """Write the picture where it was asked for. Raises `UsageError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write the picture to {path}: {error.strerror or error}") from None
