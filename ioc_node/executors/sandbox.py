"""The sandbox of runtime `process`, written as arguments of bubblewrap.

Inside there is the system read-only, a private `/tmp`, the task's folder at `/work`, and nothing else:
namespaces of its own for users, processes, network (without any interface but its own loopback), IPC, host
name and cgroups, no capability, no further user namespaces, an unprivileged user. Memory-backed folders are
small, everything else is read-only, so that the only place to write much is the task's folder, which is
measured.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ioc_node.executors.executor import BadProgram, Bounds, Work

FOLDER: Final = "/work"
PROGRAM: Final = "/program"
SCRATCH: Final = "/tmp"  # noqa: S108 (of the sandbox, private)
PATH: Final = "/usr/local/bin:/usr/bin:/bin"
USER_ID: Final = 65534
SCRATCH_MIB: Final = 64
"""Size of `/tmp` and of `/dev/shm`, which are memory and not part of the task's disk."""
PROCESSES_MAX: Final = 256
OPEN_FILES_MAX: Final = 1024
_SYSTEM_FOLDERS: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC: Final = (
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/ssl/certs",
)
FIRST: Final = ("/bin/sh", "-c", '"$@"; exit $?', "sh")
"""Process 1 of the sandbox: waits for the command. Under bwrap's own process 1, which bwrap does not wait for, the
CPU time of the tree would be lost."""
USERS: Final = f"task:x:{USER_ID}:{USER_ID}:task:{FOLDER}:/bin/sh\n".encode()
GROUPS: Final = f"task:x:{USER_ID}:\n".encode()


def sandbox_arguments(work: Work, *, users_fd: int, groups_fd: int, program_fd: int | None) -> list[str]:
    """Arguments of bwrap up to the command. The descriptors hold the contents of /etc/passwd, /etc/group,
    program."""
    scratch = ["--size", str(SCRATCH_MIB << 20), "--tmpfs"]
    arguments = [
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
    ]
    arguments += ["--uid", str(USER_ID), "--gid", str(USER_ID), "--cap-drop", "ALL", "--hostname", "task"]
    arguments += [*_system(), "--proc", "/proc"]
    # Without capabilities, but as the same user outside: where root runs the node, the kernel would let a task write
    # /proc/sys and /proc/sysrq-trigger. Nothing in /proc needs to be written.
    arguments += ["--remount-ro", "/proc"]
    arguments += ["--dev", "/dev", *scratch, "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
    arguments += ["--ro-bind-data", str(users_fd), "/etc/passwd"]
    arguments += ["--ro-bind-data", str(groups_fd), "/etc/group"]
    arguments += [*scratch, SCRATCH, "--bind", str(work.folder), FOLDER, "--chdir", FOLDER]
    if program_fd is not None:
        arguments += ["--perms", "0555", "--ro-bind-data", str(program_fd), PROGRAM]
    arguments += ["--remount-ro", "/", "--clearenv"]
    defaults = {"PATH": PATH, "HOME": FOLDER, "TMPDIR": SCRATCH, "LANG": "C.UTF-8", "USER": "task"}
    for name, value in (defaults | dict(work.env)).items():
        arguments += ["--setenv", name, value]
    return arguments


def _system() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for folder in map(Path, _SYSTEM_FOLDERS):
        if folder.is_symlink():
            yield from ("--symlink", str(folder.readlink()), str(folder))
        elif folder.is_dir():
            yield from ("--ro-bind", str(folder), str(folder))
    for path in _ETC:
        yield from ("--ro-bind-try", path, path)


def command_of(work: Work) -> tuple[list[str], Path | None]:
    """The command as it reads inside, and the program file that has to be brought in (None: it is there
    already).

    Raises `BadProgram` where the command is not found on the system's path or the file is missing.
    """
    arguments = list(work.argv[1:])
    if work.program is None:
        if not work.argv:
            raise BadProgram("runtime process needs a program or a command")
        return [_find_command(work.argv[0], work.folder), *arguments], None
    if not work.program.is_file():
        raise BadProgram(f"program {work.program.name} cannot be read: no such file")
    program = work.program.resolve()
    if program.is_relative_to(work.folder):
        program.chmod(program.stat().st_mode | 0o100)
        return [f"{FOLDER}/{program.relative_to(work.folder)}", *arguments], None
    return [PROGRAM, *arguments], program


def _find_command(name: str, folder: Path) -> str:
    if "/" not in name:
        if shutil.which(name, path=PATH) is None:
            raise BadProgram(f"command {name!r} is not on the path {PATH} of this machine")
        return name
    inner = folder / Path(name).relative_to(FOLDER) if Path(name).is_relative_to(FOLDER) else folder / name
    if not os.access(inner if not name.startswith("/") or name.startswith(FOLDER) else name, os.X_OK):
        raise BadProgram(f"command {name!r} is not an executable file")
    return name


def rlimits(bounds: Bounds) -> list[str]:
    """`prlimit` and its options; run inside, where the number of processes counts those of this sandbox
    alone.

    The memory of one process is capped well above the bound, which is watched over the whole tree: a
    program that is just too large is stopped and told why, one that explodes between two looks is refused
    memory.
    """
    options = {
        "core": 0,
        "cpu": int(bounds.wall_seconds * bounds.cores) + 2,
        "data": (2 * bounds.memory_mib + 64) << 20,
        "fsize": bounds.disk_mib << 20,
        "memlock": 0,
        "nofile": OPEN_FILES_MAX,
        "nproc": PROCESSES_MAX,
    }
    return ["prlimit", *(f"--{name}={value}" for name, value in options.items()), "--"]
