"""The network file: what a node must know of a network before it talks to anybody, and who vouches for it.

A network file is TOML. Everything above the first line that reads `[[signatures]]` is signed, as the exact bytes of
the file, by root keys listed in it:

    name = "harbour"
    admission = "certified"              # or "open"
    created = "2026-11-23T19:51:25Z"
    nonce = "0f3c..."                    # 16 random bytes, hex
    threshold = 2
    root_keys = ["9d61b1...", "3d4017..."]
    bootstrap = ["203.0.113.7:4600"]

    [parameters]

    [[signatures]]
    key = "9d61b1..."
    signature = "e5564300..."

The network's identity (`network_id`, which every session and link is bound to) covers name, admission rule,
threshold, root keys and nonce: what makes it *this* network and decides whom to trust. It leaves out bootstrap peers
and parameters, so that a re-signed file with other peers is still the same network. The nonce keeps two networks of
one name and no root keys in common with nobody, such as two test networks, apart.
"""

import hashlib
import secrets
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_bootstrap.addresses import Address, BadAddress, parse_address
from ioc_wire import limits
from ioc_wire.codec import Document, encode
from ioc_wire.errors import BadSignature
from ioc_wire.signed import DOMAIN, public_bytes, signed_bytes, verify_bytes

NETWORK_FILE_BYTES_MAX: Final = 256 << 10
ROOT_KEYS_MAX: Final = 32
BOOTSTRAP_PEERS_MAX: Final = 256
SIGNATURES_MAX: Final = 64
NONCE_BYTES: Final = 16
SIGNATURE_KIND: Final = "network-file"
SIGNATURES_LINE: Final = b"[[signatures]]"

_T = TypeVar("_T")

Admission = Literal["open", "certified"]


class NetworkFileError(Exception):
    """A network file that cannot be used; `str()` is one line: which file, what is wrong, what to do."""


class NetworkParameters(Document, frozen=True):
    """Protocol parameters on which all nodes of one network must agree. The defaults are the protocol's own."""

    record_seconds_max: int = limits.RECORD_SECONDS_MAX
    replication: int = limits.REPLICATION

    def __post_init__(self) -> None:
        if not 60 <= self.record_seconds_max <= limits.RECORD_SECONDS_MAX:
            raise ValueError(f"record_seconds_max is 60 to {limits.RECORD_SECONDS_MAX}")
        if not 1 <= self.replication <= limits.REPLICATION:
            raise ValueError(f"replication is 1 to {limits.REPLICATION}")


class _SignatureRow(Document, frozen=True):
    key: str
    signature: str


class _Statement(Document, frozen=True):
    """What is signed: everything above the signatures."""

    name: str
    admission: Admission
    nonce: str
    threshold: int
    root_keys: tuple[str, ...]
    created: str = ""
    bootstrap: tuple[str, ...] = ()
    parameters: NetworkParameters = NetworkParameters()


class _Signatures(Document, frozen=True):
    signatures: tuple[_SignatureRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network whose file was verified. `root_keys` are Ed25519 public keys, 32 bytes each."""

    name: str
    network_id: bytes
    admission: Admission
    root_keys: frozenset[bytes]
    threshold: int
    bootstrap: tuple[Address, ...] = ()
    parameters: NetworkParameters = field(default_factory=NetworkParameters)

    @property
    def certified(self) -> bool:
        """Whether every node needs a delegation chain from a root key."""
        return self.admission == "certified"


def network_id_of(
    name: str, admission: str, threshold: int, root_keys: Collection[bytes], nonce: bytes
) -> bytes:
    """SHA-256, 32 bytes, over the MessagePack array of domain, "network" and the arguments, keys sorted."""
    fields = (DOMAIN, "network", name, admission, threshold, tuple(sorted(root_keys)), nonce)
    return hashlib.sha256(encode(fields)).digest()


def create_network(
    name: str,
    *,
    root_keys: Sequence[bytes],
    threshold: int,
    admission: Admission = "certified",
    bootstrap: Sequence[str] = (),
    parameters: NetworkParameters | None = None,
    created: str = "",
    nonce: bytes | None = None,
) -> str:
    """The unsigned text of a new network's file; `sign_network` adds signatures. Raises `NetworkFileError`."""
    document = {
        "name": name,
        "admission": admission,
        "created": created,
        "nonce": (nonce or secrets.token_bytes(NONCE_BYTES)).hex(),
        "threshold": threshold,
        "root_keys": [key.hex() for key in root_keys],
        "bootstrap": list(bootstrap),
        "parameters": msgspec.to_builtins(parameters or NetworkParameters()),
    }
    text = tomli_w.dumps(document)
    _read(text.encode(), "the new network", check_signatures=False)
    return text


def sign_network(text: str, key: Ed25519PrivateKey) -> str:
    """`text` with the signature of one more root key at its end. Raises `NetworkFileError`."""
    where = "the network file"
    signed, rest = _split(text.encode())
    statement = _parse(signed, _Statement, where)
    rows = _parse(rest, _Signatures, where).signatures
    public = public_bytes(key).hex()
    if public not in statement.root_keys:
        raise NetworkFileError(f"{where} does not list {public[:16]}… as a root key: nothing to sign with it")
    if any(row.key == public for row in rows):
        raise NetworkFileError(f"{where} is signed by {public[:16]}… already")
    # What is appended must not change what the signatures cover: once there is one, the part above is left alone.
    if not rows:
        signed = signed.rstrip(b"\n") + b"\n\n"
    signature = key.sign(signed_bytes(DOMAIN, SIGNATURE_KIND, signed))
    before = rest.decode().rstrip("\n") + "\n\n" if rows else ""
    return f'{signed.decode()}{before}[[signatures]]\nkey = "{public}"\nsignature = "{signature.hex()}"\n'


def load_network(path: Path) -> Network:
    """Read and verify a network file. Raises `NetworkFileError` for every reason not to trust or understand it."""
    try:
        if path.stat().st_size > NETWORK_FILE_BYTES_MAX:
            raise NetworkFileError(f"network file {path} is larger than {NETWORK_FILE_BYTES_MAX >> 10} KiB")
        data = path.read_bytes()
    except OSError as error:
        raise NetworkFileError(f"network file {path} cannot be read: {error.strerror}") from None
    return parse_network(data, f"network file {path}")


def parse_network(data: bytes, where: str = "the network file") -> Network:
    """As `load_network`, from bytes."""
    return _read(data, where, check_signatures=True)


def _read(data: bytes, where: str, *, check_signatures: bool) -> Network:
    signed, rest = _split(data)
    # Parsed apart: a table that stands below the signatures must not become part of what they vouch for.
    statement = _parse(signed, _Statement, where)
    rows = _parse(rest, _Signatures, where).signatures
    keys = [_unhex(key, limits.KEY_BYTES, f"{where}: root key") for key in statement.root_keys]
    _check_statement(statement, keys, where)
    if check_signatures:
        _check_signatures(rows, statement.threshold, frozenset(keys), signed, where)
    nonce = _unhex(statement.nonce, NONCE_BYTES, f"{where}: nonce")
    try:
        bootstrap = tuple(parse_address(text) for text in statement.bootstrap)
    except BadAddress as error:
        raise NetworkFileError(f"{where}: bootstrap: {error}") from None
    return Network(
        name=statement.name,
        network_id=network_id_of(statement.name, statement.admission, statement.threshold, keys, nonce),
        admission=statement.admission,
        root_keys=frozenset(keys),
        threshold=statement.threshold,
        bootstrap=bootstrap,
        parameters=statement.parameters,
    )


def _parse(data: bytes, kind: type[_T], where: str) -> _T:
    try:
        return msgspec.convert(tomllib.loads(data.decode()), kind, strict=True)
    except UnicodeDecodeError:
        raise NetworkFileError(f"{where} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise NetworkFileError(f"{where} is not TOML: {error}") from None
    except RecursionError:
        raise NetworkFileError(f"{where} is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise NetworkFileError(f"{where}: {error}") from None


def _check_statement(statement: _Statement, keys: list[bytes], where: str) -> None:
    problem = ""
    if not 1 <= len(statement.name) <= 64 or not statement.name.isprintable():
        problem = "name has 1 to 64 printable characters"
    elif not 1 <= len(keys) <= ROOT_KEYS_MAX:
        problem = f"root_keys lists 1 to {ROOT_KEYS_MAX} keys"
    elif len(set(keys)) != len(keys):
        problem = "a root key is listed twice"
    elif not 1 <= statement.threshold <= len(keys):
        problem = f"threshold {statement.threshold} is not between 1 and the {len(keys)} root keys"
    elif len(statement.bootstrap) > BOOTSTRAP_PEERS_MAX:
        problem = f"bootstrap lists more than {BOOTSTRAP_PEERS_MAX} peers"
    if problem:
        raise NetworkFileError(f"{where}: {problem}")


def _check_signatures(
    rows: tuple[_SignatureRow, ...], threshold: int, keys: frozenset[bytes], signed: bytes, where: str
) -> None:
    if len(rows) > SIGNATURES_MAX:
        raise NetworkFileError(f"{where} has more than {SIGNATURES_MAX} signatures")
    good: set[bytes] = set()
    bad = 0
    for row in rows:
        key = _unhex(row.key, limits.KEY_BYTES, f"{where}: key of a signature")
        signature = _unhex(row.signature, limits.SIGNATURE_BYTES, f"{where}: signature")
        if key not in keys:
            continue
        try:
            verify_bytes(key, signature, signed_bytes(DOMAIN, SIGNATURE_KIND, signed), SIGNATURE_KIND)
        except BadSignature:
            bad += 1
        else:
            good.add(key)
    if len(good) < threshold:
        changed = f", {bad} do not verify: was the file edited after it was signed?" if bad else ""
        raise NetworkFileError(
            f"{where} is signed by {len(good)} of its root keys, {threshold} are needed{changed}"
        )


def _split(data: bytes) -> tuple[bytes, bytes]:
    """What is above the first line that opens the signatures, and the rest from that line on."""
    position = 0
    for line in data.splitlines(keepends=True):
        if line.strip() == SIGNATURES_LINE:
            break
        position += len(line)
    return data[:position], data[position:]


def _unhex(text: str, size: int, what: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != size or data.hex() != text:
        raise NetworkFileError(f"{what} has {2 * size} hexadecimal digits in lower case, not {text[:80]!r}")
    return data
