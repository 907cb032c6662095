"""Paths that lead nowhere else, lists in one order, versions that are what they say."""

import contextlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ioc_wire import limits
from ioc_wire.codec import encode
from ioc_wire.datasets import (
    DatasetVersion,
    FileEntry,
    Page,
    Paths,
    check_name,
    check_owner,
    check_path,
    dataset_point,
    decode_version,
    encode_page,
    format_dataset,
    is_below,
    pages_of,
    parse_dataset,
    read_page,
    verify_version,
)
from ioc_wire.errors import BadSignature, Malformed, NotFound, UnknownType, WireError
from ioc_wire.identity import node_id_of
from ioc_wire.signed import public_bytes, sign

ALICE, BOB = (Ed25519PrivateKey.from_private_bytes(name * 32) for name in (b"a", b"b"))
OWNER = node_id_of(public_bytes(ALICE))

HOSTILE = [
    ("/etc/passwd", "absolute"),
    ("", "empty segment"),
    ("a//b", "empty segment"),
    ("a/", "empty segment"),
    ("..", "segment is '..'"),
    ("../a", "segment is '..'"),
    ("a/../../b", "segment is '..'"),
    ("./a", "segment is '.'"),
    ("a\0b", "control character"),
    ("a\nb", "control character"),
    ("a\x7fb", "control character"),
    ("a\u200bb", "control character"),
    ("a\u202eb", "control character"),
    ("a\u2028b", "control character"),
    ("..\\..\\windows", "control character or one of"),
    ("C:\\x", "control character or one of"),
    ("C:/x", "control character or one of"),
    ("a:stream", "control character or one of"),
    ("what?", "control character or one of"),
    ("a*", "control character or one of"),
    ("a.", "ends with a dot or a space"),
    ("a /b", "ends with a dot or a space"),
    ("NUL", "name of a device"),
    ("dir/com1.txt", "name of a device"),
    ("lpt\u00b9", "name of a device"),
    ("con .x", "name of a device"),
    ("e\u0301", "normal form C"),
    ("\ud800", "not Unicode"),
    ("x" * 256, "longer than 255"),
    ("\u00e9" * 128, "longer than 255"),
    ("/".join("a" * 33), "33 deep"),
    ("/".join(["x" * 200] * 6), "1205 bytes"),
]


@pytest.mark.parametrize(("path", "why"), HOSTILE)
def test_a_path_that_could_lead_elsewhere_is_refused_with_the_reason(path: str, why: str) -> None:
    with pytest.raises(Malformed, match=why) as caught:
        check_path(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b.txt",
        ".hidden",
        "...a",
        "\u00e9t\u00e9/\u65e5\u672c.bin",
        "a b/c-d_e",
        "console.log",
        "com10",
    ],
)
def test_an_ordinary_path_is_taken(path: str) -> None:
    assert check_path(path) == path


@given(st.text(max_size=40))
def test_a_path_that_is_taken_stays_below_its_folder(path: str) -> None:
    try:
        check_path(path)
    except Malformed:
        return
    assert path
    assert not path.startswith("/")
    assert not {"..", ".", ""} & set(path.split("/"))
    assert not set("\0\\:") & set(path)


@pytest.mark.parametrize(
    ("before", "path", "why"),
    [
        ("Read", "read", "same but for case"),
        ("a/b", "A/c", "is 'a' but for case"),
        ("a", "a/b", "'a' is a file"),
        ("a/b", "a", "a folder of another path"),
        ("A", "a/b", "is a file"),
        ("stra\u00dfe", "STRASSE", "same but for case"),
        ("x", "x", "same but for case"),
    ],
)
def test_paths_that_get_in_each_others_way_are_refused(before: str, path: str, why: str) -> None:
    paths = Paths()
    paths.add(before)
    with pytest.raises(Malformed, match=why):
        paths.add(path)


def test_paths_of_one_folder_live_together() -> None:
    paths = Paths()
    for path in ("a/b", "a/c", "a/b2/x", "ab", "a-b"):
        paths.add(path)


def entry(path: str) -> FileEntry:
    return FileEntry(path, bytes(32), 1)


def page_of(*paths: str) -> Page:
    return Page(paths[0], bytes(32), len(paths))


def test_a_page_is_decoded_only_as_its_version_describes_it() -> None:
    data = encode_page([entry("a"), entry("b")])
    assert [each.path for each in read_page(data, page_of("a", "b"))] == ["a", "b"]
    for other in (page_of("b", "c"), page_of("a")):
        with pytest.raises(Malformed, match="does not hold what its version says"):
            read_page(data, other)
    for paths in (["b", "a"], ["a", "a"], ["a", "\U0001f600", "\ufb00"]):
        with pytest.raises(Malformed, match="out of order"):
            read_page(encode_page([entry(path) for path in paths]), page_of(*paths))
    with pytest.raises(Malformed, match=r"segment is '\.\.'"):
        read_page(encode_page([entry("../up")]), page_of("../up"))
    with pytest.raises(Malformed):
        read_page(b"\xc1", page_of("a"))


def version(**changes: object) -> DatasetVersion:
    made = DatasetVersion("terrain", 1, 1_790_000_000, 3, 3, (page_of("a", "b"), page_of("m")))
    return msgspec.structs.replace(made, **changes)


def test_a_version_is_checked_before_it_is_believed() -> None:
    signed = sign(ALICE, version())
    assert decode_version(encode(signed)) == (signed, version())
    check_owner(signed, version(), OWNER, "terrain")
    with pytest.raises(NotFound, match="another dataset"):
        check_owner(signed, version(), OWNER, "other")
    with pytest.raises(NotFound, match="another dataset"):
        check_owner(sign(BOB, version()), version(), OWNER, "terrain")
    with pytest.raises(BadSignature):
        verify_version(msgspec.structs.replace(signed, key=public_bytes(BOB)))
    with pytest.raises(UnknownType):
        verify_version(msgspec.structs.replace(signed, kind="record"))
    for wrong, why in (
        ({"files": 4}, "do not add up"),
        ({"pages": (page_of("m"), page_of("a", "b"))}, "out of order"),
        ({"name": "../x"}, "no name of a dataset"),
        ({"name": ".x"}, "no name of a dataset"),
    ):
        with pytest.raises(Malformed, match=why):
            verify_version(sign(ALICE, version(**wrong)))
    with pytest.raises(Malformed, match="not encoded as it should be"):
        decode_version(b"\xdc\x00\x05" + encode(signed)[1:])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_version_or_a_wire_error(data: bytes) -> None:
    for decoded in (lambda: decode_version(data), lambda: read_page(data, page_of("a"))):
        with contextlib.suppress(WireError):
            decoded()


def test_names_go_there_and_back() -> None:
    text = format_dataset(OWNER, "terrain-v2.1")
    assert parse_dataset(text) == (OWNER, "terrain-v2.1")
    assert dataset_point(OWNER, "a") != dataset_point(OWNER, "b")
    for wrong in ("terrain", text[1:], text + "/x", text.upper(), f"{text[:53]}/"):
        with pytest.raises(Malformed):
            parse_dataset(wrong)
    with pytest.raises(Malformed):
        check_name("x" * (limits.DATASET_NAME_CHARS_MAX + 1))


def test_only_the_pages_that_may_hold_a_path_are_looked_at() -> None:
    pages = tuple(page_of(first) for first in ("a", "d/b", "d/x", "d0", "m"))
    found = version(pages=pages)
    assert pages_of(found, "") == pages
    assert pages_of(found, "b") == pages[:1]
    assert pages_of(found, "d/b") == pages[1:2]
    assert pages_of(found, "d") == pages[:3]
    assert pages_of(found, "zz") == pages[4:]
    assert is_below("d/x/y", "d/x")
    assert not is_below("d/xy", "d/x")
