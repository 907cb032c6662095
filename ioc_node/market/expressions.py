"""An expression held against the query's table: every comparison is decided once per interned value, in steps, and then
looked up; comparisons of numbers read a column.

The terms of an `and` at the top become conditions of their own, so that a removal says which of them removed how many.
An expression of many comparisons is held against all rows beforehand, a few at a time: whoever asks may write what he
likes, and no step takes long for it.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ioc_node.errors import UsageError
from ioc_node.market.accelerators import Amounts
from ioc_node.market.columns import ZONED, Table
from ioc_node.market.conditions import Condition
from ioc_node.market.expression_fields import Field, check
from ioc_node.market.expression_text import AllOf, Comparison, Expression, Not, comparisons, parse
from ioc_node.market.kinds import Interned, Mask, Rows
from ioc_node.market.status_columns import GROUPS_MAX
from ioc_wire.cid import prefix_covers
from ioc_wire.errors import Malformed

STEP_DECISIONS: Final = 1024
"""Values of hosts held against values of the expression, in one step."""
STEP_CELLS: Final = 1 << 17
"""Rows times comparisons in one step."""
DIRECT_MAX: Final = 4
"""So many comparisons, of kinds or of rows, are made when a block is looked at; more of them beforehand."""
TERMS_MAX: Final = 10
"""Terms at the top that are conditions of their own; the others are one together: an answer has 32 removals at most."""
NAME_CHARS_MAX: Final = 128
_OF_KINDS: Final = frozenset({"class", "city", "pool", "shape"})
_OF_ROWS: Final = frozenset({"rows", "groups"})


class Where:
    """The conditions of one expression; empty text has none. Raises `Malformed`."""

    def __init__(self, text: str, table: Table) -> None:
        self._table = table
        self._terms: tuple[Expression, ...] = ()
        self._fields: dict[Comparison, Field] = {}
        self._masks: dict[Comparison, Mask] = {}
        self._intervals: dict[Comparison, list[tuple[int, int]]] = {}
        if not text:
            return
        try:
            tree = parse(text)
            for comparison in comparisons(tree):
                field, self._intervals[comparison] = check(comparison)
                self._fields[comparison] = field
        except UsageError as error:
            raise Malformed(str(error)) from None
        self._terms = _conditions_of(tree)

    def decide(self) -> Generator[None, None, None]:
        """Decide, in steps, every comparison for every interned value: good while no row of the table comes or goes."""
        decided = 0
        for comparison, field in self._fields.items():
            if field.domain in _OF_ROWS:
                continue
            values = self._interned(field)
            mask = self._masks[comparison] = np.zeros(len(values), np.bool_)
            accepts = _accepts(field, comparison, self._intervals[comparison])
            for number, value in enumerate(values):
                there = field.values(value) if value is not None else ()
                mask[number] = value is not None and accepts(there)
                decided += 1 + len(there) * len(comparison.values)
                if decided >= STEP_DECISIONS:
                    decided = 0
                    yield

    @property
    def bytes_held(self) -> int:
        """How much memory its decisions take, terms on kinds of host included."""
        decided = sum(mask.nbytes for mask in self._masks.values())
        return decided + len(self._terms) * len(self._table.kinds)

    def kind_conditions(self) -> Generator[None, None, list[Condition]]:
        """Of the terms that ask of kinds of host alone; in steps, after `decide`."""
        return (yield from self._conditions(len(self._table.kinds), of_kinds=True))

    def row_conditions(self) -> Generator[None, None, list[Condition]]:
        """Of all other terms, likewise; to be asked for anew where status has changed."""
        return (yield from self._conditions(len(self._table), of_kinds=False))

    def _conditions(self, end: int, *, of_kinds: bool) -> Generator[None, None, list[Condition]]:
        terms = [term for term in self._terms if self._is_of_kinds(term) == of_kinds]
        holds = self._holds_of_kinds if of_kinds else self._holds_of_rows
        count = sum(map(self._weight, chain(*map(comparisons, terms))))
        if count <= DIRECT_MAX:
            return [self._condition(term, partial(holds, term), of_kinds=of_kinds) for term in terms]
        masks = [np.zeros(end, np.bool_) for _ in terms]
        step = STEP_CELLS // count
        for start in range(0, end, step):
            rows = slice(start, min(start + step, end))
            for term, mask in zip(terms, masks, strict=True):
                mask[rows] = holds(term, rows)
            yield
        return [
            self._condition(term, mask.__getitem__, of_kinds=of_kinds)
            for term, mask in zip(terms, masks, strict=True)
        ]

    def _holds_of_kinds(self, term: Expression, kinds: Rows | slice) -> Mask:
        return self._holds(term, kinds, kinds)

    def _holds_of_rows(self, term: Expression, rows: Rows | slice) -> Mask:
        return self._holds(term, rows, self._table.kinds_of(rows))

    def _is_of_kinds(self, term: Expression) -> bool:
        return all(self._fields[each].domain in _OF_KINDS for each in comparisons(term))

    def _weight(self, comparison: Comparison) -> int:
        return GROUPS_MAX if self._fields[comparison].domain == "groups" else 1

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
        if field.domain == "groups":
            met = self._compare_groups(comparison, rows, table.kinds["shape"][kinds])
        elif field.domain == "rows":
            met = self._meets(comparison, table[field.column][rows])
        else:
            numbers = (
                table.kinds[field.domain][kinds] if field.domain in _OF_KINDS else table[field.domain][rows]
            )
            known: Mask = self._masks[comparison][numbers]
            return known
        return ~met if comparison.operator == "!=" else met

    def _compare_groups(
        self, comparison: Comparison, rows: Rows | slice, shapes: npt.NDArray[np.int32]
    ) -> Mask:
        """Which rows have a group of accelerators that meets it (for `!=`: that is equal)."""
        groups = np.array([len(shape or ()) for shape in self._table.kinds.shapes.values], np.int8)[shapes]
        if comparison.operator == "exists":
            some: Mask = groups > 0
            return some
        met: Mask = np.zeros(len(shapes), np.bool_)
        for group in range(int(groups.max(initial=0))):
            met |= (groups > group) & self._meets(comparison, self._table.free_accelerators[group][rows])
        return met

    def _meets(self, comparison: Comparison, column: npt.NDArray[Any]) -> Mask:
        """Which numbers meet it (for `!=`: are equal)."""
        intervals = self._intervals[comparison]
        met: Mask
        if comparison.operator in ("=", "!="):
            points = np.array(sorted(low for low, high in intervals if low == high) or [-1], np.int64)
            met = points[np.minimum(np.searchsorted(points, column), len(points) - 1)] == column
        else:
            ((low, high),) = intervals
            met = (column >= low) & (column <= high)
        return met

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

        low, _ = self._intervals[term][0]
        floor = (field.column, low) if sign > 0 and field.column in ZONED else None
        return Condition(name, keeps, words, amounts, floor)

    def _there(self, field: Field, number: int, *, of_kinds: bool) -> str:
        """What the host, or kind of host, has in a field."""
        table = self._table
        if field.domain == "rows":
            return f"{int(table[field.column][number]) / field.scale:.12g} {field.unit}"
        if field.domain == "groups":
            shape = table.kinds.shapes.values[int(table.kinds["shape"][table["kind"][number]])] or ()
            free = table.free_accelerators[: len(shape), number].tolist()
            return f"{', '.join(f'{milli / field.scale:.12g}' for milli in free) or 'no'} {field.unit}"
        if field.domain in _OF_KINDS:
            kind = number if of_kinds else int(table["kind"][number])
            at = int(table.kinds[field.domain][kind])
        else:
            at = int(table[field.domain][number])
        values = field.values(self._interned(field)[at])
        shown = [f"{value / field.scale:.12g}" if isinstance(value, int) else value for value in values]
        return f"{', '.join(shown) or 'none'} {field.unit}".rstrip()


def _conditions_of(tree: Expression) -> tuple[Expression, ...]:
    """The terms at the top, the last of them together where they are too many."""
    if not isinstance(tree, AllOf):
        return (tree,)
    if len(tree.terms) <= TERMS_MAX:
        return tree.terms
    return (*tree.terms[: TERMS_MAX - 1], AllOf(tree.terms[TERMS_MAX - 1 :]))


def _accepts(
    field: Field, comparison: Comparison, intervals: list[tuple[int, int]]
) -> Callable[[Sequence[Any]], bool]:
    """Whether the values of a host meet a comparison."""
    if comparison.operator == "exists":
        return bool
    if field.is_number:

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
