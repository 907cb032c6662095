"""How a task ended, for people, for programs, and as an exit code."""

from typing import Any

from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import pairs, plain, short, size_text, table
from ioc_node.cli.story import state_text
from ioc_node.errors import TaskFailed
from ioc_wire.bulk import format_blob_id
from ioc_wire.metering import format_receipt_id, receipt_id
from ioc_wire.tasks import format_task_id


def result_facts(ended: api.Result) -> dict[str, Any]:
    """State, outputs, files written and receipts."""
    return {
        "task": format_task_id(ended.task),
        "state": ended.state,
        "reason": ended.reason,
        "outputs": [
            {"path": item.path, "blob": format_blob_id(item.blob), "size": item.size}
            for item in ended.outputs
        ],
        "files": list(ended.files),
        "receipts": [format_receipt_id(receipt_id(receipt)) for receipt in ended.receipts],
    }


def render_result(console: Console, ended: api.Result) -> None:
    """The state, then the outputs."""
    receipts = [short(format_receipt_id(receipt_id(receipt))) for receipt in ended.receipts]
    pairs(
        console,
        [
            ("task", format_task_id(ended.task)),
            ("state", state_text(ended.state)),
            ("reason", ended.reason),
            ("receipts", ", ".join(receipts[:8]) + (" …" if len(receipts) > 8 else "")),
        ],
    )
    if ended.outputs:
        made = table("output", "size", "blob", right=("size",), fold=("output", "blob"))
        for item in ended.outputs:
            made.add_row(plain(item.path), size_text(item.size), format_blob_id(item.blob))
        console.print(made)
    for path in ended.files:
        console.print(plain(f"wrote {path}"), soft_wrap=True)


def require_complete(ended: api.Result, name: str) -> None:
    """Raise `TaskFailed` (exit code 5) unless the task is COMPLETE."""
    if ended.state != "COMPLETE":
        reason = f": {ended.reason}" if ended.reason else ""
        raise TaskFailed(f"{name} ended as {ended.state}{reason}")
