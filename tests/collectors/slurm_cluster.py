"""A real Slurm cluster on this machine: munged, slurmctld and slurmds of the distribution, with keys, ports and folders
of their own. Needs no privileges: every daemon runs as whoever runs the tests.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "scontrol", "sbatch", "scancel")
STARTS_SECONDS_MAX = 20.0
STOPS_SECONDS_MAX = 2.0

CONF = """
ClusterName=town
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=1
ReturnToService=2
KillWait=1
GresTypes=gpu
"""


def missing_programs() -> list[str]:
    """Which programs of Slurm and MUNGE this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port


class SlurmCluster:
    """`nodes` maps names to what slurm.conf says of them. All must be there when it starts; `start_node` runs one."""

    def __init__(self, folder: Path, nodes: dict[str, str]) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self._ports = {name: _free_port() for name in nodes}
        self._nodes = dict(nodes)
        self._port = _free_port()
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "state").mkdir()
        (folder / "gpu0").touch()
        (folder / "gpu1").touch()
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def write(self) -> None:
        """Write slurm.conf as the cluster should be."""
        lines = [
            CONF.format(
                host=socket.gethostname().partition(".")[0],
                port=self._port,
                user=getpass.getuser(),
                folder=self.folder,
            )
        ]
        host = socket.gethostname().partition(".")[0]
        for name, words in self._nodes.items():
            lines.append(
                f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={self._ports[name]} {words}\n"
            )
        lines.append(
            f"PartitionName=day Nodes={','.join(self._nodes)} Default=YES MaxTime=INFINITE State=UP\n"
        )
        self.conf.write_text("".join(lines))
        with_gpus = [name for name, words in self._nodes.items() if "gpu:" in words]
        (self.folder / "gres.conf").write_text(
            "".join(
                f"NodeName={name} Name=gpu Type=a100 Count=2 File={self.folder}/gpu[0-1]\n"
                for name in with_gpus
            )
        )

    def start_munged(self) -> None:
        """Start the authentication daemon, and wait for its socket."""
        paths = {"key-file": "munge.key", "socket": "munge.sock", "log-file": "munged.log"}
        paths |= {"pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{name}={self.folder / value}" for name, value in paths.items()]
        self._start("munged", "munged", "--foreground", "--force", "--group-update-time=-1", *options)
        until = time.monotonic() + STARTS_SECONDS_MAX
        while not (self.folder / "munge.sock").exists():
            self._still_running("munged", until)

    def start_controller(self) -> None:
        """Start slurmctld, and wait until it answers."""
        self._start("slurmctld", "slurmctld", "-D", "-i")
        until = time.monotonic() + STARTS_SECONDS_MAX
        while self.run("scontrol", "ping", check=False).find("UP") < 0:
            self._still_running("slurmctld", until)

    def start_node(self, name: str) -> None:
        """Start the slurmd of one node. It registers by itself."""
        self._start(f"slurmd {name}", "slurmd", "-D", "-N", name)

    def remove_node(self, name: str) -> None:
        """Take a node out of slurm.conf, in effect from the next start of the controller."""
        del self._nodes[name]
        self.write()

    def stop(self, name: str) -> None:
        """End one daemon and wait for it."""
        process = self._started.pop(name)
        process.terminate()
        try:
            process.wait(STOPS_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def run(self, *words: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.conf), "LC_ALL": "C"}

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{words[0]}.out").open("ab") as out:
            self._started[name] = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder
            )

    def _still_running(self, name: str, until: float) -> None:
        said = (self.folder / f"{name}.out").read_text(errors="replace")[-2000:]
        assert self._started[name].poll() is None, f"{name} ended: {said}"
        assert time.monotonic() < until, f"{name} did not start in time: {said}"
        time.sleep(0.02)

    def end(self) -> None:
        """End every daemon, and what is left of its jobs."""
        if "slurmctld" in self._started:
            self.run("scancel", "--user", getpass.getuser(), check=False)
        left = [process for process in psutil.process_iter() if self._is_ours(process)]
        for running in self._started.values():
            running.terminate()
        for name in list(self._started):
            self.stop(name)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil knows a number that was given again
                process.kill()

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether a job runs with this cluster's slurm.conf, or a slurmstepd listens in its spool folder."""
        try:
            if process.name() == "slurmstepd":
                sockets = process.net_connections(kind="unix")
                return any(str(each.laddr).startswith(f"{self.folder}/") for each in sockets)
            return process.environ().get("SLURM_CONF") == str(self.conf)
        except psutil.Error:
            return False


@contextlib.contextmanager
def open_slurm(nodes: dict[str, str]) -> Iterator[SlurmCluster]:
    """A cluster whose controller answers, with no slurmd yet. A short folder: paths of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="ioc-slurm-", ignore_cleanup_errors=True) as folder:
        cluster = SlurmCluster(Path(folder), nodes)
        cluster.write()
        try:
            cluster.start_munged()
            cluster.start_controller()
            yield cluster
        finally:
            cluster.end()
