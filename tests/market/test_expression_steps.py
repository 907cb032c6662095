"""Expressions that ask much: the answer of a plain one, in steps that stay small, and an answer that can be sent."""

import pytest

from ioc_node.core.steps import run_through
from ioc_node.errors import UsageError
from ioc_node.market import expressions
from ioc_node.market.expression_fields import check_expression
from ioc_node.market.expression_text import COMPARISONS_MAX, Comparison, parse
from ioc_node.market.query import QueryEngine
from ioc_wire.codec import decode, encode
from ioc_wire.market import Demand, OffersFound
from ioc_wire.records import Accelerator, Cpu
from ioc_wire.tasks import Constraints, Resources
from tests.market.query_cases import UNIX, Provider, make_engine

HOSTS = 40


@pytest.fixture(scope="module")
def engine() -> QueryEngine:
    provider = Provider("one")
    for number in range(HOSTS):
        city = 3301 + number % 4
        provider.put(
            f"gen/{city}/az1/h{number}",
            cpu=Cpu("x86_64", "x", number + 1, number + 1),
            labels=(("rack", f"r{number % 3}"),),
        )
    return make_engine(provider, extent_rows=HOSTS)


def asking(where: str) -> Demand:
    return Demand(
        resources=Resources(cores=0.001, memory_mib=0, disk_mib=0), constraints=Constraints(where=where)
    )


def slots(engine: QueryEngine, where: str) -> set[int]:
    return {offer.status.slot for offer in engine.find(asking(where), "cost", 64, unix=UNIX).offers}


ODD = " or ".join(f"cores = {number}" for number in range(1, 2 * COMPARISONS_MAX, 2))
CITIES = " or ".join(f"city = {city}" for city in range(3302, 3302 + COMPARISONS_MAX))


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (ODD, {n for n in range(HOSTS) if (n + 1) % 2}),
        (f"not ({ODD})", {n for n in range(HOSTS) if not (n + 1) % 2}),
        (CITIES, {n for n in range(HOSTS) if n % 4}),
        (f"({' or '.join(['label.rack = r1', *ODD.split(' or ')[:20]])}) and cores > 5",
         {n for n in range(HOSTS) if n + 1 > 5 and (n % 3 == 1 or ((n + 1) % 2 and n + 1 < 40))}),
        ("cores in (1, 2.0, 2.5, 7, 7) or cores not in (1, 2, 3, 0.5) and cores < 5", {0, 1, 3, 6}),
        ("cores != 2.5 and cores != 1", set(range(1, HOSTS))),
        ("cores in (0.0005, 2.0001)", set()),
    ],
)  # fmt: skip
def test_many_comparisons_find_what_few_would(engine: QueryEngine, where: str, kept: set[int]) -> None:
    assert slots(engine, where) == kept


def test_more_conditions_than_an_answer_holds_still_make_an_answer(engine: QueryEngine) -> None:
    where = " and ".join(f"cores != {number}" for number in range(1, COMPARISONS_MAX + 1))
    answer = engine.find(asking(where), "cost", 8, unix=UNIX)
    assert not answer.offers
    assert sum(removal.removed for removal in answer.removals) == HOSTS
    assert len(answer.removals) == expressions.TERMS_MAX
    assert decode(encode(answer), OffersFound) == answer


def test_steps_stay_small_however_much_is_asked(engine: QueryEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step looks at so many rows times comparisons at most: more are needed for more comparisons."""
    monkeypatch.setattr(expressions, "STEP_CELLS", 2 * COMPARISONS_MAX)
    rows = []
    compared = expressions.Where._compare

    def compare(where: expressions.Where, comparison: Comparison, part: slice, kinds: object) -> object:
        rows.append(part.stop - part.start)
        return compared(where, comparison, part, kinds)

    monkeypatch.setattr(expressions.Where, "_compare", compare)
    run_through(engine.finding(asking(ODD), "cost", 8, unix=UNIX))
    assert max(rows) == 2
    assert sum(rows) == len(engine._table) * COMPARISONS_MAX


def test_values_are_counted_over_the_whole_expression() -> None:
    several = " or ".join([f"cores in ({','.join(['1'] * 60)})"] * 5)
    with pytest.raises(UsageError, match="more than 256 values"):
        check_expression(several)


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("accelerator.free >= 4", {0, 1}),
        ("accelerator.free = 0.5", {1}),
        ("accelerator.free < 1", {1, 2}),
        ("accelerator.free != 0", {0, 1, 3}),
        ("exists accelerator.free", {0, 1, 2}),
        ("not exists accelerator.free or accelerator.free = 0", {2, 3}),
        (" or ".join(f"accelerator.free = {n}.5" for n in range(64)), {1}),
    ],
)
def test_what_is_free_now_is_asked_group_by_group(where: str, kept: set[int]) -> None:
    provider = Provider("one")
    gpu = Accelerator("gpu", "nvidia", "t4", 8, 16384, "shared")
    provider.put("ai/3301/az1/a", accelerators=(gpu,), free=(4000,))
    provider.put("ai/3301/az1/b", accelerators=(gpu, gpu), free=(500, 8000))
    provider.put("ai/3301/az1/c", accelerators=(gpu,), free=(0,))
    provider.put("gen/3301/az1/d")
    assert slots(make_engine(provider), where) == kept


@pytest.mark.parametrize("value", ["r7 ", " r7", "a b", "", "and", "r7"])
def test_values_with_spaces_survive_being_written(value: str) -> None:
    tree = Comparison("label.rack", "=", (value,))
    assert parse(str(tree)) == tree
