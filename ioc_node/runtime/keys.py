"""Private key files: Ed25519 as PEM (PKCS #8, RFC 8410), readable by their owner alone, never modified once made."""

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ioc_node.errors import KeyFileUnsafe, StorageFull

KEY_FILE_BYTES_MAX: Final = 4096
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def create_key(path: Path) -> Ed25519PrivateKey:
    """Make a new key and write it to `path`, mode 0600. Raises `KeyFileUnsafe` if there is a file already."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o600)
    except FileExistsError:
        raise KeyFileUnsafe(
            f"key file {path} exists already and is not overwritten: move it away first"
        ) from None
    except OSError as error:
        raise KeyFileUnsafe(f"key file {path} cannot be made: {error.strerror}") from None
    try:
        os.write(file, pem)
        os.fsync(file)
    except OSError as error:
        path.unlink()  # ours alone: O_EXCL made it, and it holds no key yet
        raise StorageFull(f"key file {path} cannot be written: {error.strerror}") from None
    finally:
        os.close(file)
    return key


def load_key(path: Path) -> Ed25519PrivateKey:
    """The key in `path`. Raises `KeyFileUnsafe` where it is missing, unreadable, open to others or no key."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyFileUnsafe(f"key file {path} does not exist: make one with `ioc-node init`") from None
    except OSError as error:
        raise KeyFileUnsafe(f"key file {path} cannot be read: {error.strerror}") from None
    try:
        _check_file(os.fstat(file), path)
        pem = os.read(file, KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise KeyFileUnsafe(f"key file {path} cannot be read: {error.strerror}") from None
    finally:
        os.close(file)
    return _parse(pem, path)


def _check_file(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileUnsafe(f"key file {path} is not a file")
    if found.st_uid not in (os.geteuid(), 0):
        raise KeyFileUnsafe(
            f"key file {path} belongs to another user: chown it to the user that runs the node"
        )
    if found.st_mode & _OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        raise KeyFileUnsafe(f"key file {path} has mode {mode:04o}, others can use it: run `chmod 600 {path}`")


def _parse(pem: bytes, path: Path) -> Ed25519PrivateKey:
    if len(pem) > KEY_FILE_BYTES_MAX:
        raise KeyFileUnsafe(f"key file {path} is larger than any key: is it the right file?")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFileUnsafe(f"key file {path} holds no usable private key: restore it from a copy") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileUnsafe(f"key file {path} holds a key of another kind, Ed25519 is needed")
    return key
