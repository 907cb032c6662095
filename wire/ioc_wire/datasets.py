"""Datasets: a signed list of files, each a blob, with versions.

The list is cut into pages of at most `DATASET_PAGE_FILES_MAX` files, each page a blob: a MessagePack array of
`FileEntry` in order of the paths' UTF-8 bytes. A `DatasetVersion` names the pages with the first path of each, so that
one file costs one page. It is signed by the owner; encoded as a `Signed` it is a blob as well, and that blob's ID
names the version for ever. `owner's node ID/name` names whatever version is newest.

A path is what every file system can hold and what leads nowhere else: see `check_path`.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Final

import msgspec
from blake3 import blake3

from ioc_wire import limits
from ioc_wire.bulk import BLOB_BYTES_MAX
from ioc_wire.codec import Digest, Message, UInt, decode, encode
from ioc_wire.errors import Malformed, NotFound, TooLarge
from ioc_wire.identity import NodeId, format_node_id, node_id_of, parse_node_id
from ioc_wire.signed import Signed, SignedPayload, verify

PAGE_BYTES_MAX: Final = 4 << 20
VERSION_BYTES_MAX: Final = 768 << 10
_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")
_DEVICES: Final = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$", "clock$"]
    + [f"{kind}{number}" for kind in ("com", "lpt") for number in "0123456789¹²³"]
)
_REFUSED: Final = frozenset('<>:"|?*\\')

DatasetName = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.DATASET_NAME_CHARS_MAX)]
FilePath = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.DATASET_PATH_BYTES_MAX)]
FileSize = Annotated[int, msgspec.Meta(ge=0, le=BLOB_BYTES_MAX)]


class FileEntry(Message, frozen=True):
    """One file: where it goes, which blob it is, how large, and whether it is a program. Trust it only after
    `check_page`."""

    path: FilePath
    blob: Digest
    size: FileSize
    executable: bool = False


class Page(Message, frozen=True):
    """A page of the list, and the first path on it."""

    first: FilePath
    blob: Digest
    files: Annotated[int, msgspec.Meta(ge=1, le=limits.DATASET_PAGE_FILES_MAX)]


class DatasetVersion(SignedPayload, frozen=True):
    """One version of a dataset, signed by its owner. `previous` is the blob of the version before, signed as this one
    is; `made` in seconds since 1970; `size` is that of all files together. Trust it only after `verify_version`."""

    kind: ClassVar[str] = "dataset"
    name: DatasetName
    version: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    made: UInt
    files: Annotated[int, msgspec.Meta(ge=0, le=limits.DATASET_FILES_MAX)]
    size: UInt
    pages: Annotated[tuple[Page, ...], msgspec.Meta(max_length=limits.DATASET_PAGES_MAX)]
    previous: Digest | None = None


def dataset_point(owner: bytes, name: str) -> bytes:
    """Where the holders of a dataset are found in the DHT, whatever its version: 32 bytes. `owner` is a node ID."""
    return blake3(b"ioc/1 dataset" + owner + name.encode()).digest()


def format_dataset(owner: bytes, name: str) -> str:
    """`n…/name`: the newest version of a dataset of the node ID `owner`."""
    return f"{format_node_id(owner)}/{name}"


def parse_dataset(text: str) -> tuple[NodeId, str]:
    """Inverse of `format_dataset`; raises `Malformed`."""
    owner, slash, name = text.partition("/")
    if not slash:
        raise Malformed(f"a dataset is named by OWNER/NAME, not {text[:80]!r}")
    return parse_node_id(owner), check_name(name)


def check_name(name: str) -> str:
    """The same name of a dataset; raises `Malformed` where it is none: a-z, 0-9, `-`, `_` and `.`, no dot first."""
    if (
        not 1 <= len(name) <= limits.DATASET_NAME_CHARS_MAX
        or name[0] == "."
        or not set(name) <= _NAME_CHARACTERS
    ):
        raise Malformed(
            f"{name[:80]!r} is no name of a dataset: 1 to {limits.DATASET_NAME_CHARS_MAX} of a-z, 0-9, - _ and ., "
            "no dot first"
        )
    return name


# -- paths


def check_path(path: str) -> str:
    """The same path; raises `Malformed`, with the reason, for one that could lead elsewhere or that some file system
    cannot hold.

    Relative, segments joined by `/`, each 1 to 255 bytes, at most `DATASET_DEPTH_MAX`. Refused: `.` and `..`, control
    and format characters, `<>:"|?*` and backslash, text that is not in Unicode normal form C, a dot or space at the end
    of a segment, names of devices with or without an extension.
    """
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise _refused(path, "it is not Unicode text") from None
    if size > limits.DATASET_PATH_BYTES_MAX:
        raise _refused(path, f"it has {size} bytes, at most {limits.DATASET_PATH_BYTES_MAX} are allowed")
    segments = path.split("/")
    if len(segments) > limits.DATASET_DEPTH_MAX:
        raise _refused(path, f"it is {len(segments)} deep, at most {limits.DATASET_DEPTH_MAX} are allowed")
    for segment in segments:
        _check_segment(path, segment)
    return path


def _check_segment(path: str, segment: str) -> None:
    if not segment:
        raise _refused(path, "it is absolute or has an empty segment")
    if segment in (".", ".."):
        raise _refused(path, f"a segment is {segment!r}")
    if len(segment.encode()) > 255:
        raise _refused(path, "a segment is longer than 255 bytes")
    if segment.isascii():
        clean = segment.isprintable()
    else:
        clean = all(unicodedata.category(each)[0] not in "CZ" or each == " " for each in segment)
        if not unicodedata.is_normalized("NFC", segment):
            raise _refused(path, "it is not in Unicode normal form C")
    if not clean or not _REFUSED.isdisjoint(segment):
        raise _refused(path, 'it has a control character or one of < > : " | ? * \\')
    if segment[-1] in ". ":
        raise _refused(path, "a segment ends with a dot or a space")
    if segment.partition(".")[0].rstrip(" ").casefold() in _DEVICES:
        raise _refused(path, f"{segment!r} is the name of a device on some systems")


def _refused(path: str, why: str) -> Malformed:
    return Malformed(f"path {path[:80]!r}: {why}")


class Paths:
    """All paths of a dataset together: none twice, none that differs from another only by case, no file that is
    another's folder."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}

    def add(self, path: str) -> None:
        """One more file. Raises `Malformed`, as `check_path` does too."""
        check_path(path)
        folded = fold(path)
        if folded in self._files:
            raise _refused(path, "another path is the same but for case")
        if folded in self._folders:
            raise _refused(path, "it is a folder of another path")
        end = path.find("/")
        while end >= 0:
            folder = path[:end]
            known = self._folders.setdefault(fold(folder), folder)
            if known != folder:
                raise _refused(path, f"its folder is {known[:80]!r} but for case")
            if fold(folder) in self._files:
                raise _refused(path, f"{folder[:80]!r} is a file")
            end = path.find("/", end + 1)
        self._files.add(folded)


def fold(path: str) -> str:
    """What two paths have in common that a file system without case takes for one."""
    return unicodedata.normalize("NFC", path.casefold())


# -- the list


def encode_page(entries: Sequence[FileEntry]) -> bytes:
    """A page as a blob."""
    return encode(tuple(entries))


def read_page(data: bytes, page: Page) -> tuple[FileEntry, ...]:
    """The files of a page, in order, each with a path that is harmless; raises `Malformed` or `TooLarge`.

    Whether paths of different pages get in each other's way is told by `Paths`.
    """
    entries = decode(data, tuple[FileEntry, ...], size_max=PAGE_BYTES_MAX)
    if len(entries) != page.files or entries[0].path != page.first:
        raise Malformed("a page of a dataset does not hold what its version says")
    check_order(entry.path for entry in entries)
    for entry in entries:
        check_path(entry.path)
    return entries


def check_order(paths: Iterable[str]) -> None:
    """Raise `Malformed` unless each path comes after the one before it, by their UTF-8 bytes."""
    before = b""
    for path in paths:
        now = path.encode("utf-8", "surrogatepass")
        if now <= before:
            raise Malformed(f"path {path[:80]!r} is out of order")
        before = now


def verify_version(signed: Signed) -> DatasetVersion:
    """A version whose signature holds and whose numbers agree. Who signed it is for the caller to compare.

    Raises `BadSignature`, `Malformed`, `TooLarge`, `UnknownType`.
    """
    if len(signed.payload) > VERSION_BYTES_MAX:
        raise TooLarge(
            f"a dataset's version of {len(signed.payload)} bytes, at most {VERSION_BYTES_MAX} are allowed"
        )
    version = verify(signed, DatasetVersion)
    check_name(version.name)
    if sum(page.files for page in version.pages) != version.files:
        raise Malformed("the pages of a dataset do not add up to its files")
    check_order(page.first for page in version.pages)
    return version


def decode_version(data: bytes) -> tuple[Signed, DatasetVersion]:
    """A version from its blob. Raises as `verify_version`."""
    signed = decode(data, Signed, size_max=VERSION_BYTES_MAX + 512)
    if encode(signed) != data:
        raise Malformed("a dataset's version is not encoded as it should be: its blob would be another one")
    return signed, verify_version(signed)


def pages_of(version: DatasetVersion, path: str) -> tuple[Page, ...]:
    """The pages that may name `path`, a file or a folder, or something below it; all of them for the empty path."""
    if not path:
        return version.pages
    low, high = path.encode(), path.encode() + b"0"  # '0' follows '/'
    firsts = [page.first.encode() for page in version.pages]
    begin = max(0, sum(first <= low for first in firsts) - 1)
    end = sum(first < high for first in firsts)
    return version.pages[begin:end]


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder`, or lies in it."""
    return not folder or path == folder or path.startswith(folder + "/")


# -- messages over links


class RequestDataset(Message, tag=66, frozen=True):
    """Ask for the newest version of a dataset that the peer holds. Answer: `DatasetTold`, or `NotFound`."""

    owner: Digest
    name: DatasetName


class DatasetTold(Message, tag=67, frozen=True):
    """A `DatasetVersion` as its owner signed it."""

    version: Annotated[bytes, msgspec.Meta(max_length=VERSION_BYTES_MAX + 512)]


def check_owner(signed: Signed, version: DatasetVersion, owner: bytes, name: str) -> None:
    """Raise `NotFound` unless this is a version of the dataset `name` of the node ID `owner`."""
    if node_id_of(signed.key) != owner or version.name != name:
        raise NotFound(f"{format_dataset(owner, name)}: the answer is another dataset")
