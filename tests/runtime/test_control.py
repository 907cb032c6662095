"""The control socket between real endpoints in one home folder, and the lock on that folder."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from ioc_node.errors import NodeError, PeerUnreachable
from ioc_node.runtime.control import open_control, open_control_server
from ioc_wire.errors import NotFound
from tests.runtime.link_cases import CODEC, Answers, Ask, Count, Crash, Number, Told, Wait


async def test_requests_streams_and_errors_travel_over_the_socket(tmp_path: Path):
    answers = Answers()
    async with open_control_server(tmp_path, CODEC, answers.handlers):
        assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o600
        async with open_control(tmp_path, CODEC) as link:
            assert await link.request(Ask("hello"), Told) == Told("hello")
            async with link.open_stream(Count(500), Number) as numbers:
                assert [number.value async for number in numbers] == list(range(500))
        with pytest.raises(NotFound, match="no such thing"):
            async with open_control(tmp_path, CODEC) as link:
                await link.request(Crash("wire"))
    assert not (tmp_path / "control.sock").exists()


async def test_leaving_the_link_cancels_what_was_asked(tmp_path: Path):
    answers = Answers()
    async with open_control_server(tmp_path, CODEC, answers.handlers), trio.open_nursery() as nursery:

        async def ask() -> None:
            async with open_control(tmp_path, CODEC) as link:
                await link.request(Wait("w"))

        nursery.start_soon(ask)
        await answers.until(lambda seen: "w" in seen.waiting)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await answers.until(lambda seen: "w" in seen.cancelled)


async def test_no_node_and_a_dead_node_are_one_line(tmp_path: Path):
    line = f"no node is running on {tmp_path}: start it with `ioc-node --home {tmp_path} up`"
    for _ in ("nothing there", "a dead node's socket"):
        with pytest.raises(PeerUnreachable) as error:
            async with open_control(tmp_path, CODEC):
                pass
        assert str(error.value) == line
        (tmp_path / "control.sock").unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "control.sock"))
            dead.listen()
    async with (
        open_control_server(tmp_path, CODEC, Answers().handlers),
        open_control(tmp_path, CODEC) as link,
    ):
        await link.request(Ask("a stale socket was replaced"))
    with pytest.raises(PeerUnreachable, match="no node is running"):
        async with open_control(tmp_path / "missing", CODEC):
            pass


async def test_second_node_on_a_home_names_the_first(tmp_path: Path):
    program = (
        "import sys, pathlib, time; from ioc_node.runtime.control import lock_home\n"
        "with lock_home(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        assert first.stdout is not None
        assert await trio.to_thread.run_sync(first.stdout.readline) == b"locked\n"
        with pytest.raises(NodeError, match=rf"another node is running on {tmp_path} \(pid {first.pid}\)"):
            async with open_control_server(tmp_path, CODEC, Answers().handlers):
                pass
    finally:
        first.kill()
        first.wait()
        assert first.stdout is not None
        first.stdout.close()
    async with open_control_server(tmp_path, CODEC, Answers().handlers):
        pass  # the kernel released the dead process's lock


async def test_home_with_a_very_long_path_works(tmp_path: Path):
    home = tmp_path / ("d" * 100) / ("e" * 100)
    home.mkdir(parents=True)
    async with open_control_server(home, CODEC, Answers().handlers), open_control(home, CODEC) as link:
        assert await link.request(Ask("far"), Told) == Told("far")


async def test_garbage_ends_its_own_connection_only(tmp_path: Path):
    async with (
        open_control_server(tmp_path, CODEC, Answers().handlers),
        open_control(tmp_path, CODEC) as link,
    ):
        for n in range(200):
            stream = await trio.open_unix_socket(tmp_path / "control.sock")
            garbage = os.urandom(64) if n % 2 else len(b"xx").to_bytes(4, "big") + b"xx"
            await stream.send_all(garbage)
            if n % 2:
                await stream.send_eof()
            with trio.fail_after(5):
                assert await stream.receive_some() == b""
            await stream.aclose()
        assert await link.request(Ask("unharmed"), Told) == Told("unharmed")


async def test_server_that_stops_breaks_the_link_with_a_clear_error(tmp_path: Path):
    answers = Answers()
    failed: list[str] = []

    async def ask() -> None:
        with pytest.raises(PeerUnreachable) as error:
            async with open_control(tmp_path, CODEC) as link:
                await link.request(Wait("w"))
        failed.append(str(error.value))

    async with trio.open_nursery() as nursery, open_control_server(tmp_path, CODEC, answers.handlers):
        nursery.start_soon(ask)
        await answers.until(lambda seen: "w" in seen.waiting)
    assert failed == ["the link to local broke: closed by the peer"]
