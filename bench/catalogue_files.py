"""The generated catalogues on disk: signed once by two processes, kept under `out/` for as long as they are good.

One file per provider holds its `HeadNews` and its entries, each after its length in four bytes. The files of change
sets hold what a later head changed: set after set is committed on top of the one before, in identifiers chosen evenly
among all, so that a thousand changes concern nearly every provider. One change in twenty withdraws.
"""

import itertools
import json
import shutil
import sys
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.catalogue_records import PROVIDERS, RECORDS, SEED, Population, Provider
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_wire import limits
from ioc_wire.codec import decode, encode
from ioc_wire.gossip import HeadNews
from ioc_wire.signed import sign

FOLDER: Final = Path(__file__).resolve().parents[1] / "out" / "catalogue"
CHANGE_SETS: Final = (1, 1, 1, 100, 100, 100, 1000, 1000, 1000, 10_000, 100_000)
"""How many identifiers change, set after set; those above half of all are left out."""
WITHDRAWN_EVERY: Final = 20
PERIOD_SECONDS: Final = 12 * 3600
"""What is made begins with such a period, and is used for three of them."""
PROCESSES: Final = 2
FORMAT: Final = 1
"""Raised whenever the same parameters give other files."""


class Change(NamedTuple):
    """What one provider's new head changed after `after_seq`."""

    news: HeadNews
    after_seq: int
    entries: tuple[bytes, ...]


@dataclass(frozen=True)
class Totals:
    """Bytes of what was made: encoded signed records, and encoded catalogue entries."""

    record_bytes: int
    entry_bytes: int


@dataclass(frozen=True)
class Made:
    """A population on disk."""

    population: Population
    folder: Path
    totals: Totals
    change_totals: tuple[Totals, ...]

    @property
    def change_sets(self) -> tuple[int, ...]:
        """How many identifiers each change set concerns."""
        return change_sets(self.population.records)

    def catalogue(self, number: int) -> tuple[HeadNews, list[bytes]]:
        """A provider's head with its chain, and all its entries."""
        frames = _frames(_file(self.folder, number))
        return decode(next(frames), HeadNews), list(frames)

    def changes(self, index: int) -> Iterator[Change]:
        """The change set with that index, provider by provider."""
        frames = _frames(self.folder / f"changes-{index}.bin")
        for news in frames:
            after_seq, count = decode(next(frames), tuple[int, int])
            yield Change(decode(news, HeadNews), after_seq, tuple(itertools.islice(frames, count)))


def change_sets(records: int) -> tuple[int, ...]:
    """The change sets that a population of so many identifiers has."""
    return tuple(count for count in CHANGE_SETS if 2 * count <= records)


def make(
    *, records: int = RECORDS, providers: int = PROVIDERS, seed: int = SEED, folder: Path = FOLDER
) -> Made:
    """The population with these parameters, signed now where there is none that is good for some hours yet."""
    now = int(time.time())
    population = Population(now - now % PERIOD_SECONDS, records, providers, seed)
    name = f"{FORMAT}-{records}-{providers}-{seed}"
    for old in folder.glob(f"{name}-*"):
        issued = int(old.name.rpartition("-")[2])
        if issued > now - 3 * PERIOD_SECONDS and (old / "made.json").exists():
            return opened(Population(issued, records, providers, seed), old)
        shutil.rmtree(old)
    target = folder / f"{name}-{population.issued}"
    target.mkdir(parents=True)
    write(population, target)
    return opened(population, target)


def write(population: Population, folder: Path, *, processes: int = PROCESSES) -> None:
    """Sign everything into `folder`; `processes` 1 does it in this one."""
    print(f"bench.catalogue: signing {population.records} records", file=sys.stderr, flush=True)
    jobs = [(population, number, chosen, folder) for number, chosen in enumerate(_chosen(population))]
    if processes == 1:
        done = list(map(_write_provider, jobs))
    else:
        with ProcessPoolExecutor(processes) as pool:
            done = list(pool.map(_write_provider, jobs))
    totals = []
    for index in range(len(change_sets(population.records))):
        parts = [made[index + 1] for made in done]
        totals.append(asdict(_sum(parts)))
        with (folder / f"changes-{index}.bin").open("wb") as file:
            for number in range(population.providers):
                part = folder / f"changes-{index}-{number}.bin"
                if part.exists():
                    file.write(part.read_bytes())
                    part.unlink()
    about = {"totals": asdict(_sum([made[0] for made in done])), "changes": totals}
    (folder / "made.json").write_text(json.dumps(about))


def opened(population: Population, folder: Path) -> Made:
    """What `write` made in `folder`."""
    about: dict[str, Any] = json.loads((folder / "made.json").read_text())
    changes = tuple(Totals(**each) for each in about["changes"])
    return Made(population, folder, Totals(**about["totals"]), changes)


def _chosen(population: Population) -> list[dict[int, list[int]]]:
    """For each provider: index of a change set to the slots that it changes there."""
    ends = list(itertools.accumulate(population.sizes))
    chosen: list[dict[int, list[int]]] = [defaultdict(list) for _ in ends]
    for index, count in enumerate(change_sets(population.records)):
        for place in population.rng("changes", index).sample(range(population.records), count):
            number = bisect_right(ends, place)
            chosen[number][index].append(place - (ends[number - 1] if number else 0))
    return chosen


def _write_provider(job: tuple[Population, int, dict[int, list[int]], Path]) -> list[Totals]:
    """Sign one provider's catalogue and its changes; bytes of the catalogue, then of each change set."""
    population, number, chosen, folder = job
    provider = population.provider(number)
    own = OwnCatalogue(provider.key, head_seconds=limits.HEAD_SECONDS_MAX)
    size = 0
    for record in provider.records():
        own.put(record, unix=population.issued)
        size += len(encode(record))
    commit = own.commit(unix=population.issued)
    assert commit is not None
    entries = own.entries_after(0)
    _write_frames(_file(folder, number), [encode(provider.news(commit.head)), *entries])
    totals = [Totals(size, sum(map(len, entries)))]
    for index in range(len(change_sets(population.records))):
        slots = chosen.get(index)
        totals.append(_write_change(provider, own, index, slots, folder) if slots else Totals(0, 0))
    return totals


def _write_change(
    provider: Provider, own: OwnCatalogue, index: int, slots: Sequence[int], folder: Path
) -> Totals:
    unix, before, size = provider.population.issued + 1 + index, own.seq, 0
    for turn, slot in enumerate(slots):
        described = provider.record(slot, version=2 + index)
        if turn % WITHDRAWN_EVERY == WITHDRAWN_EVERY - 1 and own.withdraw(described.cid):
            continue
        record = sign(provider.key, described)
        own.put(record, unix=unix)
        size += len(encode(record))
    commit = own.commit(unix=unix)
    assert commit is not None
    entries = own.entries_after(before)
    path = folder / f"changes-{index}-{provider.number}.bin"
    _write_frames(path, [encode(provider.news(commit.head)), encode((before, len(entries))), *entries])
    return Totals(size, sum(map(len, entries)))


def _sum(parts: Sequence[Totals]) -> Totals:
    return Totals(sum(part.record_bytes for part in parts), sum(part.entry_bytes for part in parts))


def _file(folder: Path, number: int) -> Path:
    return folder / f"provider-{number}.bin"


def _write_frames(path: Path, frames: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))


def _frames(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    start = 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : end]
        start = end
