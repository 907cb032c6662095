"""The hosts of a file: CSV, TOML or JSON, in our own columns or in other people's by a mapping file.

In TOML and JSON the hosts are tables under `hosts` (in JSON also a bare list), with the columns as keys; there, the
"line" of a row is its number. The file is read again when its size or time changed. A row that cannot be used is
refused alone; a file that cannot be read as a whole raises, and what was known of it stands.
"""

import csv
import io
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from ioc_node.collectors.collector import (
    HOSTS_MAX,
    BadCollector,
    Collected,
    CollectedHost,
    CollectorFailed,
    RefusedRow,
    read_options,
)
from ioc_node.collectors.files import BadFile, read_text
from ioc_node.collectors.mapping import (
    ColumnMapping,
    RowFault,
    host_from_row,
    load_mapping,
    missing_columns,
)

FILE_BYTES_MAX: Final = 64 << 20
COLUMNS_MAX: Final = 256

Row = tuple[int, Mapping[str, Any] | RowFault]
"""Its line, and its cells by column or why it has none."""


class InventoryOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`file` is read; `mapping` says what its columns mean. Relative to the node's home folder."""

    file: str
    mapping: str = ""


class InventoryCollector:
    """Collects from one file."""

    def __init__(self, options: Mapping[str, Any], folder: Path) -> None:
        checked: InventoryOptions = read_options(options, InventoryOptions, "inventory")
        self._file = folder / checked.file
        self._mapping = folder / checked.mapping if checked.mapping else None
        load_mapping(self._mapping)
        self._seen: tuple[tuple[int, int], ...] = ()

    async def collect(self) -> Collected | None:
        """All hosts of the file, or None where neither it nor the mapping changed."""
        return await trio.to_thread.run_sync(self._look)

    def _look(self) -> Collected | None:
        try:
            stats = [path.stat() for path in (self._file, self._mapping) if path is not None]
        except OSError as error:
            raise CollectorFailed(f"inventory {error.filename}: {error.strerror or error}") from None
        seen = tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
        if seen == self._seen:
            return None
        try:
            mapping = load_mapping(self._mapping)
        except BadCollector as error:
            raise CollectorFailed(str(error)) from None
        collected = read_inventory(self._file, mapping)
        self._seen = seen
        return collected


def read_inventory(path: Path, mapping: ColumnMapping) -> Collected:
    """All hosts of a file. Raises `CollectorFailed` where it cannot be read as a whole."""
    try:
        text = read_text(path, FILE_BYTES_MAX)
    except BadFile as error:
        raise CollectorFailed(f"inventory {path}: {error}") from None
    hosts: list[CollectedHost] = []
    refused: list[RefusedRow] = []
    lines: dict[str, int] = {}
    for line, row in _rows(path, text, mapping):
        if len(hosts) + len(refused) >= HOSTS_MAX:
            raise CollectorFailed(f"inventory {path}: more than {HOSTS_MAX} rows: use several providers")
        try:
            if isinstance(row, RowFault):
                raise row
            found = host_from_row(row, mapping, line)
            first = lines.setdefault(found.host.path, line)
            if first != line:
                raise RowFault("path", f"{found.host.path} is named in line {first} already")
        except RowFault as fault:
            refused.append(RefusedRow(line, fault.column, fault.reason))
        else:
            hosts.append(found)
    return Collected(str(path), tuple(hosts), tuple(refused))


def _rows(path: Path, text: str, mapping: ColumnMapping) -> Iterator[Row]:
    if path.suffix == ".csv":
        return _csv_rows(path, text, mapping)
    try:
        if path.suffix == ".toml":
            document: Any = tomllib.loads(text)
        elif path.suffix == ".json":
            document = msgspec.json.decode(text)
        else:
            raise CollectorFailed(f"inventory {path}: the name must end in .csv, .toml or .json")
    except (ValueError, RecursionError) as error:  # of TOML, of JSON, of numbers with thousands of digits
        raise CollectorFailed(f"inventory {path}: {error}") from None
    rows = document.get("hosts") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise CollectorFailed(f"inventory {path}: no list of tables named `hosts`")
    return _table_rows(rows)


def _table_rows(rows: list[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        yield number, row if isinstance(row, dict) else RowFault("", "not a table")


def _csv_rows(path: Path, text: str, mapping: ColumnMapping) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise CollectorFailed(f"inventory {path}: line 1: {error}") from None
    if len(columns) > COLUMNS_MAX or len(set(columns)) != len(columns):
        raise CollectorFailed(f"inventory {path}: line 1: more than {COLUMNS_MAX} columns, or one twice")
    if missing := missing_columns(mapping, columns):
        raise CollectorFailed(f"inventory {path}: line 1: column {missing[0]!r} is missing")
    while True:
        line = reader.line_num + 1
        fault, cells = "", []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = str(error)
        if cells and len(cells) != len(columns):
            fault = f"{len(cells)} cells, the first line names {len(columns)}"
        if fault and reader.line_num > line:  # hosts that it swallowed would be taken for gone
            raise CollectorFailed(
                f"inventory {path}: line {line}: a quoted cell that goes on to line {reader.line_num}: {fault}"
            )
        if fault:
            yield line, RowFault("", fault)
        elif cells:
            yield line, dict(zip(columns, cells, strict=True))
