"""Expressions over hosts: what is read and what is refused, and what they find against a plain reading of records."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ioc_node.errors import UsageError
from ioc_node.market.demand import make_demand
from ioc_node.market.expression_fields import FIELDS, check_expression
from ioc_node.market.expression_text import AllOf, AnyOf, Comparison, Expression, Not, parse
from ioc_node.market.query import QueryEngine
from ioc_wire.codec import decode
from ioc_wire.errors import Malformed
from ioc_wire.market import Demand
from ioc_wire.records import Accelerator, Cpu, Price, ResourceRecord
from ioc_wire.tasks import Constraints, Resources
from tests.market.query_cases import UNIX, Provider, make_engine

H100 = Accelerator(
    "gpu", "nvidia", "h100", 8, 81920, "exclusive", (("fp16", 989_500), ("fp64", 34_000)), 1_979_000
)
T4 = Accelerator("gpu", "nvidia", "t4", 2, 16384, "shared", (("fp16", 65_000),), 130_000)


@pytest.fixture(scope="module")
def engine() -> QueryEngine:
    provider = Provider("one")
    provider.put(
        "ai/3301/az1/big",
        accelerators=(H100,),
        memory_mib=1 << 20,
        runtimes=("process",),
        labels=(("rack", "r7"),),
    )
    provider.put(
        "ai/3302/az2/small", accelerators=(T4,), runtimes=("wasm",), prices=(Price("core-hour", 150_000),)
    )
    provider.put(
        "gen/3301/az1/plain",
        cpu=Cpu("aarch64", "Kunpeng 920", 8, 8),
        runtimes=("process",),
        labels=(("rack", "r8"), ("Owner", "x")),
    )
    return make_engine(provider)


def asking(where: str) -> Demand:
    return Demand(
        resources=Resources(cores=0.001, memory_mib=0, disk_mib=0), constraints=Constraints(where=where)
    )


def found(engine: QueryEngine, where: str) -> set[str]:
    offers = engine.find(asking(where), "cost", 8, unix=UNIX).offers
    return {decode(offer.record.payload, ResourceRecord).cid.rpartition("/")[2] for offer in offers}


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("city = 3301", "big plain"),
        ("city in (3301, 3302) and class = ai", "big small"),
        ("city not in (3301)", "small"),
        ("not (city = 3301 or class = gen)", "small"),
        ("zone = AZ1", "big plain"),
        ("tflops.fp16 >= 65", "big small"),
        ("tflops.fp16 > 65", "big"),
        ("tflops.fp64 < 34.001", "big"),
        ("tflops.fp8 >= 0", ""),
        ("exists tflops.fp64", "big"),
        ("not exists accelerator.model", "plain"),
        ("tops.int8 = 130", "small"),
        ("accelerator.memory >= 80GiB", "big"),
        ("accelerator.memory >= 80.001GiB", ""),
        ("accelerator.count >= 2 and accelerator.sharing = shared", "small"),
        ("accelerator.model != t4", "big plain"),
        ("memory >= 1TiB", "big"),
        ("runtime != process", "small"),
        ("runtime = wasm", "small"),
        ("architecture = aarch64 and cpu.model = 'kunpeng 920'", "plain"),
        ("label.rack in (r7, r8)", "big plain"),
        ("exists label.owner", "plain"),
        ("label.rack != r7", "small plain"),
        ("price.core_hour >= 0.15", "small"),
        ("price.core_hour = 0.150001", ""),
        ("prefix = p2p", "big small plain"),
        ("prefix in (p2p.n, cn)", ""),
        ("free.cores >= 7.999 and duration >= 1h", "big small plain"),
    ],
)  # fmt: skip
def test_what_is_found(engine: QueryEngine, where: str, names: str) -> None:
    assert found(engine, where) == set(names.split())


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("", "expected a field, 'not', 'exists' or '(' at place 1, found the end"),
        ("city", "at place 5, found the end"),
        ("city = ", "expected a value at place 8"),
        ("city = 3301 class = ai", "expected 'and', 'or' or the end at place 13, found 'class'"),
        ("(city = 3301", "expected ')' at place 13"),
        ("city ; 1", "expected a field, a value or an operator at place 6, found ';'"),
        ("city not 3301", "expected 'in' at place 10"),
        ("tflop.fp16 > 3", "no field 'tflop.fp16' at place 1; did you mean 'tflops.fp16'?"),
        ("cores > many", "'many' for cores at place 1 is no number of cores"),
        ("memory >= 3 cores", "expected 'and'"),
        ("memory >= 3cores", "is no number of MiB, k, kib"),
        ("class > ai", "class > at place 1: words are equal (=) or not (!=)"),
        ("exists cores", "every host has cores"),
        ("(" * 9 + "city = 1" + ")" * 9, "nested more than 8 deep"),
        ("not " * 10 + "city = 1", "nested more than 8 deep"),
        (" or ".join(["city=1"] * 65), "more than 64 comparisons"),
        (f"city in ({','.join(['1'] * 65)})", "more than 64 values"),
        (" or ".join(["city=1"] * 1_000_000), "9999996 characters, at most 2000"),
    ],
)
def test_what_is_refused(where: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_expression(where)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_core_node_refuses_what_it_cannot_read(engine: QueryEngine) -> None:
    with pytest.raises(Malformed, match="no field"):
        engine.find(Demand(constraints=Constraints(where="nonsense = 1")), "cost", 8, unix=UNIX)
    with pytest.raises(UsageError, match="no field"):
        make_demand(where="nonsense = 1")


def test_a_removal_names_the_term_and_what_is_there(engine: QueryEngine) -> None:
    demand = Demand(constraints=Constraints(where="city = 3301 and memory >= 2TiB"))
    removals = engine.find(demand, "cost", 8, unix=UNIX).removals
    assert [(removal.condition, removal.removed) for removal in removals] == [
        ("where city = 3301", 1),
        ("where memory >= 2TiB", 2),
    ]
    assert removals[0].nearest.endswith("has 3302")
    assert removals[1].nearest.endswith("/big has 1048576 MiB")


COMPARISONS = st.one_of(
    st.builds(
        Comparison,
        st.sampled_from(["city", "class", "runtime", "label.rack", "zone"]),
        st.sampled_from(["=", "!="]),
        st.lists(st.sampled_from(["3301", "ai", "wasm", "r7", "and", "it's"]), min_size=1, max_size=3).map(tuple),
    ),
    st.builds(
        Comparison,
        st.sampled_from([field.name for field in FIELDS.values() if field.is_number]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        st.sampled_from(["0", "0.5", "1", "8", "65", "1000"]).map(lambda value: (value,)),
    ),
    st.builds(Comparison, st.sampled_from(["service", "accelerator.model"]), st.just("exists")
              , st.just(())),
)  # fmt: skip


def trees(depth: int) -> st.SearchStrategy[Expression]:
    if not depth:
        return COMPARISONS
    terms = st.lists(trees(depth - 1), min_size=2, max_size=3).map(tuple)
    return st.one_of(
        COMPARISONS, st.builds(Not, trees(depth - 1)), st.builds(AllOf, terms), st.builds(AnyOf, terms)
    )


def plain(tree: Any) -> Any:
    """Without places in the text, and without an `and` in an `and`."""
    match tree:
        case Comparison(field, operator, values):
            return (field, operator, values)
        case Not(term):
            return ("not", plain(term))
        case AllOf(terms):
            return ("and", [plain(term) for term in terms])
        case AnyOf(terms):
            return ("or", [plain(term) for term in terms])


@settings(max_examples=200, deadline=None)
@given(trees(3))
def test_text_and_tree_are_one(tree: Expression) -> None:
    assert plain(parse(str(tree))) == plain(tree)


HOSTS = st.lists(
    st.fixed_dictionaries(
        {
            "city": st.sampled_from(["3301", "3302"]),
            "class": st.sampled_from(["ai", "gen"]),
            "runtimes": st.sampled_from([("wasm",), ("process",), ("process", "wasm")]),
            "accelerators": st.sampled_from([(), (H100,), (T4,), (H100, T4)]),
            "cores": st.integers(1, 9),
            "rack": st.sampled_from(["", "r7", "it's"]),
        }
    ),
    min_size=1,
    max_size=12,
)


def values_of(host: dict[str, Any], field: str) -> list[Any]:
    """A host's values by a plain reading."""
    peaks = [dict(group.peak) for group in host["accelerators"]]
    return {
        "city": [host["city"]],
        "class": [host["class"]],
        "zone": ["az1"],
        "runtime": list(host["runtimes"]),
        "service": [],
        "label.rack": [host["rack"]] if host["rack"] else [],
        "accelerator.model": [group.model for group in host["accelerators"]],
        "accelerator.count": [Fraction(group.count) for group in host["accelerators"]],
        "tflops.fp16": [Fraction(peak["fp16"], 1000) for peak in peaks if "fp16" in peak],
        "cores": [Fraction(host["cores"])],
    }[field]


def holds(tree: Expression, host: dict[str, Any]) -> bool:
    match tree:
        case Not(term):
            return not holds(term, host)
        case AllOf(terms):
            return all(holds(term, host) for term in terms)
        case AnyOf(terms):
            return any(holds(term, host) for term in terms)
        case Comparison(field, operator, wanted):
            there = values_of(host, field)
            if operator == "exists":
                return bool(there)
            if operator in ("=", "!="):
                numbers = FIELDS[field].is_number if field in FIELDS else False
                among = [Fraction(value) for value in wanted] if numbers else wanted
                return any(value in among for value in there) == (operator == "=")
            bound = Fraction(wanted[0])
            ordered = {"<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}[operator]
            return any(getattr(value, ordered)(bound) for value in there)


ASKED = ("city", "class", "zone", "runtime", "service", "label.rack", "accelerator.model", "accelerator.count",
         "tflops.fp16", "cores")  # fmt: skip


def asks_of(tree: Any) -> set[str]:
    match tree:
        case Comparison(field):
            return {field}
        case Not(term):
            return asks_of(term)
        case AllOf(terms) | AnyOf(terms):
            return set().union(*map(asks_of, terms))
    raise AssertionError(tree)


@settings(max_examples=150, deadline=None)
@given(HOSTS, trees(2).filter(lambda tree: asks_of(tree) <= set(ASKED)))
def test_the_table_finds_what_a_plain_reading_does(hosts: list[dict[str, Any]], tree: Expression) -> None:
    provider = Provider("one")
    for number, host in enumerate(hosts):
        provider.put(
            f"{host['class']}/{host['city']}/az1/h{number}",
            runtimes=host["runtimes"],
            accelerators=host["accelerators"],
            cpu=Cpu("x86_64", "x", host["cores"], host["cores"]),
            labels=(("rack", host["rack"]),) if host["rack"] else (),
        )
    engine = make_engine(provider)
    offers = engine.find(asking(str(tree)), "cost", 64, unix=UNIX).offers
    assert sorted(offer.status.slot for offer in offers) == [
        n for n, host in enumerate(hosts) if holds(tree, host)
    ]
