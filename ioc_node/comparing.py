"""What a collector found, held against what it found the last time: tens of thousands of hosts, in steps."""

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ioc_node.collectors.collector import Free
from ioc_node.resources import Resource

STEP_HOSTS: Final = 512
"""Hosts compared between two pauses: about a millisecond."""


@dataclass(slots=True)
class Compared:
    """`news` are to be signed: those in `added` were not there before, the others have changed. `gone` is in order."""

    wanted: dict[str, Resource] = field(default_factory=dict)
    news: list[Resource] = field(default_factory=list)
    added: set[str] = field(default_factory=set)
    gone: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Identifiers that are left out, and why."""


def comparing(
    fresh: Sequence[tuple[Resource, Free | None]],
    *,
    known: Mapping[str, Resource],
    before: Collection[str],
    taken: Collection[str],
) -> Generator[None, None, Compared]:
    """`before`: all identifiers that the collector had, also before a restart; those of which more is `known` were
    signed since. `taken` are somebody else's.
    """
    found = Compared()
    for done, (each, _) in enumerate(fresh, 1):
        if each.cid in taken:
            found.faults.append((each.cid, "named by config.toml or another collector"))
        else:
            found.wanted[each.cid] = each
        if done % STEP_HOSTS == 0:
            yield
    for done, (cid, each) in enumerate(found.wanted.items(), 1):
        if known.get(cid) != each:
            found.news.append(each)
            if cid not in before:
                found.added.add(cid)
        if done % STEP_HOSTS == 0:
            yield
    for done, cid in enumerate(before, 1):
        if cid not in found.wanted:
            found.gone.append(cid)
        if done % STEP_HOSTS == 0:
            yield
    found.gone.sort()
    return found
