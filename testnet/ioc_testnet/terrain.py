"""The main job's real input and its right answer: a digital elevation model, cut, shaded and compared.

The model is the Jacksboro fault in Tennessee (USGS), 344 x 403 heights, which matplotlib ships as sample data. It is
refined by a cubic B-spline, cut into tiles with a halo of one cell, shaded tile by tile (`hillshade.wasm`) and joined
to one picture (`mosaic.wasm`). `reference_picture` computes the same with NumPy in one piece.

Programs and reference do the same operations in the same order, and only + - * / and sqrt, which IEEE 754 rounds in
exactly one way: the two pictures are the same to the last bit. Formats are described in `examples/terrain/tile.h`.
"""

import importlib.util
import itertools
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ioc_node.errors import UsageError
from ioc_testnet.programs import program_path

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

METRES_PER_DEGREE: Final = 111_320.0
EXAGGERATION: Final = 1.8
REFINEMENT: Final = 2
RAMP: Final = (
    (0.0, (72, 122, 92)),
    (0.1, (118, 158, 104)),
    (0.25, (184, 191, 126)),
    (0.42, (226, 208, 152)),
    (0.6, (205, 166, 120)),
    (0.78, (168, 125, 100)),
    (0.92, (206, 188, 178)),
    (1.0, (252, 250, 248)),
)
"""Colours (red, green, blue) of heights from the lowest, 0, to the highest, 1."""
_LIGHTS: Final = ((315.0, 38.0, 0.56), (270.0, 30.0, 0.16), (0.0, 30.0, 0.12), (0.0, 90.0, 0.26))
"""Compass bearing and height above the horizon in degrees, and weight: the sun in the north-west, and soft sky."""


@dataclass(frozen=True)
class Elevation:
    """Heights in metres, row 0 in the north; metres from one column and one row to the next."""

    heights: Floats
    dx_m: float
    dy_m: float


@dataclass(frozen=True)
class Tile:
    """One elevation tile as a file: a name without suffix, its place in rows and columns of tiles, its bytes."""

    name: str
    row: int
    col: int
    data: bytes


@dataclass(frozen=True)
class Comparison:
    """Two pictures: whether they agree in size and every pixel, how many pixels differ, by how much at most."""

    identical: bool
    differing: int
    max_difference: int


def load_elevation(refinement: int = REFINEMENT) -> Elevation:
    """The elevation model, with `refinement` x `refinement` cells for each cell of the original.

    Raises `UsageError` where matplotlib, which ships the data, is not installed.
    """
    with np.load(_sample_file()) as sample:
        heights = sample["elevation"].astype(np.float64)
        dx, dy = float(sample["dx"]), float(sample["dy"])
        latitude = (float(sample["ymin"]) + float(sample["ymax"])) / 2
    refined = _refine(_refine(heights, refinement).T, refinement).T
    dx_m = dx * METRES_PER_DEGREE * math.cos(math.radians(latitude)) / refinement
    return Elevation(np.ascontiguousarray(refined), dx_m, dy * METRES_PER_DEGREE / refinement)


def _sample_file() -> Path:
    # Found without importing matplotlib, which would take half a second and write a cache to the home folder.
    found = importlib.util.find_spec("matplotlib")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder) / "mpl-data" / "sample_data" / "jacksboro_fault_dem.npz"
        if path.is_file():
            return path
    raise UsageError(
        "the elevation model comes with matplotlib, which is not installed: pip install matplotlib"
    )


def _refine(heights: Floats, times: int) -> Floats:
    """`times` rows for each row, on the cubic B-spline over the rows, which smooths the steps of whole metres."""
    if times == 1:
        return heights
    rows = heights.shape[0]
    padded = np.pad(heights, ((2, 2), (0, 0)), mode="edge")
    refined = np.empty((rows * times, heights.shape[1]))
    for part in range(times):
        at = (part + 0.5) / times - 0.5
        first, t = (1, at) if at >= 0 else (0, at + 1)
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        refined[part::times] = sum(
            weight / 6 * padded[first + index : first + index + rows] for index, weight in enumerate(weights)
        )
    return refined


def cut_tiles(elevation: Elevation, rows: int, cols: int) -> list[Tile]:
    """Cut into `rows` x `cols` tiles of nearly equal size, row by row from the north-west. At least 1 x 1."""
    padded = np.pad(elevation.heights, 1, mode="edge")
    all_rows, all_cols = elevation.heights.shape
    span = float(elevation.heights.min()), float(elevation.heights.max())
    tiles = []
    for row, (top, bottom) in enumerate(_cuts(all_rows, rows)):
        for col, (left, right) in enumerate(_cuts(all_cols, cols)):
            place = (bottom - top, right - left, top, left, all_rows, all_cols)
            header = struct.pack("<8s6I4d", b"IOCDEM1\0", *place, elevation.dx_m, elevation.dy_m, *span)
            cells = padded[top : bottom + 2, left : right + 2].astype("<f8").tobytes()
            tiles.append(Tile(f"tile-{row}-{col}", row, col, header + cells))
    return tiles


def _cuts(length: int, parts: int) -> Iterator[tuple[int, int]]:
    edges = [length * part // parts for part in range(parts + 1)]
    return itertools.pairwise(edges)


def lights() -> list[tuple[float, float, float, float]]:
    """Unit vectors towards the lights (east, north, up) and their weights."""
    found = []
    for bearing, height, weight in _LIGHTS:
        flat, around = math.cos(math.radians(height)), math.radians(bearing)
        found.append(
            (flat * math.sin(around), flat * math.cos(around), math.sin(math.radians(height)), weight)
        )
    return found


def hillshade_argv(tile: str, shade: str) -> tuple[str, ...]:
    """Arguments of `hillshade.wasm`: shade the file `tile` into the file `shade`."""
    return ("hillshade", tile, shade, repr(EXAGGERATION), *(",".join(map(repr, light)) for light in lights()))


def mosaic_argv(picture: str, shades: Sequence[str]) -> tuple[str, ...]:
    """Arguments of `mosaic.wasm`: join the files `shades` to the PNG file `picture`."""
    ramp = ";".join(f"{level!r},{red},{green},{blue}" for level, (red, green, blue) in RAMP)
    return ("mosaic", picture, ramp, *shades)


def reference_picture(elevation: Elevation) -> Pixels:
    """The whole picture computed with NumPy: rows x cols x RGB."""
    z = np.pad(elevation.heights, 1, mode="edge")
    above, here, below = z[:-2], z[1:-1], z[2:]
    west, mid, east = slice(None, -2), slice(1, -1), slice(2, None)
    eastward = (above[:, east] + 2.0 * here[:, east] + below[:, east]) - (
        above[:, west] + 2.0 * here[:, west] + below[:, west]
    )
    northward = (above[:, west] + 2.0 * above[:, mid] + above[:, east]) - (
        below[:, west] + 2.0 * below[:, mid] + below[:, east]
    )
    p = EXAGGERATION * eastward / (8.0 * elevation.dx_m)
    q = EXAGGERATION * northward / (8.0 * elevation.dy_m)
    length = np.sqrt(1.0 + p * p + q * q)
    shade = np.zeros_like(p)
    for light_x, light_y, light_z, weight in lights():
        lit = (light_z - light_x * p - light_y * q) / length
        shade = np.where(lit > 0.0, shade + weight * lit, shade)
    lowest, highest = elevation.heights.min(), elevation.heights.max()
    level = _to_u16((elevation.heights - lowest) / (highest - lowest))
    light = (_to_u16(shade).astype(np.float64) / 65535.0)[:, :, None]
    return np.minimum(_ramp_colours()[level] * light * 1.25 + 0.5, 255.0).astype(np.uint8)


def _to_u16(values: Floats) -> npt.NDArray[np.uint16]:
    return (np.clip(values, 0.0, 1.0) * 65535.0 + 0.5).astype(np.uint16)


def _ramp_colours() -> Floats:
    """Colour of each of the 65536 levels."""
    at = np.arange(65536) / 65535.0
    levels = np.array([level for level, _ in RAMP])
    colours = np.array([colour for _, colour in RAMP], dtype=np.float64)
    step = np.searchsorted(levels[1:-1], at, side="left")
    part = ((at - levels[step]) / (levels[step + 1] - levels[step]))[:, None]
    mixed: Floats = colours[step] + part * (colours[step + 1] - colours[step])
    return mixed


def read_png(data: bytes) -> Pixels:
    """Pixels of an 8-bit RGB PNG without interlacing: rows x cols x 3. Raises `UsageError` for anything else."""
    try:
        if data[:8] != b"\x89PNG\r\n\x1a\n":
            raise UsageError("not a PNG file")
        header, packed = b"", b""
        for kind, content in _chunks(data):
            if kind == b"IHDR":
                header = content
            elif kind == b"IDAT":
                packed += content
        cols, rows, *kind_of = struct.unpack(">IIBBBBB", header)
        if kind_of != [8, 2, 0, 0, 0]:
            raise UsageError("a PNG file, but not of 8-bit RGB without interlacing")
        lines = np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(rows, 1 + 3 * cols)
    except (struct.error, zlib.error, ValueError) as error:
        raise UsageError(f"a damaged PNG file: {error}") from None
    return _unfilter(lines).reshape(rows, cols, 3)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + size]
        if struct.pack(">I", zlib.crc32(kind + content)) != data[at + 8 + size : at + 12 + size]:
            raise UsageError("a damaged PNG file: a checksum does not match")
        yield kind, content
        at += 12 + size


def _unfilter(lines: Pixels) -> Pixels:
    """Undo the five filters of PNG, row by row."""
    rows, width = lines.shape[0], lines.shape[1] - 1
    done = np.zeros((rows + 1, width), dtype=np.uint8)
    for row in range(rows):
        kind, line, up = int(lines[row, 0]), lines[row, 1:], done[row]
        if kind == 0:
            done[row + 1] = line
        elif kind == 1:
            done[row + 1] = np.cumsum(line.reshape(-1, 3), axis=0, dtype=np.uint8).reshape(-1)
        elif kind == 2:
            done[row + 1] = line + up
        elif kind in (3, 4):
            done[row + 1] = _unfilter_slowly(kind, line.tolist(), up.tolist())
        else:
            raise UsageError(f"a damaged PNG file: filter {kind} does not exist")
    return done[1:]


def _unfilter_slowly(kind: int, line: list[int], up: list[int]) -> list[int]:
    """The filters Average and Paeth, in which each byte needs the one before."""
    done = [0, 0, 0]
    corners = [0, 0, 0, *up]
    for index, (rest, above) in enumerate(zip(line, up, strict=True)):
        left, corner = done[index], corners[index]
        if kind == 3:
            guess = (left + above) // 2
        else:
            base = left + above - corner
            guess = min(
                (abs(base - left), 0, left), (abs(base - above), 1, above), (abs(base - corner), 2, corner)
            )[2]
        done.append((rest + guess) & 255)
    return done[3:]


def compare(picture: Pixels, reference: Pixels) -> Comparison:
    """Compare pixel by pixel; pictures of different sizes differ in every pixel."""
    if picture.shape != reference.shape:
        return Comparison(False, max(picture.size, reference.size) // 3, 255)
    difference: npt.NDArray[Any] = np.abs(picture.astype(np.int16) - reference.astype(np.int16)).max(axis=2)
    return Comparison(not difference.any(), int(np.count_nonzero(difference)), int(difference.max(initial=0)))


def workflow_document(tiles: Sequence[Tile], *, policy: str = "cost", attempts: int = 3) -> dict[str, Any]:
    """The job as a workflow definition: one task that shades each tile (a local file of the tile's name), and one
    that joins what they made to `terrain.png`."""
    resources = {"cores": 1, "memory_mib": 64, "disk_mib": 64}
    shading = [
        {
            "name": f"shade-{tile.row}-{tile.col}",
            "executor": {
                "runtime": "wasm",
                "program": f"file:{program_path('hillshade')}",
                "command": hillshade_argv("tile", "shade"),
            },
            "inputs": [{"path": "tile", "url": f"file:{tile.name}"}],
            "outputs": [{"path": "shade"}],
            "resources": resources,
            "policy": policy,
            "attempts": attempts,
        }
        for tile in tiles
    ]
    shades = [f"{tile.name}.shade" for tile in tiles]
    joining = {
        "name": "join",
        "executor": {
            "runtime": "wasm",
            "program": f"file:{program_path('mosaic')}",
            "command": mosaic_argv("terrain.png", shades),
        },
        "inputs": [
            {"path": shade, "url": f"task:shade-{tile.row}-{tile.col}/shade"}
            for shade, tile in zip(shades, tiles, strict=True)
        ],
        "outputs": [{"path": "terrain.png"}],
        "resources": {**resources, "memory_mib": 128},
        "policy": policy,
        "attempts": attempts,
    }
    return {"name": "terrain", "tasks": [*shading, joining]}
