"""The rules of the house, each a function from source text to a list of faults (one line each, none: it holds)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = {
    "ioc_wire": ROOT / "wire" / "ioc_wire",
    "ioc_bootstrap": ROOT / "bootstrap" / "ioc_bootstrap",
    "ioc_node": ROOT / "ioc_node",
    "ioc_testnet": ROOT / "testnet" / "ioc_testnet",
}
LINES_MAX: Final = 600

LAYERS: Final[tuple[frozenset[str], ...]] = tuple(
    frozenset(rooms.split())
    for rooms in (
        "ioc_wire",
        "ioc_bootstrap",
        "ioc_node.errors",
        "ioc_node.core",
        "ioc_node.data_api",
        "ioc_node.config ioc_node.api",
        "ioc_node.runtime",
        "ioc_node.bulk ioc_node.executors ioc_node.collectors ioc_node.market ioc_node.metering",
        "ioc_node.tasks",
        "ioc_node.node",
        "ioc_node ioc_node.aio ioc_node.sync",
        "ioc_node.http ioc_node.cli",
        "ioc_testnet",
    )
)
"""Ground floor first. A room may import rooms of lower floors and itself; rooms of one floor don't know each other
(except the parts of one composition, below). `ioc_node` alone stands for its `__init__`. A module directly in
`ioc_node/` that is not named here is a part of `node`; a folder that is not named here is a fault."""

FACADE: Final = frozenset({"ioc_node", "ioc_node.aio", "ioc_node.sync"})
PURE: Final = frozenset({"ioc_wire", "ioc_node.core"})
IMPURE_MODULES: Final = frozenset(
    {"trio", "asyncio", "anyio", "time", "socket", "ssl", "sqlite3", "select", "selectors", "threading"}
    | {"subprocess", "secrets", "os", "tempfile"}
)
IMPURE_CALLS: Final = frozenset({"generate", "urandom", "now", "utcnow", "today", "uuid4", "SystemRandom"})
"""Attribute names whose call reads a clock or throws dice (`Ed25519PrivateKey.generate()`, `datetime.now()`)."""


class Source(NamedTuple):
    """One module: its dotted name, whether it is a package's `__init__`, and its text."""

    module: str
    is_package: bool
    text: str


def sources() -> Iterator[tuple[Path, Source]]:
    """Every module of the four packages."""
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            yield (
                path,
                Source(".".join(parts[:-1] if is_package else parts), is_package, path.read_text("utf-8")),
            )


def room_of(module: str) -> str:
    """The room a module belongs to: `ioc_wire`, `ioc_node.core`, …; `ioc_node` itself for its `__init__`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "ioc_node" else parts[0]


def floor_of(room: str) -> int | None:
    """The floor of a room, `None` where the table lacks it."""
    if is_part_of_node(room):
        room = "ioc_node.node"
    return next((floor for floor, rooms in enumerate(LAYERS) if room in rooms), None)


def is_part_of_node(room: str) -> bool:
    """Whether `room` is a single module beside `node.py` that the table does not name."""
    package, _, name = room.partition(".")
    named = any(room in rooms for rooms in LAYERS)
    return package == "ioc_node" and not named and (PACKAGES[package] / f"{name}.py").is_file()


def is_one_composition(own: str, other: str) -> bool:
    """Whether two rooms may import each other though they share a floor."""
    parts = {own, other} - {"ioc_node.node"}
    return {own, other} <= FACADE or all(is_part_of_node(part) for part in parts)


def imported(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Every absolute name that a module imports, at whatever depth. `from a import b` yields `a.b`."""
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = source.module.split(".")
                kept = parts[: len(parts) - node.level + source.is_package]
                base = ".".join([*kept, base] if base else kept)
            for alias in node.names:
                yield node, f"{base}.{alias.name}"


def layer_faults(source: Source, rooms: frozenset[str]) -> list[str]:
    """Imports that go right or sideways. `rooms` are the rooms that exist (to tell `ioc_node.NAME` from a room)."""
    own = room_of(source.module)
    own_floor = floor_of(own)
    if own_floor is None:
        return [f"{source.module}: room {own} is on no floor of tests/house/rules.py"]
    faults = []
    for node, name in imported(source):
        if name.split(".")[0] not in PACKAGES:
            continue
        other = room_of(name)
        if other not in rooms:
            other = name.split(".")[0]
        floor = floor_of(other)
        allowed = other == own or is_one_composition(own, other) or (floor is not None and floor < own_floor)
        if not allowed:
            faults.append(f"{source.module}:{node.lineno}: {own} imports {other}, arrows only go left")
    return faults


def purity_faults(source: Source) -> list[str]:
    """Clocks, sockets, threads, databases and dice inside `ioc_wire` and `core`.

    `from random import Random` is allowed: a generator that is passed in. `import random` is so under TYPE_CHECKING.
    """
    if room_of(source.module) not in PURE:
        return []
    tree = ast.parse(source.text)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    faults = []
    for node, name in imported(source):
        top = name.split(".")[0]
        if top in IMPURE_MODULES or (top == "random" and name != "random.Random"):
            faults.append((node.lineno, f"imports {name}"))
    allowed_lines = {n.lineno for n in ast.walk(tree) if id(n) in typing_only and isinstance(n, ast.Import)}
    faults = [
        (line, text) for line, text in faults if not (text == "imports random" and line in allowed_lines)
    ]
    for call in ast.walk(tree):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in IMPURE_CALLS
        ):
            faults.append((call.lineno, f"calls {ast.unparse(call.func)}"))
    return [f"{source.module}:{line}: {text}; time and chance are arguments here" for line, text in faults]


BANNED_MODULES: Final = frozenset({"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"})
BANNED_CALLS: Final = frozenset(
    {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "__import__"}
)


def ban_faults(source: Source) -> list[str]:
    """pickle and its kin, eval, exec, shells."""
    faults = [
        f"{source.module}:{node.lineno}: imports {name}"
        for node, name in imported(source)
        if name.split(".")[0] in BANNED_MODULES
    ]
    for node in ast.walk(ast.parse(source.text)):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in BANNED_CALLS:
            faults.append(f"{source.module}:{node.lineno}: calls {ast.unparse(node.func)}")
        for keyword in node.keywords:
            if keyword.arg == "shell" and not (
                isinstance(keyword.value, ast.Constant) and not keyword.value.value
            ):
                faults.append(f"{source.module}:{node.lineno}: starts a shell")
    return faults


_EXCUSE: Final = re.compile(r"#\s*noqa:\s*BLE001\b[\s:,;(–—-]*\S+")


def except_faults(source: Source) -> list[str]:
    """`except:`, `except Exception` and `except BaseException` that swallow what they caught, without
    `# noqa: BLE001` and a reason after it. A handler with a bare `raise` in it looks at what it caught (ruff's
    BLE001 sees it so too, and would call the excuse unused)."""
    lines = source.text.splitlines()
    faults = []
    for node in ast.walk(ast.parse(source.text)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {
            "everything" if kind is None else ast.unparse(kind).removeprefix("builtins.") for kind in kinds
        }
        broad = names & {"everything", "Exception", "BaseException"}
        passes_on = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
        if broad and not passes_on and not _EXCUSE.search(lines[node.lineno - 1]):
            faults.append(f"{source.module}:{node.lineno}: catches {broad.pop()} and gives no reason")
    return faults


def docstring_faults(source: Source) -> list[str]:
    """What an implementer reads must say what it is.

    Every module, and every public class and module-level function of it. Left out is what its name and fields
    already say: message structs (bases other than `object`), functions of at most three lines, overloads.
    """
    tree = ast.parse(source.text)
    faults = [] if ast.get_docstring(tree) else [f"{source.module}: no docstring"]
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_") or ast.get_docstring(node):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno
        obvious = bool(node.bases) if isinstance(node, ast.ClassDef) else length <= 2
        if not obvious:
            faults.append(f"{source.module}:{node.lineno}: {node.name} has no docstring")
    return faults


def length_faults(source: Source) -> list[str]:
    """Files that have grown too long to be read."""
    count = len(source.text.splitlines())
    return (
        [f"{source.module}: {count} lines, at most {LINES_MAX}: find the seam"] if count > LINES_MAX else []
    )


def missing_markers(packages: dict[str, Path]) -> list[str]:
    """Packages without `py.typed`, folders of modules without `__init__.py`."""
    faults = [
        f"{name}: no py.typed" for name, folder in packages.items() if not (folder / "py.typed").is_file()
    ]
    for folder in packages.values():
        rooms = {path.parent for path in folder.rglob("*.py")}
        faults += [
            f"{room}: no __init__.py" for room in sorted(rooms) if not (room / "__init__.py").is_file()
        ]
    return faults


def wheel_faults(names: list[str]) -> list[str]:
    """What is in a wheel and should not be, and which package is missing."""
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    faults = [f"the wheel contains {top}" for top in sorted(tops - set(PACKAGES))]
    faults += [f"the wheel lacks {package}" for package in sorted(set(PACKAGES) - tops)]
    for package in PACKAGES:
        if package in tops and f"{package}/py.typed" not in names:
            faults.append(f"the wheel lacks {package}/py.typed")
    return faults + [f"the wheel contains {name}" for name in names if "__pycache__" in name]
