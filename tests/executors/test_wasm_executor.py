"""The wasm executor against programs that behave, that fail and that try to get out."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from wasmtime import wat2wasm

from ioc_node.executors.executor import BadProgram, Bounds, Ending, FolderUnusable, Work
from ioc_node.executors.wasm import WasmExecutor

Build = Callable[..., Work]
FOREVER = '(func (export "_start") (loop $again (br $again)))'
# One relative clock of about 17 minutes, asked for at address 1024.
SLEEP = """(func (export "_start")
  (i64.store (i32.const 1048) (i64.const 1000000000000))
  (drop (call $poll_oneoff (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 4096))))"""


@pytest.fixture(scope="module")
def wasm() -> WasmExecutor:
    return WasmExecutor()


def test_probe_runs_a_program(wasm: WasmExecutor) -> None:
    capability = wasm.probe()
    assert capability.runtime == "wasm"
    assert capability.version.startswith("wasmtime ")


async def test_output_progress_and_exit_status(wasm: WasmExecutor, wat: Build, report) -> None:
    work = wat(
        """(data (i32.const 64) "hello\\nioc:progress 0.25 a quarter\\n") (data (i32.const 128) "oh dear")
        (func (export "_start") (call $print (i32.const 1) (i32.const 64) (i32.const 34))
          (call $print (i32.const 2) (i32.const 128) (i32.const 7)) (call $proc_exit (i32.const 3)))"""
    )
    outcome = await wasm.run(work, report)
    assert (outcome.ending, outcome.exit_status) == (Ending.EXITED, 3)
    assert not outcome.succeeded
    assert report.lines == [("stdout", "hello"), ("stderr", "oh dear")]
    assert report.steps == [(0.25, "a quarter")]
    assert outcome.usage.peak_mib == 1


@pytest.mark.parametrize(("what", "expected"), [("args", "one\0two words\0"), ("environ", "TILE=7\0")])
async def test_arguments_and_environment_are_those_given(
    wasm: WasmExecutor, wat: Build, report, what: str, expected: str
) -> None:
    work = wat(
        f"""(func (export "_start")
          (drop (call ${what}_sizes_get (i32.const 16) (i32.const 20)))
          (drop (call ${what}_get (i32.const 1024) (i32.const 4096)))
          (call $print (i32.const 1) (i32.const 4096) (i32.load (i32.const 20))))""",
        "one",
        "two words",
        TILE="7",
    )
    assert (await wasm.run(work, report)).succeeded
    assert report.text() == expected.replace("\0", "\ufffd")


async def test_out_of_fuel(wasm: WasmExecutor, wat: Build, report) -> None:
    outcome = await wasm.run(wat(FOREVER, bounds=Bounds(fuel=1_000_000)), report)
    assert outcome.ending is Ending.OUT_OF_FUEL
    assert "1000000 units of fuel" in outcome.reason


async def test_refused_memory_is_named(wasm: WasmExecutor, wat: Build, report) -> None:
    grow = """(func (export "_start") (loop $again
      (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable)"""
    outcome = await wasm.run(wat(grow, bounds=Bounds(memory_mib=8)), report)
    assert outcome.ending is Ending.OUT_OF_MEMORY
    assert outcome.usage.peak_mib <= 8
    assert outcome.usage.mib_ms <= 8 * outcome.usage.wall_ms


async def test_more_memory_than_allowed_from_the_start(wasm: WasmExecutor, wat: Build, report) -> None:
    outcome = await wasm.run(wat('(func (export "_start"))', bounds=Bounds(memory_mib=1), pages=64), report)
    assert outcome.ending is Ending.OUT_OF_MEMORY


@pytest.mark.parametrize("body", [FOREVER, SLEEP], ids=["busy", "asleep"])
async def test_wall_time(wasm: WasmExecutor, wat: Build, report, body: str) -> None:
    started = trio.current_time()
    outcome = await wasm.run(wat(body, bounds=Bounds(wall_seconds=0.2)), report)
    assert outcome.ending is Ending.WALL_TIME
    assert trio.current_time() - started < 1.2
    assert outcome.usage.wall_ms >= 200
    assert (outcome.usage.core_ms > 50) is (body is FOREVER)


@pytest.mark.parametrize("body", [FOREVER, SLEEP], ids=["busy", "asleep"])
async def test_cancel_ends_the_thread_within_a_second(
    wasm: WasmExecutor, wat: Build, report, body: str
) -> None:
    work = wat(body)
    with trio.move_on_after(0.2) as scope:
        await wasm.run(work, report)
    assert scope.cancelled_caught
    assert trio.current_time() - scope.deadline < 1
    # The same engine serves the next run as if nothing had happened.
    assert (await wasm.run(wat('(func (export "_start"))'), report)).succeeded


async def test_stopping_one_leaves_another_alone(wasm: WasmExecutor, wat: Build, report) -> None:
    endings = {}

    async def run(name: str, one: Work) -> None:
        endings[name] = (await wasm.run(one, report)).ending

    short = wat(SLEEP.replace("1000000000000", "600000000"))
    sleeper = short.program.rename(short.program.with_name("sleeper.wasm"))
    endless = wat(FOREVER, bounds=Bounds(wall_seconds=0.2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "sleeper", Work(short.folder, sleeper))
        nursery.start_soon(run, "endless", endless)
    assert endings == {"sleeper": Ending.EXITED, "endless": Ending.WALL_TIME}


async def test_two_busy_programs_run_in_parallel_with_the_trio_thread(
    wasm: WasmExecutor, wat: Build, report
) -> None:
    work = wat(FOREVER, bounds=Bounds(wall_seconds=0.5))
    ticks = 0
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(wasm.run, work, report)
        with trio.move_on_after(0.4):
            while True:
                await trio.sleep(0.01)
                ticks += 1
    assert ticks >= 5  # a program that kept Python's lock would have let none through


async def test_trap(wasm: WasmExecutor, wat: Build, report) -> None:
    outcome = await wasm.run(wat('(func (export "_start") unreachable)'), report)
    assert outcome.ending is Ending.TRAPPED
    assert "unreachable" in outcome.reason
    assert "\n" not in outcome.reason


async def test_endless_recursion_is_a_trap(wasm: WasmExecutor, wat: Build, report) -> None:
    outcome = await wasm.run(wat('(func $f (export "_start") (call $f) (call $f))'), report)
    assert outcome.ending is Ending.TRAPPED


async def test_huge_logs_are_cut(wasm: WasmExecutor, wat: Build, report) -> None:
    body = """(data (i32.const 64) "0123456789012345678\\n") (func (export "_start") (local $n i32)
      (loop $again (call $print (i32.const 1) (i32.const 64) (i32.const 20))
        (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 10000)))))"""
    outcome = await wasm.run(wat(body, bounds=Bounds(log_bytes_max=1000)), report)
    assert outcome.succeeded
    assert len(report.lines) == 51
    assert report.lines[-1] == ("stderr", "[199000 bytes of output were dropped: log limit]")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret", "link", "inner/../../secret", "slashlink/passwd"]
)
async def test_files_outside_the_folder_cannot_be_opened(
    wasm: WasmExecutor, wat: Build, report, folder: Path, path: str
) -> None:
    (folder.parent / "secret").write_text("secret")
    (folder / "inner").mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "slashlink").symlink_to("/etc")
    outcome = await wasm.run(_open(wat, path), report)
    assert outcome.exit_status != 0
    assert outcome.ending is Ending.EXITED


async def test_a_file_inside_the_folder_can_be_opened(
    wasm: WasmExecutor, wat: Build, report, folder: Path
) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("mine")
    assert (await wasm.run(_open(wat, "inner/file"), report)).succeeded


async def test_a_link_out_of_the_folder_made_by_the_program_is_of_no_use(
    wasm: WasmExecutor, wat: Build, report, folder: Path
) -> None:
    (folder.parent / "secret").write_text("secret")
    body = """(data (i32.const 64) "../secret") (data (i32.const 128) "door")
      (func (export "_start")
        (drop (call $path_symlink (i32.const 64) (i32.const 9) (i32.const 3) (i32.const 128) (i32.const 4)))
        (call $proc_exit (call $path_open (i32.const 3) (i32.const 1) (i32.const 128) (i32.const 4) (i32.const 0)
          (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 32))))"""
    assert (await wasm.run(wat(body), report)).exit_status != 0


def _open(wat: Build, path: str) -> Work:
    """Exit with the errno of opening `path` (following links) for reading."""
    return wat(
        f"""(data (i32.const 64) "{path}") (func (export "_start")
          (call $proc_exit (call $path_open (i32.const 3) (i32.const 1) (i32.const 64) (i32.const {len(path)})
            (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 32))))"""
    )


async def test_a_folder_filled_beyond_its_bound_stops_the_run(
    wasm: WasmExecutor, wat: Build, report, folder: Path
) -> None:
    body = """(data (i32.const 64) "big") (func (export "_start") (local $n i32)
      (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 3) (i32.const 1)
        (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 32)))
      (loop $again (call $print (i32.load (i32.const 32)) (i32.const 1024) (i32.const 65536))
        (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 64))))
      (loop $on (br $on)))"""
    outcome = await wasm.run(wat(body, bounds=Bounds(disk_mib=2, wall_seconds=10)), report)
    assert outcome.ending is Ending.OUT_OF_DISK
    assert outcome.reason == "4 MiB in the task's folder, 2 MiB are allowed"
    assert (folder / "big").stat().st_size == 64 << 16


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"#!/bin/sh\n", "not a WebAssembly program"),
        (b"(module)", "not a WebAssembly program"),
        (b"\0asm\1\0\0\0\xff\xff", "not a WebAssembly program"),
        (b"\0asm\1\0\0\0", "exports no function _start"),
        (None, "cannot be read: No such file"),
    ],
)
async def test_what_is_no_program_gives_one_clear_line(
    wasm: WasmExecutor, folder: Path, report, content: bytes | None, complaint: str
) -> None:
    program = folder / "program"
    if content is not None:
        program.write_bytes(content)
    with pytest.raises(BadProgram, match=complaint) as caught:
        await wasm.run(Work(folder, program), report)
    assert "\n" not in str(caught.value)


async def test_an_import_that_wasi_lacks_is_named(wasm: WasmExecutor, wat: Build, report) -> None:
    work = wat('(func (export "_start"))')
    work.program.write_bytes(
        bytes(wat2wasm('(module (import "env" "connect" (func)) (func (export "_start")))'))
    )
    with pytest.raises(BadProgram, match="connect"):
        await wasm.run(work, report)


async def test_no_program_and_no_folder(wasm: WasmExecutor, wat: Build, report, folder: Path) -> None:
    with pytest.raises(BadProgram, match="needs a program file"):
        await wasm.run(Work(folder, None, ("ls",)), report)
    work = wat('(func (export "_start"))')
    with pytest.raises(FolderUnusable, match="does not exist"):
        await wasm.run(Work(folder / "nowhere", work.program), report)


async def test_a_warm_start_costs_little(wasm: WasmExecutor, wat: Build, report) -> None:
    work = wat('(func (export "_start"))')
    await wasm.run(work, report)
    seconds = []
    for _ in range(30):
        before = time.perf_counter()
        await wasm.run(work, report)
        seconds.append(time.perf_counter() - before)
    assert sorted(seconds)[15] < 0.005


async def test_threads_do_not_accumulate(wasm: WasmExecutor, wat: Build, report) -> None:
    work = wat('(func (export "_start"))')
    await wasm.run(work, report)
    before = threading.active_count()
    for _ in range(20):
        await wasm.run(work, report)
    assert threading.active_count() <= before + 1
