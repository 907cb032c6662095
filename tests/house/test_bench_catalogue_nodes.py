"""`bench.catalogue` on a small population: two real core nodes come to hold the same, and every figure is there."""

from pathlib import Path

import pytest

from bench.catalogue import FIGURES, OURS, value_of
from bench.catalogue_files import make
from bench.catalogue_measure import (
    Load,
    Measurements,
    measure_heads,
    measure_nodes,
    measure_sql,
    measure_verification,
)

pytestmark = pytest.mark.slow
LARGE = {f"sync_{count}_{what}" for count in (1000, 10_000, 100_000) for what in ("s", "extra_bytes")}


def test_every_figure_is_measured_and_sqlite_finds_the_same_hosts(tmp_path: Path):
    made = make(records=1500, providers=7, folder=tmp_path)
    measurements = Measurements(made, Load(quick=True))
    measure_verification(measurements)
    measure_nodes(measurements)
    measure_sql(measurements, "sqlite")
    measure_heads(measurements, providers=40, seconds=2.0)
    found = {figure.name for figure in FIGURES if value_of(measurements, figure, OURS) is not None}
    assert {figure.name for figure in FIGURES} - found <= LARGE
    assert measurements.matches["sqlite"] == measurements.matches[OURS]
    assert measurements.samples[OURS]["full_sync_bytes_ratio"][0] > 1
    assert all(extra > 0 for extra in measurements.samples[OURS]["sync_100_extra_bytes"])
