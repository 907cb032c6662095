"""The main job's programs, run as a task runs them, against NumPy; and that they are what their sources say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ioc_node.errors import UsageError
from ioc_node.executors.executor import Bounds, Ending, Work
from ioc_node.executors.wasm import WasmExecutor
from ioc_node.tasks.definition import TaskSpec
from ioc_testnet import terrain
from ioc_testnet.programs import program_path

EXAMPLES = Path(__file__).parents[2] / "examples"
BUILD = EXAMPLES / "build.sh"
PROGRAMS = ("hillshade", "mosaic", "noop", "sleeper", "hello")


@pytest.fixture(scope="module")
def elevation() -> terrain.Elevation:
    return terrain.load_elevation(refinement=1)


async def shaded(
    folder: Path, elevation: terrain.Elevation, cut: tuple[int, int], report, programs: Path | None = None
) -> bytes:
    """The whole job in one folder."""

    def program(name: str) -> Path:
        return programs / f"{name}.wasm" if programs else program_path(name)

    wasm = WasmExecutor()
    shades = []
    for tile in terrain.cut_tiles(elevation, *cut):
        (folder / tile.name).write_bytes(tile.data)
        shades.append(f"{tile.name}.shade")
        argv = terrain.hillshade_argv(tile.name, shades[-1])
        outcome = await wasm.run(Work(folder, program("hillshade"), argv), report)
        assert outcome.succeeded, report.lines
    argv = terrain.mosaic_argv("terrain.png", shades)
    outcome = await wasm.run(Work(folder, program("mosaic"), argv), report)
    assert outcome.succeeded, report.lines
    return (folder / "terrain.png").read_bytes()


@pytest.mark.parametrize("cut", [(1, 1), (3, 4), (5, 7)])
async def test_the_picture_is_numpys_to_the_last_bit(
    folder: Path, elevation: terrain.Elevation, cut: tuple[int, int], report
) -> None:
    picture = terrain.read_png(await shaded(folder, elevation, cut, report))
    reference = terrain.reference_picture(elevation)
    assert terrain.compare(picture, reference) == terrain.Comparison(True, 0, 0)
    assert report.steps[-1][0] == 1.0
    assert picture.std() > 30  # a picture, not a plain


async def test_the_same_picture_is_read_by_an_independent_reader(
    folder: Path, elevation: terrain.Elevation, report
) -> None:
    image = pytest.importorskip("matplotlib.image")
    data = await shaded(folder, elevation, (2, 2), report)
    (folder / "copy.png").write_bytes(data)
    independent = np.rint(image.imread(folder / "copy.png")[:, :, :3] * 255).astype(np.uint8)
    assert terrain.compare(independent, terrain.read_png(data)).identical


def test_a_wrong_picture_is_told_from_a_right_one(elevation: terrain.Elevation) -> None:
    reference = terrain.reference_picture(elevation)
    wrong = reference.copy()
    wrong[10, 20, 1] ^= 4
    assert terrain.compare(wrong, reference) == terrain.Comparison(False, 1, 4)
    assert not terrain.compare(wrong[1:], reference).identical


@pytest.mark.parametrize(
    ("name", "argv", "content", "complaint"),
    [
        ("hillshade", ("hillshade",), b"", "usage: hillshade"),
        (
            "hillshade",
            ("hillshade", "tile", "out", "1", "0,0,1,1"),
            b"not a tile",
            "tile: is not such a tile",
        ),
        ("hillshade", ("hillshade", "nothing", "out", "1", "0,0,1,1"), b"", "nothing: cannot be opened"),
        ("hillshade", ("hillshade", "tile", "out", "1", "0,0,1"), b"", "a light is x,y,z,weight"),
        (
            "mosaic",
            ("mosaic", "out", "0,1,2,3;1,2,3,4", "tile"),
            b"IOCSHD1\0" + b"\xff" * 24,
            "impossible size",
        ),
        ("mosaic", ("mosaic", "out", "0,1,2", "tile"), b"", "a ramp is level,r,g,b"),
    ],
)
async def test_bad_input_ends_in_one_line_and_a_status(
    folder: Path, report, name: str, argv: tuple[str, ...], content: bytes, complaint: str
) -> None:
    (folder / "tile").write_bytes(content)
    outcome = await WasmExecutor().run(Work(folder, program_path(name), argv), report)
    assert (outcome.ending, outcome.exit_status) == (Ending.EXITED, 1)
    assert complaint in report.text("stderr")
    assert len(report.lines) == 1


async def test_a_missing_tile_is_noticed(folder: Path, elevation: terrain.Elevation, report) -> None:
    await shaded(folder, elevation, (2, 2), report)
    argv = terrain.mosaic_argv("out.png", ["tile-0-0.shade", "tile-0-1.shade", "tile-1-1.shade"])
    outcome = await WasmExecutor().run(Work(folder, program_path("mosaic"), argv), report)
    assert outcome.exit_status == 1
    assert "a part of the picture is in none of the tiles" in report.text("stderr")


def test_a_damaged_picture_is_refused() -> None:
    for data in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 40):
        with pytest.raises(UsageError):
            terrain.read_png(data)


async def test_the_small_programs(folder: Path, report) -> None:
    wasm = WasmExecutor()
    assert (await wasm.run(Work(folder, program_path("noop")), report)).succeeded
    argv = ("hello", "Ada")
    assert (await wasm.run(Work(folder, program_path("hello"), argv, {"PLACE": "a test"}), report)).succeeded
    assert (folder / "greeting.txt").read_text() == "Hello, Ada, from a test!\n"
    work = Work(folder, program_path("sleeper"), ("sleeper", "60"), bounds=Bounds(wall_seconds=0.35))
    outcome = await wasm.run(work, report)
    assert outcome.ending is Ending.WALL_TIME
    assert len(report.steps) >= 3


def test_programs_are_small() -> None:
    for name in PROGRAMS:
        assert program_path(name).stat().st_size < 100_000


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("programs")
    have = all(map(shutil.which, ("clang", "wasm-ld"))) and Path("/usr/include/wasm32-wasi").is_dir()
    if not have and os.environ.get("IOC_REQUIRE_CLANG") != "1":
        pytest.skip("clang, lld and wasi-libc are not installed: the committed programs are not rebuilt")
    done = subprocess.run([str(BUILD), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def _clang_version() -> str:
    return subprocess.run(["clang", "--version"], capture_output=True, text=True, check=False).stdout


async def test_sources_build_to_the_committed_programs(
    rebuilt: Path, folder: Path, elevation: terrain.Elevation, report
) -> None:
    changed = [
        name
        for name in PROGRAMS
        if (rebuilt / f"{name}.wasm").read_bytes() != program_path(name).read_bytes()
    ]
    if changed:  # another compiler makes other bytes; they must do the same
        picture = terrain.read_png(await shaded(folder, elevation, (2, 3), report, programs=rebuilt))
        assert terrain.compare(picture, terrain.reference_picture(elevation)).identical
        assert "clang version 14." not in _clang_version(), f"{changed} differ from their committed sources"


def test_example_files_are_tasks_and_the_job_is_a_workflow(
    tmp_path: Path, elevation: terrain.Elevation
) -> None:
    for name in ("hello", "hello-process", "sleeper"):
        spec = TaskSpec.load(EXAMPLES / f"{name}.toml")
        assert not spec.is_workflow
    tiles = terrain.cut_tiles(elevation, 2, 3)
    for tile in tiles:
        (tmp_path / tile.name).write_bytes(tile.data)
    spec = TaskSpec.parse(terrain.workflow_document(tiles), folder=tmp_path)
    assert spec.is_workflow
    assert len(spec.definition.tasks) == 7


@pytest.mark.slow
def test_prepare_writes_what_can_be_submitted(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "terrain" / "prepare.py"), str(tmp_path), "2", "2"]
    subprocess.run(command, check=True)
    assert TaskSpec.load(tmp_path / "terrain.toml").is_workflow
