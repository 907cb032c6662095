"""`dataset`: folders as signed lists of files, with versions; made, listed, fetched whole or in part, compared."""

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import (
    ask,
    counted,
    moved_text,
    pairs,
    plain,
    show,
    size_text,
    span_text,
    table,
    with_home,
)
from ioc_node.errors import NodeError, UsageError
from ioc_wire.bulk import format_blob_id

LISTED_MAX = 20


class DatasetDiffers(NodeError):
    """A folder does not hold what a dataset says."""

    exit_code = 5


@click.group()
def dataset() -> None:
    """Share folders as signed, versioned datasets, and fetch those of others.

    DATASET is OWNER/NAME (the owner's node ID), NAME for one of your own, or the blob ID of one version.
    """


_path = click.option(
    "--path", default="", metavar="PATH", help="Only this file, or what lies below this folder."
)
_version = click.option("--version", type=click.IntRange(min=1), help="This version instead of the newest.")


@dataset.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--announce/--no-announce", default=True, help="Tell the DHT that this node holds it.")
@with_home
def add(home: Path, name: str, folder: Path, announce: bool, as_json: bool) -> None:
    """Keep all files below FOLDER as the next version of your dataset NAME, signed with this node's key."""
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder" if folder.exists() else f"the folder {folder} does not exist"
        )
    added = ask(home, lambda node: node.add_dataset(name, folder, announce=announce))
    facts = _facts(added.row) | {
        "new": added.new,
        "announced_to": added.announced_to,
        "seconds": round(added.seconds, 6),
    }

    def render(console: Console) -> None:
        console.print(added.row.dataset, soft_wrap=True)
        told = f"announced to {counted(added.announced_to, 'node')}" if announce else "not announced"
        if not added.new:
            told = "nothing has changed"
        console.print(f"version {added.row.version}: {_size(added.row)}, {told}", style="dim")

    show(as_json, facts, render)


@dataset.command("list")
@with_home
def list_(home: Path, as_json: bool) -> None:
    """List the datasets that this node holds and gives out, with all their versions."""
    rows = ask(home, lambda node: node.datasets())

    def render(console: Console) -> None:
        made = table("dataset", "version", "files", "size", "age", "blob", right=("version", "files", "size"))
        for row in rows:
            made.add_row(
                row.dataset.partition("/")[2] if row.own else row.dataset,
                str(row.version),
                f"{row.files:,}",
                size_text(row.size),
                span_text(time.time() - row.made),
                format_blob_id(row.blob)[:10],
            )
        console.print(made if rows else "no datasets are held here")

    show(as_json, {"datasets": [_facts(row) for row in rows]}, render)


@dataset.command("show")
@click.argument("dataset")
@_path
@_version
@with_home
def show_(home: Path, dataset: str, path: str, version: int | None, as_json: bool) -> None:
    """Show a dataset and the files in it."""
    found = ask(home, lambda node: node.show_dataset(dataset, path, version))
    facts = _facts(found.row) | {
        "holders": list(found.holders),
        "matching": found.matching,
        "entries": [
            {
                "path": row.path,
                "size": row.size,
                "blob": format_blob_id(row.blob),
                "executable": row.executable,
            }
            for row in found.rows
        ],
    }

    def render(console: Console) -> None:
        _render_row(console, found.row, ", ".join(found.holders) or "this node")
        made = table("size", "blob", "path", right=("size",), fold=("path",))
        for row in found.rows:
            made.add_row(size_text(row.size), format_blob_id(row.blob)[:10], plain(row.path))
        console.print(made)
        if found.matching > len(found.rows):
            console.print(
                f"and {found.matching - len(found.rows):,} more: narrow it with --path", style="dim"
            )

    show(as_json, facts, render)


@dataset.command()
@click.argument("dataset")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write into."
)
@_path
@_version
@click.option("--replace", is_flag=True, help="Replace files that are there with other contents.")
@click.option("--share", is_flag=True, help="Keep all of it, and give it out from this node too.")
@with_home
def get(
    home: Path,
    dataset: str,
    output: Path,
    path: str,
    version: int | None,
    replace: bool,
    share: bool,
    as_json: bool,
) -> None:
    """Fetch a dataset, or one file or folder of it, from all who hold it, verify every byte, and write it to a folder.

    Files that are the same there already are left alone; nothing else in the folder is touched.
    """
    got = ask(
        home,
        lambda node: node.get_dataset(
            dataset, output, path=path, version=version, replace=replace, share=share
        ),
    )
    facts = _facts(got.row) | {
        "folder": str(output),
        "written": got.written,
        "same": got.same,
        "bytes_written": got.size,
        "bytes_moved": got.bytes_moved,
        "seconds": round(got.seconds, 6),
    }

    def render(console: Console) -> None:
        same = f"; {counted(got.same, 'file')} there already" if got.same else ""
        pairs(
            console,
            [
                ("dataset", got.row.dataset),
                ("version", got.row.version),
                ("wrote", f"{counted(got.written, 'file')} into {output} ({size_text(got.size)}){same}"),
                ("moved", moved_text(got.bytes_moved, got.seconds)),
            ],
        )

    show(as_json, facts, render)


@dataset.command()
@click.argument("dataset")
@click.argument("folder", type=click.Path(path_type=Path))
@_path
@_version
@with_home
def verify(home: Path, dataset: str, folder: Path, path: str, version: int | None, as_json: bool) -> None:
    """Compare every byte of FOLDER with a dataset; fails where anything is changed, missing or too much."""
    found = ask(home, lambda node: node.compare_dataset(dataset, folder, path=path, version=version))
    facts = _facts(found.row) | {
        "same": found.same,
        "changed": list(found.changed),
        "missing": list(found.missing),
        "extra": list(found.extra),
        "differences": found.differences,
    }

    def render(console: Console) -> None:
        for word, names in (("changed", found.changed), ("missing", found.missing), ("extra", found.extra)):
            for name in names[:LISTED_MAX]:
                console.print(f"{word}: {name}", markup=False, soft_wrap=True)
            if len(names) > LISTED_MAX:
                console.print(f"{word}: {len(names) - LISTED_MAX} more", style="dim")
        console.print(f"{counted(found.same, 'file')} as in version {found.row.version}")

    show(as_json, facts, render)
    if found.differences:
        raise DatasetDiffers(
            f"{folder} differs from {found.row.dataset} in {counted(found.differences, 'file')}"
        )


@dataset.command()
@click.argument("dataset")
@_version
@with_home
def remove(home: Path, dataset: str, version: int | None, as_json: bool) -> None:
    """Hold and give out a dataset, or one version of it, no longer."""
    removed = ask(home, lambda node: node.remove_dataset(dataset, version))
    show(
        as_json,
        {"versions": removed},
        lambda console: console.print(f"removed {counted(removed, 'version')}"),
    )


def _facts(row: api.DatasetRow) -> dict[str, Any]:
    return {
        "dataset": row.dataset,
        "version": row.version,
        "blob": format_blob_id(row.blob),
        "files": row.files,
        "size": row.size,
        "made": row.made,
        "own": row.own,
    }


def _size(row: api.DatasetRow) -> str:
    return f"{counted(row.files, 'file')}, {size_text(row.size)}"


def _render_row(console: Console, row: api.DatasetRow, holders: str) -> None:
    pairs(
        console,
        [
            ("dataset", row.dataset),
            ("version", f"{row.version}, signed {span_text(time.time() - row.made)} ago"),
            ("blob", format_blob_id(row.blob)),
            ("holds", _size(row)),
            ("held by", holders),
        ],
    )
