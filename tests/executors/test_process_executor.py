"""The process executor against programs that behave, that fail and that try to get out of the sandbox."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from ioc_node.errors import ExecutorUnavailable
from ioc_node.executors.executor import BadProgram, Bounds, Ending, FolderUnusable, Work
from ioc_node.executors.process import ProcessExecutor

Command = Callable[..., Work]


@pytest.fixture(scope="module")
def process() -> ProcessExecutor:
    executor = ProcessExecutor()
    try:
        executor.probe()
    except ExecutorUnavailable as error:
        if os.environ.get("IOC_REQUIRE_SANDBOX") == "1":
            raise
        pytest.skip(f"runtime process cannot be tested here: {error}")
    return executor


@pytest.fixture
def sh(folder: Path) -> Command:
    def build(script: str, bounds: Bounds | None = None, **env: str) -> Work:
        return Work(folder, None, ("sh", "-c", script), env, bounds or Bounds(wall_seconds=20))

    return build


async def test_output_progress_exit_status_and_environment(
    process: ProcessExecutor, sh: Command, folder: Path, report
) -> None:
    script = 'echo "hello $TILE"; echo ioc:progress 0.5 half; echo oh >&2; echo "$HOME $PWD" > where; env >env; exit 3'
    outcome = await process.run(sh(script, TILE="7"), report)
    assert (outcome.ending, outcome.exit_status) == (Ending.EXITED, 3)
    assert report.text() == "hello 7"
    assert report.text("stderr") == "oh"
    assert report.steps == [(0.5, "half")]
    assert (folder / "where").read_text() == "/work /work\n"
    names = {line.split("=")[0] for line in (folder / "env").read_text().splitlines()}
    assert names <= {"PATH", "HOME", "TMPDIR", "LANG", "USER", "TILE", "PWD", "OLDPWD", "SHLVL", "_"}


async def test_a_program_from_outside_the_folder_and_one_inside(
    process: ProcessExecutor, folder: Path, tmp_path: Path, report
) -> None:
    for place in (folder / "tool", tmp_path / "blob"):
        place.write_text('#!/bin/sh\necho "$0 $1"\n')
        place.chmod(0o600)
        assert (await process.run(Work(folder, place, ("tool", "two words")), report)).succeeded
    assert report.text() == "/work/tool two words\n/program two words"


async def test_host_files_are_not_there(process: ProcessExecutor, sh: Command, folder: Path, report) -> None:
    (folder.parent / "secret").write_text("secret")
    (folder / "link").symlink_to(folder.parent / "secret")
    script = f"cat {folder.parent}/secret ../secret link /etc/shadow /root/.bashrc; ls /home /root /var"
    outcome = await process.run(sh(script), report)
    assert outcome.exit_status != 0
    assert report.text() == ""


async def test_the_system_cannot_be_written(process: ProcessExecutor, sh: Command, report) -> None:
    script = "for at in / /usr /etc /dev /proc/sys/kernel; do touch $at/x 2>/dev/null && echo $at; done; true"
    await process.run(sh(script), report)
    assert report.text() == ""
    same = "t=/proc/sys/kernel/core_pattern; cat $t >/work/now; cat /work/now 2>/dev/null >$t && echo written; true"
    await process.run(sh(same), report)
    await process.run(
        sh("for p in /proc/sysrq-trigger /proc/self/comm; do : >>$p && echo $p; done; true"), report
    )
    assert report.text() == ""


async def test_no_network_not_even_the_hosts_loopback(process: ProcessExecutor, folder: Path, report) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
        outcome = await process.run(Work(folder, None, ("python3", "-c", code)), report)
    assert outcome.exit_status == 1
    assert "Connection refused" in report.text("stderr")


async def test_other_processes_are_not_seen_and_no_privilege_is_left(
    process: ProcessExecutor, sh: Command, report
) -> None:
    script = "ls /proc | grep -c '^[0-9]'; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; id -u"
    await process.run(sh(script), report)
    count, *rest = report.text().split("\n")
    assert int(count) <= 4
    assert [line.split()[-1] for line in rest] == ["0" * 16, "0" * 16, "1", "65534"]


async def test_no_user_namespace_inside(process: ProcessExecutor, sh: Command, report) -> None:
    outcome = await process.run(sh("unshare --user true"), report)
    assert outcome.exit_status != 0


async def test_wall_time_and_cpu_time_of_what_was_killed(
    process: ProcessExecutor, sh: Command, report
) -> None:
    outcome = await process.run(sh("while :; do :; done", Bounds(wall_seconds=0.5)), report)
    assert outcome.ending is Ending.WALL_TIME
    assert 500 <= outcome.usage.wall_ms < 1500
    assert outcome.usage.core_ms > 100


async def test_cancel_leaves_no_process(process: ProcessExecutor, folder: Path, report) -> None:
    mark = f"3{os.getpid()}.5"
    work = Work(
        folder, None, ("sh", "-c", f"setsid sleep {mark} & sleep {mark} & echo on; trap '' TERM; wait")
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.run, work, report)
        with trio.fail_after(5):
            await report.news.wait()
        assert len(_commands_with(mark)) >= 2
        cancelled_at = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - cancelled_at < 1
    assert _commands_with(mark) == []


def _commands_with(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


async def test_out_of_memory_over_the_whole_tree(process: ProcessExecutor, folder: Path, report) -> None:
    code = "import os, time; os.fork(); data = bytearray(b'x') * (60 << 20); time.sleep(10)"
    work = Work(folder, None, ("python3", "-c", code), bounds=Bounds(memory_mib=100))
    outcome = await process.run(work, report)
    assert outcome.ending is Ending.OUT_OF_MEMORY
    assert outcome.usage.peak_mib > 100
    assert outcome.usage.wall_ms < 5000


async def test_one_process_cannot_explode(process: ProcessExecutor, folder: Path, report) -> None:
    work = Work(folder, None, ("python3", "-c", "bytearray(b'x') * (1 << 30)"), bounds=Bounds(memory_mib=32))
    outcome = await process.run(work, report)
    assert not outcome.succeeded
    assert outcome.ending is Ending.OUT_OF_MEMORY or "MemoryError" in report.text("stderr")


async def test_a_file_larger_than_the_disk_bound(
    process: ProcessExecutor, sh: Command, folder: Path, report
) -> None:
    outcome = await process.run(sh("head -c 5M /dev/zero > big", Bounds(disk_mib=2)), report)
    assert not outcome.succeeded
    assert (folder / "big").stat().st_size <= 2 << 20


async def test_many_files_beyond_the_disk_bound(process: ProcessExecutor, sh: Command, report) -> None:
    script = "for n in 1 2 3 4; do head -c 1M /dev/zero > f$n; done; sleep 10"
    outcome = await process.run(sh(script, Bounds(disk_mib=2)), report)
    assert outcome.ending is Ending.OUT_OF_DISK
    assert outcome.usage.wall_ms < 5000


async def test_death_by_signal_is_named(process: ProcessExecutor, sh: Command, report) -> None:
    outcome = await process.run(sh("kill -SEGV $$"), report)
    assert (outcome.ending, outcome.exit_status) == (Ending.TRAPPED, 139)
    assert "SIGSEGV" in outcome.reason


async def test_huge_logs_are_cut(process: ProcessExecutor, sh: Command, report) -> None:
    outcome = await process.run(sh("yes | head -c 1M", Bounds(log_bytes_max=100)), report)
    assert outcome.succeeded
    assert len(report.lines) == 51
    assert "bytes of output were dropped" in report.lines[-1][1]


async def test_two_in_parallel(process: ProcessExecutor, sh: Command, report) -> None:
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(process.run, sh("sleep 0.6"), report)
    assert trio.current_time() - started < 1.15


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_descriptor_is_left_open(process: ProcessExecutor, sh: Command, report) -> None:
    await process.run(sh("true"), report)
    before = _descriptors()
    await process.run(sh("true"), report)
    with trio.move_on_after(0.1):
        await process.run(sh("sleep 5"), report)
    assert _descriptors() == before


async def test_what_cannot_be_run_gives_one_clear_line(
    process: ProcessExecutor, folder: Path, report
) -> None:
    with pytest.raises(BadProgram, match="'no-such-command' is not on the path"):
        await process.run(Work(folder, None, ("no-such-command",)), report)
    with pytest.raises(BadProgram, match="no such file"):
        await process.run(Work(folder, folder / "nothing"), report)
    with pytest.raises(BadProgram, match="needs a program or a command"):
        await process.run(Work(folder, None), report)
    with pytest.raises(FolderUnusable, match="does not exist"):
        await process.run(Work(folder / "nowhere", None, ("true",)), report)


def test_a_missing_bwrap_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExecutorUnavailable, match="bwrap is not installed; install the package bubblewrap"):
        ProcessExecutor().probe()


async def test_early_cancel_leaves_no_process(process: ProcessExecutor, folder: Path, report) -> None:
    """bwrap is cancelled at every stage of its start; killed at the wrong one, it would leave its child behind."""
    mark = f"4{os.getpid()}.5"
    work = Work(folder, None, ("sleep", mark))
    for pause_ms in range(0, 30, 2):
        with trio.move_on_after(pause_ms / 1000):
            await process.run(work, report)
    await trio.sleep(0.05)
    assert _commands_with(mark) == []


NODE = """
import sys, trio
from pathlib import Path
from ioc_node.executors.executor import Work
from ioc_node.executors.process import ProcessExecutor
class Report:
    def line(self, stream, text): print(text, flush=True)
work = Work(Path(sys.argv[1]), None, ("sh", "-c", "setsid sleep $0 & echo on; sleep $0", sys.argv[2]))
trio.run(ProcessExecutor().run, work, Report())
"""


async def test_a_killed_node_takes_its_tasks_along(process: ProcessExecutor, folder: Path) -> None:
    mark = f"5{os.getpid()}.5"
    node = await trio.lowlevel.open_process(
        [sys.executable, "-c", NODE, str(folder), mark], stdout=subprocess.PIPE
    )
    assert node.stdout is not None
    async with node.stdout:
        with trio.fail_after(10):
            said = b""
            while not said.endswith(b"\n"):  # a line may come in pieces
                more = await node.stdout.receive_some(100)
                assert more, said
                said += more
        assert said == b"on\n"
        assert len(_commands_with(mark)) >= 2
        node.kill()
        await node.wait()
    with trio.fail_after(2):
        while _commands_with(mark):
            await trio.sleep(0.02)


async def test_too_many_processes(process: ProcessExecutor, sh: Command, report) -> None:
    script = "n=0; while [ $n -lt 400 ]; do sleep 20 & n=$((n+1)); done; wait"
    outcome = await process.run(sh(script), report)
    assert not outcome.succeeded
    assert outcome.ending is Ending.OUT_OF_PROCESSES or "fork" in report.text("stderr")
    assert outcome.usage.wall_ms < 15_000
