"""Lines and progress from hostile output, and outputs taken from a hostile folder."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioc_node.collectors.local import look_at_machine
from ioc_node.executors.executor import FolderUnusable, load_executors
from ioc_node.executors.folder import measure_folder, open_output, remove_folder
from ioc_node.executors.output import TaskOutput, parse_progress
from ioc_wire.limits import LOG_LINE_BYTES_MAX


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"ioc:progress 0.35 optional text", (0.35, "optional text")),
        (b"ioc:progress 1\r", (1.0, "")),
        (b"ioc:progress\t0 \xff", (0.0, "\ufffd")),
        (b"ioc:progress 1.01", None),
        (b"ioc:progress -0.1", None),
        (b"ioc:progress nan", None),
        (b"ioc:progress 1e999", None),
        (b"ioc:progress", None),
        (b"ioc:progressive 0.5", None),
        (b" ioc:progress 0.5", None),
    ],
)
def test_progress_lines(line: bytes, expected: tuple[float, str] | None) -> None:
    assert parse_progress(line) == expected


def test_progress_counts_on_stdout_only(report) -> None:
    output = TaskOutput(report, 1000)
    output.feed("stderr", b"ioc:progress 0.5\n")
    assert (report.lines, report.steps) == ([("stderr", "ioc:progress 0.5")], [])


def test_lines_arrive_whole_however_they_are_cut(report) -> None:
    output = TaskOutput(report, 1000)
    for byte in "grüezi\nioc:progress 0.5 half\nlast".encode():
        output.feed("stdout", bytes([byte]))
    assert report.text() == "grüezi"
    output.close()
    assert report.text() == "grüezi\nlast"
    assert report.steps == [(0.5, "half")]


def test_a_long_line_is_cut_and_what_is_missing_is_told(report) -> None:
    output = TaskOutput(report, 1 << 20)
    for _ in range(100):
        output.feed("stdout", b"x" * 1000)
    output.feed("stdout", b"\nnext\n")
    output.close()
    assert report.lines == [
        ("stdout", "x" * LOG_LINE_BYTES_MAX),
        ("stdout", "next"),
        ("stderr", f"[{100_000 - LOG_LINE_BYTES_MAX} bytes of output were dropped: log limit]"),
    ]


def test_control_characters_do_not_reach_a_terminal(report) -> None:
    TaskOutput(report, 1000).feed("stdout", b"\x1b[2J\x07tab\there \xc2\x9bK\n")
    assert report.text() == "\ufffd[2J\ufffdtab\there \ufffdK"


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=300)), max_size=30))
def test_any_output_stays_within_its_bounds(chunks: list) -> None:
    class Bounded:
        total = 0

        def progress(self, fraction: float, text: str) -> None:
            assert 0 <= fraction <= 1

        def line(self, stream: str, text: str) -> None:
            assert len(text.encode()) <= LOG_LINE_BYTES_MAX
            assert "\n" not in text
            self.total += not text.startswith("[")

    bounded = Bounded()
    output = TaskOutput(bounded, 40)
    for stream, chunk in chunks:
        output.feed(stream, chunk)
    output.close()
    assert bounded.total <= 40


def test_outputs_are_plain_files_inside_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_bytes(b"mine")
    os.mkfifo(folder / "pipe")
    with open_output(folder, "inner/file") as file:
        assert file.read() == b"mine"
    for path, complaint in [
        ("link", "cannot be read"),
        ("outside/secret", "cannot be read"),
        ("pipe", "not a regular file"),
        ("inner", "not a regular file"),
        ("nothing", "did not write its output 'nothing'"),
    ]:
        with pytest.raises(FolderUnusable, match=complaint):
            open_output(folder, path)


def test_a_folder_is_measured_and_removed_whatever_is_in_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"k" * 5000)
    (folder / "a").mkdir()
    (folder / "a" / "b").write_bytes(b"x" * 1000)
    (folder / "link").symlink_to(tmp_path)
    fill = measure_folder(folder)
    assert fill.entries == 3
    assert 1000 <= fill.size < 2000
    (folder / "a").chmod(0)
    remove_folder(folder)
    remove_folder(folder)
    assert not folder.exists()
    assert (tmp_path / "kept").exists()


def test_executors_are_found_or_missing_with_a_reason() -> None:
    available, missing = load_executors()
    assert available.keys() | missing.keys() == {"wasm", "process"}
    assert available["wasm"].runtime == "wasm"
    assert all(reason and "\n" not in reason for reason in missing.values())


def test_the_machine_is_described(tmp_path: Path) -> None:
    machine = look_at_machine(tmp_path / "not" / "yet")
    assert machine.architecture == os.uname().machine
    assert machine.cores >= 1
    assert machine.memory_mib > 64
    assert machine.storage_mib > 0
    assert machine.cpu_model
