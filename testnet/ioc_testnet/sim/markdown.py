"""Tables and colours that the parts of the experiments' page share."""

from typing import Final

COLOURS: Final = ("#1b6ca8", "#d1495b", "#3a8f5c", "#8a6fb0")


def row_of(*cells: object) -> str:
    """One row of a table."""
    return (
        "| " + " | ".join(f"{cell:,.3f}" if isinstance(cell, float) else f"{cell}" for cell in cells) + " |"
    )


def table_of(head: str, rows: list[str]) -> str:
    """A table; the names of its columns stand in `head`, between bars."""
    columns = [cell.strip() for cell in head.split("|")]
    return "\n".join([row_of(*columns), "|" + "---|" * len(columns), *rows])
