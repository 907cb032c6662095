"""Expressions over hosts, as people write them: `tflops.fp16 >= 100 and (city in (3301, 3302) or not runtime = oci)`.

    expression = conjunction *( "or" conjunction )
    conjunction = term *( "and" term )
    term = "not" term / "(" expression ")" / "exists" field / field operator value
         / field [ "not" ] "in" "(" value *( "," value ) ")"
    operator = "=" / "!=" / "<" / "<=" / ">" / ">="
    value = word / quoted text

Nothing is evaluated here: the text becomes a small tree, bounded in length, depth and number of comparisons. What a
field is and which values it takes is known to `ioc_node.market.expression_fields`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from ioc_node.errors import UsageError
from ioc_wire.limits import EXPRESSION_CHARS_MAX

DEPTH_MAX: Final = 8
COMPARISONS_MAX: Final = 64
VALUES_MAX: Final = 64
"""In one `in (…)`."""
VALUES_ALL_MAX: Final = 256
"""In the whole expression."""

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<operator><=|>=|!=|==|=|<|>)
      | (?P<mark>[(),])
      | (?P<quoted>"[^"]*"|'[^']*')
      | (?P<word>[A-Za-z0-9_*][A-Za-z0-9_.:/*+-]*)
    )""",
    re.VERBOSE,
)
_KEYWORDS: Final = frozenset({"and", "or", "not", "in", "exists"})


@dataclass(frozen=True, slots=True)
class Comparison:
    """`field` against `values`: one of them for an order, any of them for `=` and `!=`. `at` is its place in the text,
    counted from 0.
    """

    field: str
    operator: str
    values: tuple[str, ...]
    at: int = 0

    def __str__(self) -> str:
        if self.operator == "exists":
            return f"exists {self.field}"
        if len(self.values) == 1:
            return f"{self.field} {self.operator} {_quoted(self.values[0])}"
        word = "in" if self.operator == "=" else "not in"
        return f"{self.field} {word} ({', '.join(map(_quoted, self.values))})"


@dataclass(frozen=True, slots=True)
class Not:
    term: "Expression"

    def __str__(self) -> str:
        return f"not {_nested(self.term)}"


@dataclass(frozen=True, slots=True)
class AllOf:
    terms: tuple["Expression", ...]

    def __str__(self) -> str:
        return " and ".join(map(_nested, self.terms))


@dataclass(frozen=True, slots=True)
class AnyOf:
    terms: tuple["Expression", ...]

    def __str__(self) -> str:
        return " or ".join(map(_nested, self.terms))


Expression = Comparison | Not | AllOf | AnyOf


def parse(text: str) -> Expression:
    """The tree of an expression. Raises `UsageError` with the place (counted from 1) and what was expected there."""
    if len(text) > EXPRESSION_CHARS_MAX:
        raise UsageError(f"where: {len(text)} characters, at most {EXPRESSION_CHARS_MAX} are allowed")
    parser = _Parser(text)
    tree = parser.expression(0)
    if parser.kind:
        parser.fail("'and', 'or' or the end")
    return tree


def comparisons(tree: Expression) -> Iterator[Comparison]:
    """All comparisons of a tree, in order."""
    match tree:
        case Comparison():
            yield tree
        case Not(term):
            yield from comparisons(term)
        case AllOf(terms) | AnyOf(terms):
            for term in terms:
                yield from comparisons(term)


class _Parser:
    """Recursive descent; `kind` and `found` are what comes next, `at` is where."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._count = self._values_read = 0
        self.kind = self.found = ""
        self.at = 0
        self._advance()

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            self.at = self._end + len(self._text[self._end :]) - len(self._text[self._end :].lstrip())
            self.kind = self.found = ""
            if self._text[self.at :]:
                self.found = self._text[self.at]
                self.fail("a field, a value or an operator")
            return
        self.kind, self._end = str(match.lastgroup), match.end()
        self.found, self.at = match[self.kind], match.start(self.kind)
        if self.kind == "word" and self.found.lower() in _KEYWORDS:
            self.kind = self.found = self.found.lower()

    def fail(self, expected: str) -> NoReturn:
        there = repr(self.found) if self.found else "the end"
        raise UsageError(f"where: expected {expected} at place {self.at + 1}, found {there}")

    def _take(self, kind: str, expected: str) -> str:
        if self.kind != kind:
            self.fail(expected)
        taken = self.found
        self._advance()
        return taken

    def _take_mark(self, mark: str) -> None:
        if self.found != mark or self.kind != "mark":
            self.fail(repr(mark))
        self._advance()

    def expression(self, depth: int) -> Expression:
        terms = [self._conjunction(depth)]
        while self.kind == "or":
            self._advance()
            terms.append(self._conjunction(depth))
        return terms[0] if len(terms) == 1 else AnyOf(tuple(terms))

    def _conjunction(self, depth: int) -> Expression:
        terms = [self._term(depth)]
        while self.kind == "and":
            self._advance()
            terms.append(self._term(depth))
        return terms[0] if len(terms) == 1 else AllOf(tuple(terms))

    def _term(self, depth: int) -> Expression:
        if depth > DEPTH_MAX:
            raise UsageError(f"where: nested more than {DEPTH_MAX} deep at place {self.at + 1}")
        if self.kind == "not":
            self._advance()
            return Not(self._term(depth + 1))
        if self.kind == "mark" and self.found == "(":
            self._advance()
            inner = self.expression(depth + 1)
            self._take_mark(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Comparison:
        self._count += 1
        if self._count > COMPARISONS_MAX:
            raise UsageError(f"where: more than {COMPARISONS_MAX} comparisons")
        at = self.at
        if self.kind == "exists":
            self._advance()
            return Comparison(self._take("word", "a field").lower(), "exists", (), at)
        field = self._take("word", "a field, 'not', 'exists' or '('").lower()
        negated = self.kind == "not"
        if negated:
            self._advance()
        if self.kind == "in":
            self._advance()
            return Comparison(field, "!=" if negated else "=", self._values(), at)
        if negated:
            self.fail("'in'")
        operator = self._take("operator", "=, !=, <, <=, >, >= or 'in'")
        return Comparison(field, "=" if operator == "==" else operator, (self._value(),), at)

    def _values(self) -> tuple[str, ...]:
        self._take_mark("(")
        values = [self._value()]
        while self.found == ",":
            self._advance()
            values.append(self._value())
            if len(values) > VALUES_MAX:
                raise UsageError(f"where: more than {VALUES_MAX} values in one list at place {self.at + 1}")
        self._take_mark(")")
        return tuple(values)

    def _value(self) -> str:
        self._values_read += 1
        if self._values_read > VALUES_ALL_MAX:
            raise UsageError(f"where: more than {VALUES_ALL_MAX} values at place {self.at + 1}")
        if self.kind == "quoted":
            return self._take("quoted", "a value")[1:-1]
        return self._take("word", "a value")


def _quoted(value: str) -> str:
    match = _TOKEN.fullmatch(value)
    if match is not None and match["word"] == value and value.lower() not in _KEYWORDS:
        return value
    return f'"{value}"' if '"' not in value else f"'{value}'"


def _nested(tree: Expression) -> str:
    return f"({tree})" if isinstance(tree, AllOf | AnyOf) else str(tree)
