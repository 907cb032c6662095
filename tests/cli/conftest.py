"""One small network for all tests of this folder, and its command line without a new process for each call."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ioc_testnet.network import Testnet, attach_testnet
from tests.cli.inside import Cli
from tests.testnet.command import TESTNET, processes_in, run


@pytest.fixture(scope="session")
def shared_net() -> Iterator[Testnet]:
    """A core node, two providers and a consumer, started and ended by the commands that a user has."""
    with tempfile.TemporaryDirectory(prefix="ioc-t-") as temp:
        folder = Path(temp) / "net"
        run(TESTNET, "up", "--detach", "--topology", "small", "--dir", folder).check()
        try:
            yield attach_testnet(folder)
        finally:
            done = run(TESTNET, "down", "--json", "--dir", folder)
        assert done.code == 0, done
        assert processes_in(folder) == []
        assert not folder.exists()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)
