"""The generated parts of `wire/SPEC.md`: between `<!-- generated: NAME -->` and `<!-- end -->`.

Names: `limits`, `errors`, `kinds`, `frames` (of a bulk stream), `choices` (of the reference's DHT), `tags MODULE ...`,
`structs MODULE NAME ...` (without names all structs of the module).
"""

import ast
import importlib
import inspect
import re
from typing import Any, Final

import msgspec
from msgspec import NODEFAULT
from msgspec import inspect as mi
from structs import full_name, modules, structs_of

from ioc_wire import bulk, limits
from ioc_wire.errors import UnknownType, error_table
from ioc_wire.signed import SignedPayload

_MARKED: Final = re.compile(r"(<!-- generated: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_INT63: Final = 2**63 - 1


def fill(text: str) -> str:
    """`text` with every marked section made anew."""
    return _MARKED.sub(lambda match: f"{match[1]}{section(match['name'])}\n{match[3]}", text)


def section(name: str) -> str:
    """The Markdown of one generated section; a name that is not known raises `KeyError`."""
    kind, *arguments = name.split()
    match kind:
        case "limits":
            return limits_table()
        case "errors":
            rows = [f"| {code} | {kind.__name__} | {kind.text} |" for code, kind in error_table().items()]
            return "\n".join(["| Code | Name | Text |", "|---|---|---|", *rows])
        case "kinds":
            return kinds_table()
        case "frames":
            return frames_table()
        case "choices":
            return choices_table()
        case "tags":
            return tags_table(arguments)
        case "structs":
            return structs_section(arguments[0], arguments[1:])
    raise KeyError(name)


def limits_table() -> str:
    """The constants of `limits.py` in order, with the text that follows them there."""
    body = ast.parse(inspect.getsource(limits)).body
    rows = ["| Limit | Value | |", "|---|---|---|"]
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        note = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            note = one_line(str(after.value.value))
        rows.append(f"| `{node.target.id}` | {getattr(limits, node.target.id)} | {note} |")
    return "\n".join(rows)


def kinds_table() -> str:
    """The kinds of signed payloads."""
    rows = ["| Kind | Struct | Meaning |", "|---|---|---|"]
    for module in modules().values():
        for cls in structs_of(module):
            if issubclass(cls, SignedPayload):
                rows.append(f"| `{cls.kind}` | {full_name(cls)} | {about(cls)} |")
    return "\n".join(rows)


def frames_table() -> str:
    """Frame types of a bulk stream."""
    rows = [
        "| Type | Payload |",
        "|---|---|",
        f"| {bulk.CHUNK_FRAME} | CHUNK: index (4 bytes), then the bytes |",
    ]
    for number in range(1, 256):
        try:
            bulk.decode_frame_header(bulk.FRAME_HEADER.pack(number, 0))
        except UnknownType:
            continue
        rows.append(f"| {number} | {bulk._KINDS[number].__name__} |")
    return "\n".join(rows)


CHOICES: Final[dict[str, str]] = {
    "challenge.COOKIE_STEP_SECONDS": "unit of the time in a cookie",
    "challenge.COOKIE_STEPS": "of them a cookie is good for",
    "challenge.SPENT_MAX": "spent cookies remembered",
    "challenge.PREKEY_SECONDS": "a prekey is given out for so long, and accepted for twice as long",
    "sessions.SESSIONS_MAX": "sessions held",
    "sessions.ATTEMPTS_MAX": "handshakes under way as initiator",
    "sessions.SESSION_SECONDS": "a session's life",
    "sessions.RENEW_SECONDS": "age at which a session is not used for new requests",
    "sessions.HANDSHAKES_PER_SECOND": "accepted from one host",
    "sessions.ACCEPTS_MAX": "times that one HANDSHAKE is answered",
    "sessions.REFUSALS_PER_SECOND": "REFUSED sent to one host",
    "session.REPLAY_WINDOW": "counters below the highest",
    "exchange.TRIES": "of a request, the first included",
    "exchange.PATIENCE_SECONDS_FIRST": "without an estimate of the round trip",
    "exchange.PATIENCE_SECONDS_MIN": "",
    "exchange.PATIENCE_SECONDS_MAX": "",
    "exchange.REQUESTS_MAX": "unanswered at a time",
    "routing.FULL_TABLE_SERVERS_MAX": "a table of everybody, up to here",
    "routing.REPLACEMENTS_MAX": "remembered per bucket",
    "routing.GROUP_TABLE_MAX": "of one address group in a table",
    "routing.GROUP_BUCKET_MAX": "of one address group in a bucket",
    "routing.CHOSEN_FROM_MAX": "nearest servers among which replicas are chosen",
    "candidates.CANDIDATES_MAX": "contacts not verified yet",
    "upkeep.LIVENESS_SECONDS": "silence after which a server is pinged",
    "upkeep.AGAIN_SECONDS": "until a lost server is tried again, then doubled",
    "upkeep.AGAIN_SECONDS_MAX": "",
    "lookup.SHORTLIST_MAX": "servers on one shortlist",
    "getting.LIKELY": "nearest servers among which a get picks the quickest",
    "getting.HEDGE_SECONDS_MIN": "patience with the quickest: this, or four round trips",
    "getting.CORRECTIONS_MAX": "servers corrected after one get",
    "getting.HOLDERS_ENOUGH": "holders of a blob",
    "putting.GRACE_SECONDS": "a put waits for the others after the first stored it",
    "watching.WATCH_HOLDERS": "servers asked to tell of one key",
    "watching.WATCH_SECONDS": "asked for",
    "watching.RENEW_SECONDS": "until a watch is renewed, at most",
    "watches.WATCHES_MAX": "kept for others",
    "watches.WATCHES_PER_PEER_MAX": "",
    "watches.WATCHES_PER_KEY_MAX": "",
    "watches.WATCHES_PER_GROUP_MAX": "of one /24 or /48",
    "silence.SILENT_SECONDS": "an address at which nobody answered is not believed in for so long",
    "silence.SILENT_PORTS_MAX": "then a host counts as silent",
    "answering.REQUESTS_PER_SECOND": "of one peer",
    "answering.REQUESTS_PER_SECOND_ADDRESS": "of one IPv4 address, or /64 of IPv6",
    "answering.WRITES_PER_SECOND": "of one peer",
    "answering.WRITES_PER_SECOND_ADDRESS": "of one address",
    "answering.WRITES_PER_SECOND_ALL": "of everybody",
    "storage.RECORDS_MAX": "records held",
    "storage.RECORDS_PER_PUBLISHER_MAX": "of one key",
    "storage.BLOBS_MAX": "blobs whose holders are known",
    "storage.HOLDERS_PER_BLOB_MAX": "",
    "storage.HOLDERS_PER_PUBLISHER_MAX": "",
}
"""Constants of `ioc_node.core` that an implementer wants to see, with what they are."""


def choices_table() -> str:
    """What the reference chose where the protocol leaves it open. Raises `AttributeError` for a constant that moved:
    then mend `CHOICES`."""
    rows = ["| Choice | Value | |", "|---|---|---|"]
    for name, meaning in CHOICES.items():
        module, _, constant = name.partition(".")
        value = getattr(importlib.import_module(f"ioc_node.core.{module}"), constant)
        rows.append(f"| `{module}.{constant}` | {value:g} | {meaning} |")
    return "\n".join(rows)


def tags_table(names: list[str]) -> str:
    """Tagged structs of some modules, in order of tag."""
    tagged = [
        cls for name in names for cls in structs_of(modules()[name]) if cls.__struct_config__.tag is not None
    ]
    rows = ["| Tag | Struct | Meaning |", "|---|---|---|"]
    for cls in sorted(tagged, key=lambda cls: int(str(cls.__struct_config__.tag))):
        rows.append(f"| {cls.__struct_config__.tag} | {full_name(cls)} | {about(cls)} |")
    return "\n".join(rows)


def structs_section(module: str, names: list[str]) -> str:
    """Field tables of a module's structs."""
    chosen = [cls for cls in structs_of(modules()[module]) if not names or cls.__name__ in names]
    if names and len(chosen) != len(names):
        raise KeyError(f"{module}: {names}")
    return "\n\n".join(struct_table(cls) for cls in chosen)


def struct_table(cls: type[msgspec.Struct]) -> str:
    """One struct: name, shape, meaning and fields."""
    config = cls.__struct_config__
    shape = "array" if config.array_like else "map"
    tag = "" if config.tag is None else f", tag {config.tag}"
    kind = f", signed as `{cls.kind}`" if issubclass(cls, SignedPayload) else ""
    head = f"**{full_name(cls)}** ({shape}{tag}{kind})"
    meaning = one_line(inspect.cleandoc(cls.__dict__.get("__doc__") or ""))
    info = mi.type_info(cls)
    assert isinstance(info, mi.StructType)
    lines = [f"{head}. {meaning}" if meaning else f"{head}."]
    if info.fields:
        first = 0 if config.tag is None else 1
        lines += [
            "",
            "| # | Field | Type | Default |" if config.array_like else "| | Field | Type | Default |",
            "|---|---|---|---|",
        ]
        for position, field in enumerate(info.fields, first):
            number = str(position) if config.array_like else ""
            lines.append(f"| {number} | {field.name} | {type_text(field.type)} | {default_text(field)} |")
    return "\n".join(lines)


def about(cls: type[msgspec.Struct]) -> str:
    """The first sentence of a struct's text."""
    text = one_line(inspect.cleandoc(cls.__dict__.get("__doc__") or ""))
    return re.split(r"(?<=[.:;])\s", text)[0].rstrip(".:;") if text else ""


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def default_text(field: mi.Field) -> str:
    """The value of a field that is not given; nothing where it must be."""
    if field.default_factory is not NODEFAULT:
        return "empty"
    if field.default is NODEFAULT:
        return ""
    if isinstance(field.default, msgspec.Struct):
        return "all defaults"
    if isinstance(field.default, tuple | str | bytes) and not field.default:
        return "empty"
    return (
        {None: "nil"}.get(field.default, f"`{field.default}`")
        if not isinstance(field.default, tuple)
        else "empty"
    )


def _range(low: int | float | None, high: int | float | None) -> str:
    if low is not None and high is not None:
        return f"{low} to {high}" if low != high else str(low)
    return f"at least {low}" if low is not None else f"at most {high}" if high is not None else ""


def _sized(word: str, kind: Any, unit: str = "") -> str:
    text = _range(kind.min_length or None, kind.max_length)
    return f"{word}, {text}{unit}" if text else word


def _integer_text(kind: mi.IntType) -> str:
    low = kind.ge if kind.ge is not None else None if kind.gt is None else kind.gt + 1
    high = kind.le if kind.le is not None else None if kind.lt is None else kind.lt - 1
    if (low, high) == (0, _INT63):
        return "uint"
    return f"int, {_range(low, high)}".replace(str(_INT63), "2^63-1").rstrip(", ")


def _float_text(kind: mi.FloatType) -> str:
    low = (
        f"above {kind.gt:g}"
        if kind.gt is not None
        else f"at least {kind.ge:g}"
        if kind.ge is not None
        else ""
    )
    high = f"at most {kind.le:g}" if kind.le is not None else ""
    return ", ".join(part for part in ("float", low, high) if part)


def type_text(kind: mi.Type) -> str:
    """A field's type in words."""
    match kind:
        case mi.Metadata():
            return type_text(kind.type)
        case mi.IntType():
            return _integer_text(kind)
        case mi.FloatType():
            return _float_text(kind)
        case mi.BoolType():
            return "bool"
        case mi.NoneType():
            return "nil"
        case mi.StrType():
            return _sized("text", kind, " characters")
        case mi.BytesType():
            return _sized("bytes", kind)
        case mi.LiteralType():
            return " or ".join(f'`"{value}"`' for value in kind.values)
        case mi.UnionType():
            return " or ".join(type_text(member) for member in kind.types)
        case mi.VarTupleType():
            return _sized(f"array of ({type_text(kind.item_type)})", kind, " items")
        case mi.TupleType():
            return f"array of {len(kind.item_types)}: ({'), ('.join(type_text(item) for item in kind.item_types)})"
        case mi.DictType():
            return f"map of ({type_text(kind.key_type)}) to ({type_text(kind.value_type)})"
        case mi.StructType():
            return full_name(kind.cls)
    raise TypeError(f"no text for {kind}")
