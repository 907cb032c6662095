"""Task files: what is accepted, and the one line that each mistake ends in."""

import json
from pathlib import Path

import pytest
from blake3 import blake3

from ioc_node.errors import ConfigError, NodeError, UsageError
from ioc_node.tasks.definition import TaskSpec, blobs_of, stage_spec
from ioc_wire.bulk import BlobId, format_blob_id
from ioc_wire.tasks import TaskDefinition, WorkflowDefinition

GOOD = """
name = "shade"
policy = "cost"
[executor]
runtime = "wasm"
program = "file:shade.wasm"
command = ["shade", "dem.bin", "out.bin"]
[[inputs]]
path = "dem.bin"
url = "file:data/dem.bin"
[[outputs]]
path = "out.bin"
[resources]
cores = 1
memory_mib = 64
"""

TASK = {"name": "t", "executor": {"runtime": "process", "command": ["true"]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shade.wasm").write_bytes(b"\0asm\1\0\0\0")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dem.bin").write_bytes(b"terrain")
    return tmp_path


async def add_file(path: Path) -> BlobId:
    return BlobId(blake3(path.read_bytes()).digest())


def load(folder: Path, text: str, name: str = "task.toml") -> TaskSpec:
    (folder / name).write_text(text)
    return TaskSpec.load(folder / name)


async def test_a_good_file_becomes_a_definition_whose_urls_are_blobs(folder: Path) -> None:
    spec = load(folder, GOOD)
    staged = await stage_spec(spec, add_file)
    assert isinstance(staged, TaskDefinition)
    dem, program = await add_file(folder / "data/dem.bin"), await add_file(folder / "shade.wasm")
    assert staged.inputs[0].url == f"blob:{format_blob_id(dem)}"
    assert blobs_of(staged) == (program, dem)
    assert staged.resources.cores == 1.0


def test_json_is_read_too(folder: Path) -> None:
    assert load(folder, json.dumps(TASK), "task.json").definition.name == "t"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("memory_mib = 64|memory_mib = 'much'", "task.toml: resources.memory_mib: expected int, got str"),
        ("memory_mib = 64|memory = 64", "task.toml: resources.memory: unknown key"),
        ("policy = |polisy = ", "task.toml: polisy: unknown key"),
        ('name = "shade"|', "task.toml: name: missing; this key is required"),
        ("cores = 1|cores = 0", "task.toml: resources.cores: expected float > 0.0"),
        ('path = "out.bin"|path = "../out.bin"', "'../out.bin' must be relative and stay inside"),
        ('path = "out.bin"|path = "/out.bin"', "'/out.bin' must be relative and stay inside"),
        ('path = "out.bin"|path = "dem.bin"', "path 'dem.bin' is named twice"),
        ("file:data/dem.bin|file:data/gone.bin", "task.toml: inputs[0].url: the file"),
        ("file:data/dem.bin|file:data", "is not a file"),
        (
            "file:data/dem.bin|http://x/y",
            "inputs[0].url: expected 'file:PATH', or 'blob:ID', not 'http://x/y'",
        ),
        ("file:data/dem.bin|task:other/out", "inputs[0].url: expected"),
        ("file:data/dem.bin|blob:bzz", "inputs[0].url: a blob is named by"),
        ("file:shade.wasm|shade.wasm", "executor.program: expected 'file:PATH' or 'blob:ID'"),
        ("[resources]|[constraints]\nallow = ['no no']\n[resources]", "task.toml: constraints: "),
        (
            "[resources]|[constraints]\nwhere = 'citi = 1'\n[resources]",
            "task.toml: constraints.where: no field 'citi' at place 1; did you mean 'city'?",
        ),
        ("cores = 1|cores = = 1", "not valid TOML"),
    ],
)
def test_each_mistake_is_one_line_naming_file_and_key(folder: Path, change: str, line: str) -> None:
    old, _, new = change.partition("|")
    assert old in GOOD
    with pytest.raises(UsageError) as caught:
        load(folder, GOOD.replace(old, new))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot read task file"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"[1, 2]", "expected an object at the top, got list"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_files_that_are_no_document(tmp_path: Path, content: bytes | None, line: str) -> None:
    path = tmp_path / "task.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NodeError, match=line):
        TaskSpec.load(path)


def test_a_relative_path_is_relative_to_the_task_file_not_to_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "task.toml").write_text(GOOD)
    monkeypatch.chdir("/")
    assert TaskSpec.load(folder / "task.toml").folder == folder.resolve()


async def test_a_file_that_vanishes_between_check_and_staging_is_a_usage_error(folder: Path) -> None:
    spec = load(folder, GOOD)
    (folder / "data" / "dem.bin").unlink()
    with pytest.raises(UsageError, match=r"cannot read .*dem.bin: No such file"):
        await stage_spec(spec, add_file)


def workflow(*tasks: tuple[str, list[str]]) -> str:
    return json.dumps(
        {
            "name": "w",
            "tasks": [
                {
                    **TASK,
                    "name": name,
                    "inputs": [{"path": f"in{n}", "url": url} for n, url in enumerate(urls)],
                    "outputs": [{"path": "out"}],
                }
                for name, urls in tasks
            ],
        }
    )


def test_a_workflow_is_recognised_by_its_tasks(tmp_path: Path) -> None:
    spec = load(tmp_path, workflow(("a", []), ("b", ["task:a/out"])), "w.json")
    assert spec.is_workflow
    assert isinstance(spec.definition, WorkflowDefinition)


@pytest.mark.parametrize(
    ("tasks", "line"),
    [
        ([("a", []), ("a", [])], "two tasks are called 'a'"),
        ([("a/b", [])], "cannot be called 'a/b'"),
        ([("a", ["task:c/out"])], "task 'a': inputs[0].url: there is no task 'c' in this workflow"),
        ([("a", []), ("b", ["task:a/nil"])], "task 'a' has no output 'nil' (it has: out)"),
        ([("a", ["task:a/out"])], "the tasks a wait in a circle"),
        (
            [("z", []), ("a", ["task:b/out"]), ("b", ["task:c/out"]), ("c", ["task:a/out"])],
            "a, b, c wait in a circle",
        ),
        ([], "tasks: expected"),
    ],
)
def test_workflows_that_cannot_run(tmp_path: Path, tasks: list[tuple[str, list[str]]], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, workflow(*tasks), "w.json")
    assert line in str(caught.value)
