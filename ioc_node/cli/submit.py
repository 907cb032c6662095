"""`submit`: hand a task or a workflow to this node, which places it, sees it through and settles it."""

from pathlib import Path

import click
import trio
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import print_json, short, stdout, with_home
from ioc_node.cli.outcome import require_complete, result_facts
from ioc_node.cli.story import follow_on
from ioc_node.client import open_remote
from ioc_node.tasks.definition import TaskSpec
from ioc_wire.tasks import format_task_id


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--follow", "-f", is_flag=True, help="Stay until it has ended and show how it goes.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Write its outputs here (with --follow)."
)
@with_home
def submit(home: Path, file: Path, follow: bool, output: Path | None, as_json: bool) -> None:
    """Submit the task or workflow in FILE (TOML or JSON) and print its ID.

    Without --follow the node goes on by itself: see `ioc-node tasks`, `logs`, `result`.
    """
    if output is not None and not follow:
        raise click.UsageError("--output needs --follow; or fetch the outputs later with `ioc-node result`")
    spec = TaskSpec.load(file)
    trio.run(_submit, home, spec, follow, output, as_json)


async def _submit(home: Path, spec: TaskSpec, follow: bool, output: Path | None, as_json: bool) -> None:
    async with open_remote(home) as node:
        task = await node.submit(spec)
        name = format_task_id(task)
        if not follow:
            if as_json:
                print_json({"task": name, "name": spec.definition.name, "workflow": spec.is_workflow})
            else:
                stdout().print(name, soft_wrap=True)
            return
        screen = Console(stderr=True, highlight=False) if as_json else stdout()
        screen.print(f"submitted {spec.definition.name} as {name}", soft_wrap=True, markup=False)
        try:
            await follow_on(screen, node, task)
        except KeyboardInterrupt:
            screen.print(f"it goes on without you: ioc-node logs {short(name)} --follow", markup=False)
            raise
        ended: api.Result = await node.result(task, folder=output)
        if as_json:
            print_json(result_facts(ended))
        else:
            for path in ended.files:
                screen.print(f"wrote {path}", soft_wrap=True, markup=False)
    require_complete(ended, spec.definition.name)
