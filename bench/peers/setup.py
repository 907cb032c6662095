"""Make the environments of the systems compared with: `python bench/peers/setup.py [NAME ...]`.

Each peer lives in `.bench-peers/NAME/`, a virtual environment of its own with pinned versions, so that none
of them is a dependency of the project. An environment that is already complete is left alone.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2] / ".bench-peers"
DHT_PEERS: Final = {
    "opendht": ("opendht==4.4.2",),
    "kademlia": ("kademlia==2.2.3",),
    "libtorrent": ("libtorrent==2.1.1", "cryptography==50.0.2"),
    "libp2p": ("libp2p==0.8.1",),
}
PEERS: Final = DHT_PEERS | {"duckdb": ("duckdb==2.0.0",)}


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, whether it exists or not."""
    return ROOT / name / "bin" / "python"


def is_made(name: str) -> bool:
    """Whether the environment was made to the end with the versions pinned now."""
    mark = ROOT / name / "made"
    return mark.exists() and mark.read_text().split() == list(PEERS[name])


def make(name: str) -> None:
    """Make one environment; raises `CalledProcessError`."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ROOT / name)], check=True)
    subprocess.run(
        [
            str(python_of(name)),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *PEERS[name],
        ],
        check=True,
    )
    (ROOT / name / "made").write_text("\n".join(PEERS[name]) + "\n")


def main() -> int:
    names = sys.argv[1:] or list(PEERS)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        print(f"no such peer: {', '.join(unknown)} (there are {', '.join(PEERS)})", file=sys.stderr)
        return 2
    failed = False
    for name in names:
        if is_made(name):
            print(f"{name}: made already")
            continue
        print(f"{name}: installing {' '.join(PEERS[name])}")
        try:
            make(name)
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
