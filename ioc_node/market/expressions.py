"""An expression held against the query's table: every comparison is decided once per interned value, in steps, and then
looked up; comparisons of numbers read a column.

The terms of an `and` at the top become conditions of their own, so that a removal says which of them removed how many.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from ioc_node.errors import UsageError
from ioc_node.market.columns import ZONED, Table
from ioc_node.market.conditions import Amounts, Condition
from ioc_node.market.expression_fields import Field, check, interval
from ioc_node.market.expression_text import AllOf, Comparison, Expression, Not, comparisons, parse
from ioc_node.market.kinds import Interned, Mask, Rows
from ioc_wire.cid import prefix_covers
from ioc_wire.errors import Malformed

STEP_DECISIONS: Final = 1024
NAME_CHARS_MAX: Final = 128
_OF_KINDS: Final = frozenset({"class", "city", "pool", "shape"})


class Where:
    """The conditions of one expression; empty text has none. Raises `Malformed`."""

    def __init__(self, text: str, table: Table) -> None:
        self._table = table
        self._terms: tuple[Expression, ...] = ()
        self._fields: dict[Comparison, Field] = {}
        self._masks: dict[Comparison, Mask] = {}
        if not text:
            return
        try:
            tree = parse(text)
            self._fields = {comparison: check(comparison) for comparison in comparisons(tree)}
        except UsageError as error:
            raise Malformed(str(error)) from None
        self._terms = tree.terms if isinstance(tree, AllOf) else (tree,)

    def prepare(self) -> Generator[None, None, None]:
        """Decide, in steps, every comparison for every interned value."""
        decided = 0
        for comparison, field in self._fields.items():
            if field.domain == "rows":
                continue
            values = self._interned(field)
            mask = self._masks[comparison] = np.zeros(len(values), np.bool_)
            accepts = _accepts(field, comparison)
            for number, value in enumerate(values):
                mask[number] = value is not None and accepts(field.values(value))
                decided += 1
                if decided % STEP_DECISIONS == 0:
                    yield

    def kind_conditions(self) -> Iterator[Condition]:
        """Of the terms that ask of kinds of host alone; they hold after `prepare`."""
        for term in self._terms:
            if self._is_of_kinds(term):
                yield self._condition(term, partial(self._holds_of_kinds, term), of_kinds=True)

    def row_conditions(self) -> Iterator[Condition]:
        """Of all other terms; they hold after `prepare`."""
        for term in self._terms:
            if not self._is_of_kinds(term):
                yield self._condition(term, partial(self._holds_of_rows, term), of_kinds=False)

    def _holds_of_kinds(self, term: Expression, kinds: Rows | slice) -> Mask:
        return self._holds(term, kinds, kinds)

    def _holds_of_rows(self, term: Expression, rows: Rows | slice) -> Mask:
        return self._holds(term, rows, self._table.kinds_of(rows))

    def _is_of_kinds(self, term: Expression) -> bool:
        return all(self._fields[each].domain in _OF_KINDS for each in comparisons(term))

    def _interned(self, field: Field) -> Sequence[Any]:
        kinds = self._table.kinds
        domains: dict[str, Interned[Any]] = {
            "class": kinds.classes,
            "city": kinds.cities,
            "pool": kinds.pools,
            "shape": kinds.shapes,
            "traits": self._table.traits,
            "labels": self._table.labels,
        }
        return domains[field.domain].values

    # -- evaluation

    def _holds(self, tree: Expression, rows: Rows | slice, kinds: Any) -> Mask:
        if isinstance(tree, Comparison):
            return self._compare(tree, rows, kinds)
        if isinstance(tree, Not):
            return ~self._holds(tree.term, rows, kinds)
        held, *others = (self._holds(term, rows, kinds) for term in tree.terms)
        for other in others:
            held = held & other if isinstance(tree, AllOf) else held | other
        return held

    def _compare(self, comparison: Comparison, rows: Rows | slice, kinds: Any) -> Mask:
        field, table = self._fields[comparison], self._table
        if field.domain != "rows":
            numbers = (
                table.kinds[field.domain][kinds] if field.domain in _OF_KINDS else table[field.domain][rows]
            )
            known: Mask = self._masks[comparison][numbers]
            return known
        column: Amounts = table[field.column][rows]
        met: Mask = np.zeros(len(column), np.bool_)
        for value in comparison.values:
            low, high = interval(field, comparison, value)
            met |= (column >= low) & (column <= high)
        return ~met if comparison.operator == "!=" else met

    # -- words

    def _condition(self, term: Expression, keeps: Callable[[Any], Mask], *, of_kinds: bool) -> Condition:
        name = f"where {term}"[:NAME_CHARS_MAX]
        if not isinstance(term, Comparison):
            return Condition(name, keeps, lambda number: "does not meet it")
        field = self._fields[term]

        def words(number: int) -> str:
            return f"has {self._there(field, number, of_kinds=of_kinds)}"

        if field.domain != "rows" or term.operator in ("=", "!="):
            return Condition(name, keeps, words)
        sign = 1 if term.operator.startswith(">") else -1

        def amounts(rows: Rows) -> Amounts:
            column: Amounts = self._table[field.column][rows]
            return column * sign

        low, _ = interval(field, term, term.values[0])
        floor = (field.column, low) if sign > 0 and field.column in ZONED else None
        return Condition(name, keeps, words, amounts, floor)

    def _there(self, field: Field, number: int, *, of_kinds: bool) -> str:
        """What the host, or kind of host, has in a field."""
        table = self._table
        if field.domain == "rows":
            return f"{int(table[field.column][number]) / field.scale:.12g} {field.unit}"
        if field.domain in _OF_KINDS:
            kind = number if of_kinds else int(table["kind"][number])
            at = int(table.kinds[field.domain][kind])
        else:
            at = int(table[field.domain][number])
        values = field.values(self._interned(field)[at])
        shown = [f"{value / field.scale:.12g}" if isinstance(value, int) else value for value in values]
        return f"{', '.join(shown) or 'none'} {field.unit}".rstrip()


def _accepts(field: Field, comparison: Comparison) -> Callable[[Sequence[Any]], bool]:
    """Whether the values of a host meet a comparison."""
    if comparison.operator == "exists":
        return bool
    if field.is_number:
        intervals = [interval(field, comparison, value) for value in comparison.values]

        def meets(value: Any) -> bool:
            return any(low <= value <= high for low, high in intervals)

    elif field.under:

        def meets(value: Any) -> bool:
            return any(prefix_covers(wanted, value) for wanted in comparison.values)

    else:
        wanted = frozenset(value.lower() for value in comparison.values)

        def meets(value: Any) -> bool:
            return value.lower() in wanted

    if comparison.operator == "!=":
        return lambda values: not any(map(meets, values))
    return lambda values: any(map(meets, values))
