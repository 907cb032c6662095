"""The golden vectors as another language reads them: `check_vectors.mjs`, Node.js with its standard crypto only."""

import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

HERE: Final = Path(__file__).resolve().parent
VECTORS: Final = HERE.parents[1] / "wire" / "vectors"
HEX: Final = re.compile(r"hex:(?:[0-9a-f]{2})+|(?:[0-9a-f]{2}){8,}")
MORE: Final = 6
"""Places that are spoiled in each file beside one of every kind."""

Place = tuple[str | int, ...]


def check(node: str, folders: list[Path], *options: str) -> tuple[int, list[Any]]:
    """Exit status, and what was counted and found wrong in each folder."""
    words = [node, str(HERE / "check_vectors.mjs"), *map(str, folders), "--json", *options]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_vectors_are_good(node: str) -> None:
    status, (report,) = check(node, [VECTORS])
    assert (status, report["faults"]) == (0, [])
    counts = report["counts"]
    assert counts["handshakes recomputed"] == 2
    assert counts["types of message"] >= 21
    assert counts["packets decrypted"] >= counts["types of message"]
    assert counts["signatures verified"] > 50
    assert counts["structs decoded"] > 200


def test_summary_is_for_people(node: str) -> None:
    words = [node, str(HERE / "check_vectors.mjs"), str(VECTORS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("all good\n")
    assert "packets decrypted" in done.stdout


def test_it_needs_nothing_but_node() -> None:
    """No package: every import is a file of this folder or a part of Node.js."""
    for path in HERE.glob("*.mjs"):
        for name in re.findall(r"""(?:from|import|require\()\s*["']([^"']+)["']""", path.read_text("utf-8")):
            assert name.startswith(("./", "node:")), f"{path.name} imports {name}"


# -- one flipped bit


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where a JSON value has byte strings."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    elif isinstance(value, str) and HEX.fullmatch(value):
        yield place
    for name, item in items:
        yield from places(item, (*place, name))


def spoil(value: Any, place: Place) -> Any:
    """A copy of `value` with one bit in the middle of one byte string flipped."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for name in place[:-1]:
        inner = inner[name]
    text = inner[place[-1]]
    digits = text.removeprefix("hex:")
    at = len(text) - len(digits) + len(digits) // 2
    inner[place[-1]] = text[:at] + format(int(text[at], 16) ^ 1, "x") + text[at + 1 :]
    return copy


def kind_of(place: Place) -> Place:
    """Places that differ in positions in lists only are of one kind."""
    return tuple("#" if isinstance(name, int) else name for name in place)


def is_unchecked(name: str, place: Place) -> bool:
    """BLAKE3 is not in Node's crypto; a packet that was refused is wrong on purpose."""
    return (name, place[0]) == ("bulk", "blobs") or (name, place[-1]) == ("dht_session", "packet_bytes")


def chosen(value: Any, name: str) -> list[Place]:
    """One place of every kind, and some more."""
    found = [place for place in places(value) if not is_unchecked(name, place)]
    kinds = {kind_of(place): place for place in reversed(found)}
    dice = random.Random(name)
    return [*kinds.values(), *dice.sample(found, min(MORE, len(found)))]


@pytest.mark.parametrize(
    "name",
    ["identities", "identifiers", "authority", "catalogue", "work", "bulk", "links", "dht", "dht_session"],
)
def test_one_flipped_bit_is_noticed(node: str, name: str, tmp_path: Path) -> None:
    good = json.loads((VECTORS / f"{name}.json").read_text("utf-8"))
    spoilt = {}
    for number, place in enumerate(chosen(good, name)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if name != "identities":
            (folder / "identities.json").symlink_to(VECTORS / "identities.json")
        (folder / f"{name}.json").write_text(json.dumps(spoil(good, place)), "utf-8")
        spoilt[str(folder)] = place
    assert spoilt
    status, reports = check(node, [Path(folder) for folder in spoilt], "--only", name)
    assert status == 1
    assert [report["folder"] for report in reports] == list(spoilt)
    unnoticed = [spoilt[report["folder"]] for report in reports if not report["faults"]]
    assert unnoticed == []


def test_other_ways_to_be_wrong(node: str, tmp_path: Path) -> None:
    """A message left out, a type that is not known, text for a number."""
    good = json.loads((VECTORS / "dht.json").read_text("utf-8"))
    fewer = {**good, "messages": [m for m in good["messages"] if m["tag"] != 20]}
    newer = {
        **good,
        "messages": [*good["messages"], {"type": "dht.Song", "tag": 99, "fields": {}, "bytes": "9163"}],
    }
    for number, wrong in enumerate((fewer, newer)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "identities.json").symlink_to(VECTORS / "identities.json")
        (folder / "dht.json").write_text(json.dumps(wrong), "utf-8")
    status, reports = check(node, [tmp_path / "0", tmp_path / "1"], "--only", "dht")
    assert status == 1
    assert all(report["faults"] for report in reports)


DECODED: Final = {
    "cf0020000000000000": "9007199254740992n",
    "d3ffffffffffffffff": "-1",
    "82a161c0a16293c2c301": '{"a":null,"b":[false,true,1]}',
    "cb3ff8000000000000": "1.5",
    "c403010203": "<010203>",
    "": "Malformed",
    "0101": "Malformed",
    "c4050102": "Malformed",
    "a1ff": "Malformed",
    "ddffffffff": "Malformed",
    "dfffffffff": "Malformed",
    "d40000": "Malformed",
    "c1": "Malformed",
    "91" * 100 + "01": "Malformed",
    "810102": "Malformed",
}


def test_decoder_is_strict(node: str) -> None:
    script = f"""
        import {{ decode, Malformed }} from {json.dumps(str(HERE / "msgpack.mjs"))};
        const shown = (value) => typeof value === "bigint" ? value + "n"
          : Buffer.isBuffer(value) ? "<" + value.toString("hex") + ">" : JSON.stringify(value);
        for (const data of {json.dumps(list(DECODED))}) {{
          try {{ console.log(shown(decode(Buffer.from(data, "hex")))); }}
          catch (error) {{ console.log(error instanceof Malformed ? "Malformed" : String(error)); }}
        }}
    """
    words = [node, "--input-type=module", "--eval", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert dict(zip(DECODED, done.stdout.splitlines(), strict=True)) == DECODED
