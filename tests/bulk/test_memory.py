"""What a large blob costs in memory, on both sides: as much as a small one."""

import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from ioc_node.bulk.blobs import BlobStore

from .conftest import MIB
from .test_processes import ROOT, holding

pytestmark = pytest.mark.slow
SIZE = 1024 * MIB
PEAK_MB_MAX = 150


def peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


async def test_a_gigabyte_moves_within_150_megabytes_on_each_side(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        for number in range(SIZE // MIB):
            file.write(number.to_bytes(8, "big") * (MIB // 8))
    info = await BlobStore(tmp_path / "store").add_file(source)
    source.unlink()
    async with holding(tmp_path, seconds=600) as (holder, nursery):
        command = [sys.executable, "-m", "tests.bulk.reader", str(tmp_path / "bob"), holder.ticket_hex]
        reader = await nursery.start(partial(trio.run_process, command, stdout=-1, check=False, cwd=ROOT))
        told = b""
        while not told.endswith(f"{SIZE}\n".encode()):
            told = told[-100:] + await reader.stdout.receive_some()
        peaks = peak_mb(holder.process.pid), peak_mb(reader.pid)
        await reader.wait()
    assert BlobStore(tmp_path / "bob").has(info.blob)
    assert max(peaks) <= PEAK_MB_MAX, peaks
