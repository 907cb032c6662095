"""What the tests of both executors need: a place to run, a report that remembers, programs from WAT text."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from wasmtime import wat2wasm

from ioc_node.executors.executor import Bounds, StreamName, Work

WASI_IMPORTS = """
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink"
    (func $path_symlink (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
"""


class Remembered:
    """A report that keeps everything, and tells when the first news comes."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.steps: list[tuple[float, str]] = []
        self.news = trio.Event()

    def progress(self, fraction: float, text: str) -> None:
        self.steps.append((fraction, text))
        self.news.set()

    def line(self, stream: StreamName, text: str) -> None:
        self.lines.append((stream, text))
        self.news.set()

    def text(self, stream: str = "stdout") -> str:
        return "\n".join(text for name, text in self.lines if name == stream)


@pytest.fixture
def report() -> Remembered:
    return Remembered()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "task"
    inner.mkdir()
    return inner


@pytest.fixture
def wat(tmp_path: Path, folder: Path) -> Callable[..., Work]:
    """Build work from the body of a module: WASI imports, two pages of memory and a `$print` are there already."""

    def build(body: str, *argv: str, bounds: Bounds | None = None, pages: int = 2, **env: str) -> Work:
        text = f"""(module {WASI_IMPORTS} (memory (export "memory") {pages})
          (func $print (param $fd i32) (param $at i32) (param $length i32)
            (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $length))
            (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
          {body})"""
        program = tmp_path / "program.wasm"
        program.write_bytes(bytes(wat2wasm(text)))
        return Work(folder, program, argv or ("program",), env, bounds or Bounds(wall_seconds=20))

    return build
