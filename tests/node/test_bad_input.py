"""What a whole node makes of bad input: one clear line, nothing lost, and it goes on serving."""

import random
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE

import pytest
import trio
import trio.lowlevel

import ioc_node
from ioc_node.config import BulkConfig
from ioc_node.errors import (
    ConfigError,
    DatabaseCorrupt,
    KeyFileUnsafe,
    RequestRefused,
    StorageFull,
)
from ioc_node.runtime.keys import create_key
from ioc_node.tasks.definition import BLOB
from ioc_wire.bulk import format_blob_id
from ioc_wire.errors import (
    BlobCorrupt,
)
from ioc_wire.tasks import Input, Output, Resources
from tests.node.conftest import MakeHome
from tests.node.three_nodes import HELLO, MIB, changed, failed, one_line, open_three

# -- a home that cannot be used: `ioc-node up` as a process


async def run_up(home: Path, *, until_ready: bool = False) -> tuple[int, str, str]:
    """`ioc-node up` to its end; where it gets ready it is told to stop. Exit code, stdout, stderr."""
    command = [sys.executable, "-m", "ioc_node.cli.main", "--home", str(home), "up", "--json"]
    out, err = bytearray(), bytearray()

    async def read(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
        async for data in stream:
            into += data
            if b'"ready"' in into:
                process.send_signal(signal.SIGTERM)

    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, command, stdout=PIPE, stderr=PIPE, check=False)
            process = await nursery.start(run)
            assert process.stdout is not None
            assert process.stderr is not None
            nursery.start_soon(read, process.stdout, out)
            nursery.start_soon(read, process.stderr, err)
    assert process.returncode is not None
    assert (b'"ready"' in out) is until_ready, err.decode()
    assert b"Traceback" not in err
    return process.returncode, out.decode(), err.decode()


def write_config(config: ioc_node.NodeConfig) -> None:
    (config.home / "config.toml").write_text(f'role = "{config.role}"\nport = {config.port}\n')


def last_error(err: str) -> str:
    lines = err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1]


async def test_a_corrupt_database_is_kept_and_the_next_start_works(make_home: MakeHome) -> None:
    config = make_home("home", "consumer")
    write_config(config)
    bad = b"this was a database" * 1000
    (config.home / "node.db").write_bytes(bad)
    code, _, err = await run_up(config.home)
    assert code == 1
    assert "corrupt" in last_error(err)
    (kept,) = config.home.glob("node.db.corrupt-*")
    assert kept.name in last_error(err)
    assert kept.read_bytes() == bad
    assert not (config.home / "node.db").exists()
    code, _, err = await run_up(config.home, until_ready=True)
    assert code == 0
    assert kept.read_bytes() == bad


async def test_a_port_in_use_ends_the_start_with_one_line(make_home: MakeHome) -> None:
    """Each of the three: TCP for links, UDP for the DHT, UDP for bulk."""
    for kind, step in ((socket.SOCK_STREAM, 0), (socket.SOCK_DGRAM, 0), (socket.SOCK_DGRAM, 1)):
        config = make_home(f"home-{kind}-{step}", "consumer")
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", config.port + step))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            with pytest.raises(ioc_node.errors.PortInUse, match=str(config.port + step)) as caught:
                async with ioc_node.open_node(config):
                    pass
        one_line(caught.value)
        async with ioc_node.open_node(config):
            pass  # nothing of the first try is left in the way


async def test_a_database_that_breaks_under_its_header_is_kept_too(make_home: MakeHome) -> None:
    config = make_home("home", "consumer")
    async with ioc_node.open_node(config):
        pass
    path = config.home / "node.db"
    data = bytearray(path.read_bytes())
    data[100:4096] = random.Random(1).randbytes(3996)
    path.write_bytes(data)
    with pytest.raises(DatabaseCorrupt, match="start again") as caught:
        async with ioc_node.open_node(config):
            pass
    one_line(caught.value)
    (kept,) = config.home.glob("node.db.corrupt-*")
    assert kept.read_bytes() == data
    async with ioc_node.open_node(config):
        pass


async def test_bad_key_files_are_left_as_they_are(make_home: MakeHome) -> None:
    config = make_home("home", "consumer")
    key = config.home / "node.key"
    key.chmod(0o600)
    key.write_bytes(b"not a key")
    with pytest.raises(KeyFileUnsafe) as caught:
        async with ioc_node.open_node(config):
            pass
    assert str(key) in one_line(caught.value)
    assert key.read_bytes() == b"not a key"
    key.unlink()
    with pytest.raises(KeyFileUnsafe):
        async with ioc_node.open_node(config):
            pass
    assert not key.exists(), "a missing key is not made up: the node would be another one"
    create_key(key)
    async with ioc_node.open_node(config):
        pass


# -- tasks and blobs between three nodes


async def test_bad_tasks_end_with_one_line_and_good_ones_go_on(make_home: MakeHome, tmp_path: Path) -> None:
    async with open_three(make_home) as nodes:
        node, good = nodes.consumer, ioc_node.TaskSpec.load(HELLO)

        wrong = tmp_path / "wrong.toml"
        wrong.write_text(HELLO.read_text().replace("cores = 1", 'cores = "one"'))
        with pytest.raises(ConfigError, match=r"resources\.cores: expected") as caught:
            ioc_node.TaskSpec.load(wrong)
        one_line(caught.value)

        with pytest.raises(ioc_node.errors.UsageError, match="absent") as missing:
            await node.submit(changed(good, inputs=(Input(path="in", url="file:absent.bin"),)))
        one_line(missing.value)
        with pytest.raises(ConfigError, match="escape") as outside:
            await node.submit(changed(good, outputs=(Output(path="../escape"),)))
        one_line(outside.value)
        assert not node.consumer.tasks(10), "nothing of these was journalled"

        started = trio.current_time()
        line = await failed(node, changed(good, resources=Resources(cores=512)), seconds=2)
        assert "cannot be placed because" in line
        assert "nearest miss" in line
        assert trio.current_time() - started < 1, "it is said at once"

        line = await failed(node, changed(good, outputs=(Output(path="never"),)))
        assert "output 'never' was never written" in line

        blob = "blob:" + "b" + "a" * 52
        line = await failed(node, changed(good, inputs=(Input(path="in", url=blob),)))
        assert "in" in line

        task = await node.submit(good)
        with trio.fail_after(10):
            assert (await task.result()).outputs


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses longer files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_a_disk_that_fills_up_while_blobs_arrive(make_home: MakeHome, tmp_path: Path) -> None:
    """A blob fetched by hand, and the input of a task staged on a provider; once there is room both work."""
    data = random.Random(2).randbytes(12 * MIB)
    (tmp_path / "big").write_bytes(data)
    async with open_three(make_home, bulk=BulkConfig(offloads=())) as nodes:
        provider, node = nodes.provider, nodes.consumer
        kept = await provider.add(HELLO)
        big = await provider.add(tmp_path / "big")
        with file_size_limit(8 * MIB):
            with pytest.raises(StorageFull, match="no space left") as caught:
                await node.get(big.blob, tmp_path / "copy")
            one_line(caught.value)
            assert not (tmp_path / "copy").exists()
            await node.get(kept.blob, tmp_path / "small")
        got = await node.get(big.blob, tmp_path / "copy")
        assert got.size == len(data)
        assert (tmp_path / "copy").read_bytes() == data

        more = random.Random(3).randbytes(12 * MIB)
        (tmp_path / "input").write_bytes(more)
        mine = await node.add(tmp_path / "input")
        spec = changed(
            ioc_node.TaskSpec.load(HELLO),
            inputs=(Input(path="in", url=BLOB + format_blob_id(mine.blob)),),
            resources=Resources(cores=1, memory_mib=16, disk_mib=64),
        )
        with file_size_limit(8 * MIB):
            line = await failed(node, spec, seconds=20)
        assert "input 'in' could not be fetched" in line
        assert "no space left" in line
        assert not list((provider.config.home / "tasks").iterdir())
        task = await node.submit(spec)
        with trio.fail_after(10):
            await task.result()


async def test_a_bit_flipped_on_disk_reaches_nobody(make_home: MakeHome, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(3 * MIB)
    (tmp_path / "file").write_bytes(data)
    async with open_three(make_home) as nodes:
        holder, node = nodes.provider, nodes.consumer
        added = await holder.add(tmp_path / "file")
        flip_a_bit(holder.bulk.store.path(added.blob))
        with trio.fail_after(10), pytest.raises((RequestRefused, BlobCorrupt)) as caught:
            await node.get(added.blob, tmp_path / "copy")
        assert "do not match their hash" in one_line(caught.value)
        assert not (tmp_path / "copy").exists()
        assert not node.bulk.store.has(added.blob)

        mine = await node.add(tmp_path / "file")
        flip_a_bit(node.bulk.store.path(mine.blob))
        with pytest.raises(BlobCorrupt) as caught_here:
            await node.get(mine.blob, tmp_path / "copy")
        one_line(caught_here.value)
        assert not (tmp_path / "copy").exists()
        again = await node.add(tmp_path / "file")  # the file is still good: so is the blob, from now on
        await node.get(again.blob, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data


def flip_a_bit(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(MIB + 7)
        byte = file.read(1)[0]
        file.seek(MIB + 7)
        file.write(bytes([byte ^ 0x10]))
