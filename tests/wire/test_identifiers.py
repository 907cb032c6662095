"""Identifiers (grammar), prefixes, node IDs and base32."""

import hashlib
import re
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioc_wire.cid import (
    Cid,
    check_prefix,
    cid_key,
    parse_cid,
    prefix_covers,
    self_certified_prefix,
)
from ioc_wire.errors import BadIdentifier, Malformed, WireError
from ioc_wire.identity import base32, format_node_id, node_id_of, parse_node_id, unbase32
from tests.wire.conftest import public_key
from tests.wire.structs import refused_or
from tests.wire.test_structs import QUICK

K52: Final = "k" + "a" * 52
EXAMPLE: Final = "ioc:cn.r3301.20004/ai/3301/az1/h7f3a/gpu0"

GOOD: Final = [
    EXAMPLE,
    "ioc:cn.r3301.20004/ai/3301/az1",
    "ioc:cn.r3301.20004/ai/3301/az1/h7f3a",
    "ioc:cn.n0.20004/gen/3301/z",
    "ioc:cn.iab.20004/sup/0000/z",
    "ioc:cn.ienergy42.20004/edge/9999/z",
    "ioc:cn.i00000000.00000/edge/9999/z",
    "ioc:de.r0001.00001/gen/berlin/az-1/h_0",
    "ioc:de.r0001.00001/gen/b/0/0/0",
    f"ioc:p2p.n0.{K52}/gen/home/z0",
    "ioc:p2p.n0.k" + "2345672345" * 5 + "az/gen/home/z0/0-_/a__--",
    "ioc:cn.r3301.20004/ai/3301/" + "a" * 32 + "/" + "b" * 32 + "/" + "9" * 32,
]

BAD: Final = {
    "empty": "",
    "another scheme": "ioc2:cn.r3301.20004/ai/3301/az1",
    "no scheme": "cn.r3301.20004/ai/3301/az1",
    "scheme in capitals": "IOC:cn.r3301.20004/ai/3301/az1",
    "capital in the root": "ioc:CN.r3301.20004/ai/3301/az1",
    "capital in a segment": "ioc:cn.r3301.20004/ai/3301/AZ1",
    "root of one letter": "ioc:c.r3301.20004/ai/3301/az1",
    "root of three letters": "ioc:chn.r3301.20004/ai/3301/az1",
    "root with a digit": "ioc:c1.r3301.20004/ai/3301/az1",
    "root p2": "ioc:p2.r3301.20004/ai/3301/az1",
    "no node": "ioc:cn.20004/ai/3301/az1",
    "node of another letter": "ioc:cn.x3301.20004/ai/3301/az1",
    "node n1": "ioc:cn.n1.20004/ai/3301/az1",
    "region of three digits": "ioc:cn.r330.20004/ai/3301/az1",
    "region of five digits": "ioc:cn.r33010.20004/ai/3301/az1",
    "region with a letter": "ioc:cn.r330a.20004/ai/3301/az1",
    "industry of one character": "ioc:cn.ia.20004/ai/3301/az1",
    "industry of nine characters": "ioc:cn.iabcdefghi.20004/ai/3301/az1",
    "industry with a hyphen": "ioc:cn.iab-c.20004/ai/3301/az1",
    "provider of four digits": "ioc:cn.r3301.2000/ai/3301/az1",
    "provider of six digits": "ioc:cn.r3301.200040/ai/3301/az1",
    "provider key too short": "ioc:p2p.n0.k" + "a" * 51 + "/gen/home/z0",
    "provider key too long": "ioc:p2p.n0.k" + "a" * 53 + "/gen/home/z0",
    "provider key with a 1": "ioc:p2p.n0.k" + "a" * 51 + "1/gen/home/z0",
    "provider key with a capital": "ioc:p2p.n0.k" + "a" * 51 + "A/gen/home/z0",
    "four labels": "ioc:cn.r3301.20004.x/ai/3301/az1",
    "unknown class": "ioc:cn.r3301.20004/gpu/3301/az1",
    "no path": "ioc:cn.r3301.20004",
    "class only": "ioc:cn.r3301.20004/ai",
    "no zone": "ioc:cn.r3301.20004/ai/3301",
    "empty zone": "ioc:cn.r3301.20004/ai/3301/",
    "empty segment": "ioc:cn.r3301.20004/ai/3301//h",
    "slash at the end": EXAMPLE + "/",
    "a sixth segment": EXAMPLE + "/x",
    "segment of 33": "ioc:cn.r3301.20004/ai/3301/" + "a" * 33,
    "segment beginning with a hyphen": "ioc:cn.r3301.20004/ai/3301/-a",
    "segment beginning with an underscore": "ioc:cn.r3301.20004/ai/3301/_a",
    "dot in a segment": "ioc:cn.r3301.20004/ai/3301/a.b",
    "dots": "ioc:cn.r3301.20004/ai/3301/..",
    "space at the end": EXAMPLE + " ",
    "newline at the end": EXAMPLE + "\n",
    "space in front": " " + EXAMPLE,
    "NUL": EXAMPLE + "\0",
    "city of letters under cn": "ioc:cn.r3301.20004/ai/hangzhou/az1",
    "city of five digits under cn": "ioc:cn.r3301.20004/ai/33010/az1",
    "Arabic digits in the region": "ioc:cn.r٣٣٠١.20004/ai/3301/az1",
    "full-width digits in the city": "ioc:cn.r3301.20004/ai/３３０１/az1",
    "dotless i": "ioc:cn.r3301.20004/aı/3301/az1",
    "accent": "ioc:cn.r3301.20004/ai/3301/é",
    "256 characters": "ioc:cn.r3301.20004/ai/3301/" + "a" * 229,
}

# -- an independent reading of the grammar: no regular expression of the implementation's, no named groups

_LC: Final = "[a-z0-9]"
_SEG: Final = f"{_LC}(?:{_LC}|-|_){{0,31}}"
GRAMMAR: Final = (
    r"ioc:(?:[a-z][a-z]|p2p)\.(?:n0|r[0-9]{4}|i"
    rf"{_LC}{{2,8}})\.(?:[0-9]{{5}}|k[a-z2-7]{{52}})/(?:gen|ai|sup|edge)/{_SEG}/{_SEG}(?:/{_SEG}(?:/{_SEG})?)?"
)

segments = st.from_regex(_SEG, fullmatch=True)
cids = st.from_regex(GRAMMAR, fullmatch=True).map(
    lambda text: re.sub(r"(cn\..*?/\w+/)[^/]+", r"\g<1>3301", text, count=1)
)
prefixes = st.sampled_from(
    ["", "cn", "cn.r3301", "cn.r3302", "cn.r3301.20004", "cn.n0", "de", "p2p", "p2p.n0", f"p2p.n0.{K52}"]
)


@pytest.mark.parametrize("text", GOOD)
def test_good_identifier_parses_and_formats_back(text: str) -> None:
    cid = parse_cid(text)
    assert str(cid) == text
    assert cid_key(text) == hashlib.sha256(text.encode()).digest()


@pytest.mark.parametrize("what", BAD)
def test_bad_identifier_is_refused(what: str) -> None:
    with pytest.raises(BadIdentifier):
        parse_cid(BAD[what])
    with pytest.raises(BadIdentifier):
        cid_key(BAD[what])


def test_parts_have_names() -> None:
    cid = parse_cid(EXAMPLE)
    assert cid == Cid("cn.r3301.20004", ("ai", "3301", "az1", "h7f3a", "gpu0"))
    assert (cid.resource_class, cid.city, cid.zone) == ("ai", "3301", "az1")


def test_longest_identifier_of_the_grammar_fits() -> None:
    longest = f"ioc:p2p.iabcdefgh.{K52}/edge" + ("/" + "a" * 32) * 4
    assert str(parse_cid(longest)) == longest
    assert len(longest) <= 255


@given(cids)
@QUICK
def test_parser_and_formatter_are_inverse(text: str) -> None:
    assert str(parse_cid(text)) == text


@given(
    cids, st.integers(0, 300), st.characters(codec="utf-8"), st.sampled_from(["insert", "replace", "delete"])
)
@QUICK
def test_a_changed_identifier_is_in_the_grammar_or_refused(text: str, at: int, letter: str, how: str) -> None:
    at %= len(text)
    changed = text[:at] + ("" if how == "delete" else letter) + text[at + (how != "insert") :]
    try:
        cid = parse_cid(changed)
    except BadIdentifier:
        in_grammar = re.fullmatch(GRAMMAR, changed) is not None and len(changed) <= 255
        assert not in_grammar or re.match(r"ioc:cn\.", changed)
    else:
        assert str(cid) == changed
        assert re.fullmatch(GRAMMAR, changed)


@given(st.text(max_size=300))
@QUICK
def test_any_text_parses_or_is_refused(text: str) -> None:
    for parse in (parse_cid, check_prefix, parse_node_id, unbase32):
        outcome = refused_or(parse, text)
        assert not isinstance(outcome, WireError) or len(str(outcome)) < 300


# -- containment


def test_a_truncated_path_contains_what_is_below() -> None:
    zone, host, device = (
        parse_cid(EXAMPLE.rsplit("/", n)[0]) if n else parse_cid(EXAMPLE) for n in (2, 1, 0)
    )
    assert zone.contains(host)
    assert zone.contains(device)
    assert host.contains(device)
    assert device.contains(device)
    assert not device.contains(host)
    assert not zone.contains(parse_cid("ioc:cn.r3301.20004/ai/3301/az11/h7f3a"))
    assert not zone.contains(parse_cid("ioc:cn.r3301.20005/ai/3301/az1/h7f3a"))
    assert not zone.contains(parse_cid("ioc:cn.r3301.20004/gen/3301/az1/h7f3a"))


@pytest.mark.parametrize(
    "prefix", ["", "cn", "p2p", "cn.n0", "cn.r3301", "cn.ienergy", "cn.r3301.20004", f"p2p.n0.{K52}"]
)
def test_good_prefix(prefix: str) -> None:
    assert check_prefix(prefix) == prefix


@pytest.mark.parametrize(
    "prefix",
    [
        ".",
        "cn.",
        ".cn",
        "c",
        "CN",
        "cn.r33",
        "cn.r3301.",
        "cn.r3301.2000",
        "cn.r3301.20004.x",
        "ioc:cn",
        "cn\n",
        "cn/ai",
    ],
)
def test_bad_prefix(prefix: str) -> None:
    with pytest.raises(BadIdentifier):
        check_prefix(prefix)


@pytest.mark.parametrize(
    ("outer", "inner", "covers"),
    [
        ("", "", True),
        ("", "cn.r3301.20004", True),
        ("cn", "cn", True),
        ("cn", "cn.r3301", True),
        ("cn.r3301", "cn.r3301.20004", True),
        ("cn", "", False),
        ("cn", "de", False),
        ("cn.r3301", "cn", False),
        ("cn.r33", "cn.r3301", False),
        ("cn.r3301", "cn.r3302.20004", False),
        ("cn.r3301.2000", "cn.r3301.20004", False),
        ("cn.iab", "cn.iabc", False),
    ],
)
def test_prefix_covers_label_by_label(outer: str, inner: str, covers: bool) -> None:
    assert prefix_covers(outer, inner) is covers


@given(prefixes, prefixes, prefixes)
@QUICK
def test_covering_is_a_partial_order(a: str, b: str, c: str) -> None:
    assert prefix_covers(a, a)
    assert not (prefix_covers(a, b) and prefix_covers(b, a)) or a == b
    assert not (prefix_covers(a, b) and prefix_covers(b, c)) or prefix_covers(a, c)


def test_self_certified_prefix_is_an_identifier_prefix() -> None:
    prefix = self_certified_prefix(public_key("alice"))
    assert check_prefix(prefix) == prefix
    assert parse_cid(f"ioc:{prefix}/gen/home/z0").prefix == prefix
    assert unbase32(prefix.removeprefix("p2p.n0.k")) == hashlib.sha256(public_key("alice")).digest()
    assert prefix != self_certified_prefix(public_key("bob"))


# -- node IDs and base32


def test_node_id_is_the_hash_of_the_key() -> None:
    key = public_key("alice")
    assert node_id_of(key) == hashlib.sha256(key).digest()
    text = format_node_id(node_id_of(key))
    assert re.fullmatch("n[a-z2-7]{52}", text)
    assert parse_node_id(text) == node_id_of(key)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_node_id_of_something_else_is_refused(length: int) -> None:
    with pytest.raises(Malformed):
        node_id_of(bytes(length))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "n",
        "b" + "a" * 52,
        "N" + "a" * 52,
        "n" + "a" * 51,
        "n" + "a" * 53,
        "n" + "A" * 52,
        "n" + "a" * 51 + "b",  # the last character has four bits that no byte uses: they must be zero
        "n" + "a" * 51 + "1",
        "n" + "a" * 51 + "=",
        "n" + "a" * 51 + " ",
        "n" + "a" * 51 + "ı",
        "n" + "a" * 51 + "ａ",
    ],
)
def test_bad_node_id_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        parse_node_id(text)


@given(st.binary(max_size=64))
@QUICK
def test_base32_and_back(data: bytes) -> None:
    assert unbase32(base32(data)) == data
    assert base32(data) == base32(data).lower().rstrip("=")


@pytest.mark.parametrize(
    ("data", "text"), [(b"", ""), (b"f", "my"), (b"fo", "mzxq"), (b"foo", "mzxw6"), (b"foobar", "mzxw6ytboi")]
)
def test_base32_vectors_of_rfc_4648(data: bytes, text: str) -> None:
    assert base32(data) == text
    assert unbase32(text) == data
