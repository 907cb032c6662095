"""The demonstration fails loudly when the picture is not the one that NumPy computes."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ioc_node.api import Result
from ioc_node.errors import TaskFailed
from ioc_testnet.demo import Demo
from ioc_testnet.terrain import Elevation, Pixels, reference_picture
from ioc_testnet.topology import load_topology


def png(pixels: Pixels) -> bytes:
    rows, cols, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", cols, rows, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def elevation() -> Elevation:
    return Elevation(np.add.outer(np.arange(12.0), np.arange(9.0) ** 2), 30.0, 30.0)


def check(elevation: Elevation, picture: bytes, folder: Path) -> Demo:
    (folder / "terrain.png").write_bytes(picture)
    demo = Demo(Console(file=io.StringIO()), load_topology(), elevation, 1, 1, folder / "out" / "made.png")
    demo._check_picture(Result(bytes(32), "COMPLETE", "", (), (str(folder / "terrain.png"),), ()))
    return demo


def test_the_right_picture_is_kept(elevation: Elevation, tmp_path: Path) -> None:
    right = png(reference_picture(elevation))
    demo = check(elevation, right, tmp_path)
    assert Path(demo.facts["result_path"]).read_bytes() == right


def test_one_wrong_pixel_is_told(elevation: Elevation, tmp_path: Path) -> None:
    pixels = reference_picture(elevation)
    pixels[7, 3, 1] ^= 1
    with pytest.raises(TaskFailed, match="1 pixels differ from NumPy's, by up to 1 of 255"):
        check(elevation, png(pixels), tmp_path)
    assert not (tmp_path / "out").exists()


def test_another_size_is_told(elevation: Elevation, tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match="pixels differ"):
        check(elevation, png(reference_picture(elevation)[:-1]), tmp_path)
