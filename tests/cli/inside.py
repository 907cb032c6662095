"""The command line, called inside the test's own process: as quick as a function, and with the same one way out."""

import json
from pathlib import Path
from typing import Any

import pytest

from ioc_node.cli.faults import run_group
from ioc_node.cli.main import group


class Cli:
    """Calls `ioc-node` and checks how it ends."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def call(self, home: Path | None, *args: object) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        self._capsys.readouterr()
        words = ["--home", str(home)] if home is not None else []
        code = run_group(group, [*words, *map(str, args)], "ioc-node")
        out, err = self._capsys.readouterr()
        return code, out, err

    def text(self, home: Path | None, *args: object) -> str:
        """The output of a command that works."""
        code, out, err = self.call(home, *args)
        assert code == 0, (out, err)
        return out

    def json(self, home: Path | None, *args: object) -> dict[str, Any]:
        """The last line of a command that works, with --json."""
        return dict(json.loads(self.text(home, *args, "--json").splitlines()[-1]))

    def refused(self, home: Path | None, *args: object, words: list[str], code: int | None = None) -> None:
        """It fails with one line on stderr that holds `words`."""
        found, out, err = self.call(home, *args)
        assert found == code if code is not None else found not in (0, 1), (found, out, err)
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        for word in words:
            assert word in err, err
