"""Thousands of collected hosts are compared in steps; what comes of it is what sets would say."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from ioc_node.comparing import STEP_HOSTS, Compared, comparing
from ioc_node.core.steps import run_through
from ioc_node.resources import Resource
from tests.node.test_registering import resources

NAMES = [f"h{number}" for number in range(8)]
ONES = dict(zip(NAMES, resources(*NAMES), strict=True))
CHANGED = {
    name: Resource(one.cid, one.type, msgspec.structs.replace(one.description, memory_mib=7), one.capacity)
    for name, one in ONES.items()
}
some = st.sets(st.sampled_from(NAMES))


@settings(max_examples=60, deadline=None)
@given(found=some, changed=some, known=some, before=some, taken=some)
def test_news_and_what_is_gone(
    found: set[str], changed: set[str], known: set[str], before: set[str], taken: set[str]
) -> None:
    def cids(names: set[str]) -> set[str]:
        return {ONES[name].cid for name in names}

    before |= known
    fresh = [(CHANGED[name] if name in changed else ONES[name], None) for name in sorted(found)]
    compared = run_through(
        comparing(fresh, known={ONES[n].cid: ONES[n] for n in known}, before=cids(before), taken=cids(taken))
    )
    wanted = found - taken
    assert compared.wanted.keys() == cids(wanted)
    assert {each.cid for each in compared.news} == cids((wanted - known) | (wanted & changed))
    assert compared.added == cids(wanted - before)
    assert compared.gone == sorted(cids(before - wanted))
    assert {cid for cid, _ in compared.faults} == cids(found & taken)


def test_each_step_is_a_short_one() -> None:
    one, count = ONES["h0"], 4 * STEP_HOSTS
    fresh = [(Resource(f"{one.cid}{n}", one.type, one.description, one.capacity), None) for n in range(count)]
    steps = comparing(fresh, known={}, before={each.cid for each, _ in fresh}, taken=())
    assert sum(1 for _ in steps) == 3 * 4
    assert run_through(comparing([], known={}, before=(), taken=())) == Compared()
