"""Fixtures of the task tests."""

from pathlib import Path

import pytest

from tests.tasks.cases import Town


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)
