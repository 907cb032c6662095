"""Private key files: made once, private, refused in every other state, and never touched."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ioc_node.errors import KeyFileUnsafe
from ioc_node.runtime.keys import create_key, load_key
from ioc_wire.signed import public_bytes


def test_key_is_made_private_and_loads_again(tmp_path: Path):
    path = tmp_path / "node.key"
    key = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_bytes(load_key(path)) == public_bytes(key)
    before = path.read_bytes()
    with pytest.raises(KeyFileUnsafe, match="exists already and is not overwritten"):
        create_key(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_key_open_to_others_is_refused_with_the_command_to_run(tmp_path: Path, mode: int):
    path = tmp_path / "node.key"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(KeyFileUnsafe, match=f"mode {mode:04o}, others can use it: run `chmod 600 {path}`"):
        load_key(path)
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\x00\xff" * 50, b"-----BEGIN PRIVATE KEY-----\nAAAA\n", b"x" * 9999]
)
def test_file_that_is_no_key_is_refused_and_kept(tmp_path: Path, content: bytes):
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileUnsafe, match=r"holds no usable private key|larger than any key"):
        load_key(path)
    assert path.read_bytes() == content


def test_missing_folder_pipe_and_other_kind_of_key_are_one_line_each(tmp_path: Path):
    with pytest.raises(KeyFileUnsafe, match="does not exist: make one"):
        load_key(tmp_path / "none.key")
    with pytest.raises(KeyFileUnsafe, match="is not a file"):
        load_key(tmp_path)
    os.mkfifo(tmp_path / "pipe.key", 0o600)
    with pytest.raises(KeyFileUnsafe, match="is not a file"):
        load_key(tmp_path / "pipe.key")
    with pytest.raises(KeyFileUnsafe, match="cannot be made"):
        create_key(tmp_path / "missing" / "node.key")
    pem = rsa.generate_private_key(65537, 1024).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    path = tmp_path / "rsa.key"
    path.write_bytes(pem)
    path.chmod(0o600)
    with pytest.raises(KeyFileUnsafe, match="another kind"):
        load_key(path)
