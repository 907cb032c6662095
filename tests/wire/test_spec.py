"""`wire/SPEC.md` says what the code does: errors, limits, tags, structs, grammar. (Freshness: `test_vectors`.)"""

import re
from pathlib import Path
from typing import Final

from ioc_wire import authority, dht, limits
from ioc_wire.errors import error_table
from ioc_wire.signed import _SMALL_ORDER
from tests.wire.structs import all_structs, struct_name, unions
from tests.wire.test_identifiers import GOOD

SPEC: Final = (Path(__file__).resolve().parents[2] / "wire" / "SPEC.md").read_text("utf-8")


def rows(name: str) -> list[list[str]]:
    """Cells of the table in the section `name`."""
    match = re.search(rf"<!-- generated: {re.escape(name)} -->\n(.*?)<!-- end -->", SPEC, re.DOTALL)
    assert match is not None
    lines = [line for line in match[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_error_table() -> None:
    assert [(int(code), name, text) for code, name, text in rows("errors")] == [
        (code, kind.__name__, kind.text) for code, kind in error_table().items()
    ]


def test_limits() -> None:
    written = {name.strip("`"): int(value) for name, value, _ in rows("limits")}
    assert written == {name: value for name, value in vars(limits).items() if name.isupper()}


def test_tags() -> None:
    found = unions()
    over_links = re.search(r"generated: (tags gossip [a-z ]+?) -->", SPEC)
    assert over_links is not None
    for section, union in (("tags dht", "dht.decode_message"), (over_links[1], "messages.NODE_CODEC")):
        members = {int(str(kind.__struct_config__.tag)): struct_name(kind) for kind in found[union][1]}
        assert {int(row[0]): row[1] for row in rows(section)} == members


def test_every_struct_has_its_table() -> None:
    """All but `Grant`, which is what a check returns and never travels."""
    described = re.findall(r"^\*\*([a-z]+\.[A-Za-z]+)\*\* \(", SPEC, re.MULTILINE)
    assert sorted(described) == sorted(set(all_structs()) - {struct_name(authority.Grant)})


def test_error_codes_in_the_prose_exist() -> None:
    codes = {int(code) for code in re.findall(r"\berrors? (\d+)", SPEC)}
    assert codes
    assert codes <= set(error_table())


def test_keys_of_small_order() -> None:
    assert {
        bytes.fromhex(line) for line in re.findall(r"^    ([0-9a-f]{64})$", SPEC, re.MULTILINE)
    } == _SMALL_ORDER


def test_grammar_accepts_the_good_identifiers() -> None:
    """The ABNF of section 5, turned into a regular expression rule by rule."""
    block = re.search(r"```abnf\n(.*?)```", SPEC, re.DOTALL)
    assert block is not None
    rules = dict(re.findall(r"^(\w+)\s+= (.*?)\s*(?:;.*)?$", block[1], re.MULTILINE))
    assert all(
        re.fullmatch(expression("cid", rules), text) for text in GOOD if len(text) <= limits.CID_BYTES_MAX
    )
    assert not re.fullmatch(expression("cid", rules), GOOD[0].upper())
    assert not re.fullmatch(expression("cid", rules), GOOD[0] + "/x")


def expression(rule: str, rules: dict[str, str]) -> str:
    """A rule of the small part of ABNF that the grammar uses, as a regular expression."""
    terms = {"DIGIT": "[0-9]", "lc": "[a-z0-9]", "lower": "[a-z]", "b32": "[a-z2-7]"}
    if rule in terms:
        return terms[rule]
    parts: list[str] = []
    pending: list[str] = []  # how often each open group may come
    for token in re.findall(r'"[^"]*"|\d*\*?\d*\(|\d*\*?\d*[A-Za-z]\w*|[\[\]()/]', rules[rule]):
        quantity = re.match(r"(\d*)(\*?)(\d*)", token)
        assert quantity is not None
        low, star, high = quantity.groups()
        name = token[quantity.end() :]
        times = f"{{{low or 0},{high}}}" if star else f"{{{low}}}" if low else ""
        match token:
            case "[":
                parts.append("(?:")
            case "]":
                parts.append(")?")
            case ")":
                parts.append(")" + pending.pop())
            case "/":
                parts.append("|")
            case _ if token.startswith('"'):
                parts.append(re.escape(token.strip('"')))
            case _ if name == "(":
                parts.append("(?:")
            case _:
                parts.append(f"(?:{expression(name, rules)}){times}")
        if name == "(":
            pending.append(times)
    return "".join(parts)


def test_packet_layouts_add_up() -> None:
    """The tables of section 9.2: each field begins where the one before ends, and the packet has the size it says."""
    layouts = dict(
        re.findall(r"^\| (\w+) \([^\n]*\n\|---\|---\|---\|\n((?:\|[^\n]*\n)+)", SPEC, re.MULTILINE)
    )
    assert set(layouts) == {"KNOCK", "WHOAREYOU", "HANDSHAKE", "ACCEPT", "MESSAGE", "REFUSED"}
    ends = {}
    for name, lines in layouts.items():
        end = 0
        for line in lines.splitlines():
            offset, size, _ = (cell.strip() for cell in line.strip("|").split("|", 2))
            assert int(offset) == end, line
            end += int(size or 0)
        ends[name] = end
    header = dht.HEADER_BYTES
    assert ends == {
        "KNOCK": dht.KNOCK_BYTES,
        "WHOAREYOU": dht.WHOAREYOU_BYTES,
        "HANDSHAKE": dht.HANDSHAKE_HEADER_BYTES,
        "ACCEPT": header,
        "MESSAGE": header,
        "REFUSED": dht.REFUSED_BYTES,
    }
