"""Node.js, for the tests in which another language reads what this one writes."""

import os
import shutil
import subprocess
from typing import Final

import pytest

NODE_MAJOR_MIN: Final = 18


@pytest.fixture(scope="session")
def node() -> str:
    """Node.js, at least 18. Where it is expected (IOC_REQUIRE_NODE=1) its absence is a failure."""
    found = shutil.which("node")
    missing = "Node.js is not installed: nothing is checked in a second language"
    if found is not None:
        version = subprocess.run(
            [found, "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if int(version.lstrip("v").split(".")[0]) < NODE_MAJOR_MIN:
            missing, found = f"Node.js {version} is older than {NODE_MAJOR_MIN}", None
    if found is None:
        if os.environ.get("IOC_REQUIRE_NODE") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return found
