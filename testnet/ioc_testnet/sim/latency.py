"""How long a datagram takes: a constant, or a measured matrix of round trips."""

import random
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from ioc_node.errors import UsageError

RTT_SECONDS_MAX: Final = 30.0
_UNITS: Final = {"ms": 1e-3, "s": 1.0, "us": 1e-6}


class Latency(Protocol):
    """One way, in seconds, between two nodes by their number."""

    def one_way(self, source: int, target: int) -> float: ...

    def place(self, count: int, chance: random.Random) -> None:
        """Say how many nodes there are; each gets its place."""
        ...


class ConstantLatency:
    """The same everywhere."""

    def __init__(self, rtt_seconds: float) -> None:
        self._seconds = rtt_seconds / 2

    def place(self, count: int, chance: random.Random) -> None:
        pass

    def one_way(self, source: int, target: int) -> float:
        return self._seconds


class MatrixLatency:
    """Half the round trip between the two rows that the nodes stand on. Rows are dealt out in shuffled rounds, so
    that each is used equally often.

    Two nodes on one row are as far from each other as that row is from its nearest other; pairs that were not
    measured (zero, negative or not a number) take the median of all.
    """

    def __init__(self, rtt_seconds: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> None:
        count = len(rtt_seconds)
        matrix = np.array(rtt_seconds, dtype=np.float64)
        own = np.eye(count, dtype=bool)
        measured = np.isfinite(matrix) & (matrix > 0) & ~own
        if not measured.any():
            raise UsageError("the latency matrix holds no round trip above zero")
        matrix[~measured] = float(np.median(matrix[measured]))
        nearest = np.where(measured, matrix, np.inf).min(axis=1)
        matrix[own] = np.where(np.isfinite(nearest), nearest, matrix[own])
        self._half = (np.minimum(matrix, RTT_SECONDS_MAX) / 2).tolist()
        self._rows: list[list[float]] = []
        self._columns: list[int] = []

    def place(self, count: int, chance: random.Random) -> None:
        columns: list[int] = []
        while len(columns) < count:
            columns += chance.sample(range(len(self._half)), len(self._half))
        self._columns = columns[:count]
        self._rows = [self._half[column] for column in self._columns]

    def one_way(self, source: int, target: int) -> float:
        return float(self._rows[source][self._columns[target]])


def read_latency(text: str) -> Latency:
    """`constant`, `constant:MS` (round trip), or `FILE[:ms|:s|:us]`, a square matrix of round trips, milliseconds
    unless said otherwise. Raises `UsageError`.
    """
    name, _, rest = text.partition(":")
    if name == "constant":
        try:
            rtt = float(rest or "50") / 1000
        except ValueError:
            rtt = -1.0
        if not 0 < rtt <= RTT_SECONDS_MAX:
            raise UsageError(f"--latency {text}: constant:MS takes a round trip in ms, such as constant:50")
        return ConstantLatency(rtt)
    path, colon, unit = text.rpartition(":")
    if not colon or unit not in _UNITS:
        path, unit = text, "ms"
    return MatrixLatency(read_matrix(Path(path)) * _UNITS[unit])


def read_matrix(path: Path) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """A square matrix of numbers, in the file's own unit. Raises `UsageError`."""
    try:
        with path.open(encoding="ascii") as file:
            rows = [[float(word) for word in line.split()] for line in file if line.strip()]
    except OSError as error:
        raise UsageError(f"--latency {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"--latency {path}: not a matrix of numbers ({error})") from None
    if len(rows) < 2 or any(len(row) != len(rows) for row in rows):
        lengths = sorted({len(row) for row in rows})
        raise UsageError(
            f"--latency {path}: {len(rows)} rows of {lengths[:5]} numbers are not a square matrix"
        )
    return np.array(rows, dtype=np.float64)
