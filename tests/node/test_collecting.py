"""What collectors find comes, changes and goes: in the catalogue, in the DHT, in the status, and over restarts."""

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import structlog
import trio
import trio.testing

from ioc_node import registering
from ioc_node.api import AddCollector
from ioc_node.collecting import Collecting, plan_hosts
from ioc_node.collectors.collector import (
    BUILT_IN,
    BadCollector,
    Collected,
    CollectedHost,
    CollectorFailed,
    Free,
    Host,
    RefusedRow,
    load_collector,
    whole,
)
from ioc_node.config import CollectorConfig, NodeConfig
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.errors import NodeError, StorageFull, UsageError
from ioc_node.market.leases import LeaseBook
from ioc_node.registering import Registrar, Replaced
from ioc_node.resources import RecordSigner, Resource
from ioc_node.runtime.home import Home
from ioc_node.runtime.store import Store
from ioc_wire.records import Endpoint
from tests.node.test_registering import KEY, PREFIX, cid, wait_for
from tests.runtime.dht_nodes import open_dhts

ENDPOINT = Endpoint("127.0.0.1", 4)
HEAD = "path,cores,memory_mib,free_cores_milli\n"


def found(*hosts: str, cores: int = 8, free_milli: int | None = None) -> list[tuple[Resource, Free | None]]:
    made = [Host(path=f"gen/3301/az1/{host}", cores=cores, memory_mib=64) for host in hosts]
    rows = [CollectedHost(each, whole(each) if free_milli is None else Free(free_milli, 7)) for each in made]
    planned, refused = plan_hosts(rows, prefix=PREFIX, endpoint=ENDPOINT)
    assert refused == []
    return planned


def new_registrar(store: Store, own: OwnCatalogue, *collectors: str) -> Registrar:
    signer, book = RecordSigner(store, KEY), LeaseBook(store, KEY, {})
    made = Registrar((), signer=signer, chain=(), own=own, book=book, prefix=PREFIX)
    made.enter_catalogue(collectors)
    return made


async def test_only_what_changed_is_signed(tmp_path: Path) -> None:
    own = OwnCatalogue(KEY)
    with Store(tmp_path / "node.db") as store:
        registrar = new_registrar(store, own, "a")
        assert await registrar.replace("a", found("h1", "h2", "h3")) == Replaced(3, 0, 0, 0, ())
        records = own.records()
        assert await registrar.replace("a", found("h1", "h2", "h3", free_milli=5)) == Replaced(0, 0, 0, 3, ())
        assert own.records() == records
        assert [(row.free_cores_milli, row.free_memory_mib) for row in registrar.status_rows()] == [
            (5, 7)
        ] * 3
        mixed = [*found("h1"), *found("h2", cores=9)]
        assert await registrar.replace("a", mixed) == Replaced(0, 1, 1, 1, ())
        assert own.records()[cid("h1")] == records[cid("h1")]
        assert list(own.records()) == [cid("h1"), cid("h2")]
        assert await registrar.replace("b", found("h1", "h9")) == Replaced(
            1, 0, 0, 0, ((cid("h1"), "named by config.toml or another collector"),)
        )
        registrar.silence("a")
        assert [row.slot for row in registrar.status_rows()] == [own.slot_of(cid("h9"))]


@pytest.mark.parametrize("pages", range(1, 9, 2))
async def test_a_disk_that_fills_up_is_a_full_disk(tmp_path: Path, pages: int) -> None:
    """Wherever it is noticed; and what was not kept is signed the next time."""
    with Store(tmp_path / "node.db") as store:
        registrar = new_registrar(store, OwnCatalogue(KEY), "a")
        hosts = found(*[f"h{number}" for number in range(300)])
        ((there,),) = store.fetch("PRAGMA page_count")
        store.execute(f"PRAGMA max_page_count={there + pages}")
        with pytest.raises(StorageFull):
            await registrar.replace("a", hosts)
        store.execute("PRAGMA max_page_count=100000")
        done = await registrar.replace("a", hosts)
        assert (done.added + done.changed, done.refused) == (300, ())


async def test_a_restart_waits_for_the_collector(tmp_path: Path) -> None:
    own = OwnCatalogue(KEY)
    with Store(tmp_path / "node.db") as store:
        await new_registrar(store, own, "a", "b").replace("a", found("h1", "h2"))
        again = new_registrar(store, own, "a")
        assert list(own.records()) == [cid("h1"), cid("h2")]
        assert await again.replace("a", found("h2")) == Replaced(
            0, 1, 1, 0, ()
        )  # signed, in the same version
        assert RecordSigner(store, KEY).version_of(cid("h2")) == 1
        new_registrar(store, own)  # not configured any more
        assert own.records() == {}


async def test_the_file_decides_what_is_in_the_dht(tmp_path: Path) -> None:
    path = tmp_path / "hosts.csv"
    path.write_text(f"{HEAD}gen/3301/az1/h1,8,64,\ngen/3301/az1/h2,8,64,\nbad/3301/az1/h3,8,64,\n")
    table = CollectorConfig(name="inventory", interval_seconds=0.02, options={"file": "hosts.csv"})
    config = NodeConfig(role="provider", home=tmp_path, collectors=(table,))
    own = OwnCatalogue(KEY)
    home = Home(own, chain=lambda: (), contact=lambda: None, status=lambda: ())
    async with open_dhts(3) as nodes, trio.open_nursery() as nursery:
        with Store(tmp_path / "node.db") as store:
            registrar = new_registrar(store, own, table.key)
            registrar.publish(nodes[0], home)
            nursery.start_soon(Collecting(config, registrar, prefix=PREFIX, endpoint=ENDPOINT).run)
            await wait_for(nodes[2], {"h1": 1, "h2": 1})
            path.write_text(f"{HEAD}gen/3301/az1/h1,16,64,500\n")
            await wait_for(nodes[2], {"h1": 2, "h2": "Withdrawn"})
            path.write_text("no inventory any more")
            await trio.sleep(0.2)
            assert list(own.records()) == [cid("h1")]
            assert registrar.status_rows() == []  # silent, not gone
            nursery.cancel_scope.cancel()


async def test_a_large_inventory_leaves_turns_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "ROWS_PER_TURN", 10)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with Store(tmp_path / "node.db") as store:
        registrar = new_registrar(store, OwnCatalogue(KEY), "a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            hosts = [f"h{number}" for number in range(400)]
            assert (await registrar.replace("a", found(*hosts))).added == 400
            assert turns > 10
            turns = 0
            assert (await registrar.replace("a", found(*hosts))).unchanged == 400
            assert turns > 35  # 40 while what is free is told; `test_comparing` counts those before
            nursery.cancel_scope.cancel()


class Plugin:
    """A collector of somebody else: what it returns or raises each time is in `answers`."""

    answers: ClassVar[list[Any]] = []

    def __init__(self, options: dict[str, Any], folder: Path) -> None:
        assert options == {}, "none are known"
        self._left = list(self.answers)

    async def collect(self) -> Collected:
        answer = self._left.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]


def collecting_plugin(
    monkeypatch: pytest.MonkeyPatch, folder: Path, store: Store, *answers: Any
) -> tuple[Collecting, Registrar, OwnCatalogue]:
    monkeypatch.setitem(BUILT_IN, "plugin", f"{__name__}:Plugin")
    monkeypatch.setattr(Plugin, "answers", list(answers))
    table = CollectorConfig(name="plugin", interval_seconds=0.01)
    own = OwnCatalogue(KEY)
    registrar = new_registrar(store, own, table.key)
    config = NodeConfig(role="provider", home=folder, collectors=(table,))
    return Collecting(config, registrar, prefix=PREFIX, endpoint=ENDPOINT), registrar, own


def collected(*hosts: CollectedHost) -> Collected:
    return Collected("plugin", hosts)


def host(name: str, cores: int = 8, free: Free | None = None) -> CollectedHost:
    made = Host(path=f"gen/3301/az1/{name}", cores=cores, memory_mib=64)
    return CollectedHost(made, free or Free(8000, 64))


async def test_what_a_collector_of_others_returns_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = collected(
        host("h1"), host("h1"), host("h2", cores=-8), host("h3", free=Free(8001, 64)), host("h4", free=Free(8000, -1)),
        CollectedHost(Host(path="h5", cores=8, memory_mib=64), None), host("h6", cores="8"),  # type: ignore[arg-type]
    )  # fmt: skip
    with Store(tmp_path / "node.db") as store:
        collecting, registrar, own = collecting_plugin(monkeypatch, tmp_path, store, answer)
        (work,) = collecting.at_work
        looked = await collecting.look(work)
        assert looked is not None
        lower = "does not read ioc:ROOT.NODE.PROVIDER/CLASS/CITY/ZONE[/HOST[/DEVICE]] in lower case"
        assert [str(each).partition(" - at")[0] for each in looked.collected.refused] == [
            "path: gen/3301/az1/h1 is named twice",
            "Expected `int` >= 1",
            "gen/3301/az1/h3: 8001 core thousandths are free of 8000: less than nothing would be in use",
            "gen/3301/az1/h4: -1 MiB of memory are free: more is in use than there is",
            f"path: 'ioc:{PREFIX}/h5' {lower}",
            "Expected `int`, got `str`",
        ]
        assert list(own.records()) == [cid("h1"), cid("h3"), cid("h4")]
        assert [row.slot for row in registrar.status_rows()] == [own.slot_of(cid("h1"))]
        (warned,) = collecting.warnings()
        assert warned.about == "collector plugin"
        assert warned.text == "left out: path: gen/3301/az1/h1 is named twice, and 5 more"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Collected("plugin", None), "hosts: a NoneType, not a tuple"),  # type: ignore[arg-type]
        (Collected("plugin", (each for each in ())), "hosts: a generator, not a tuple"),  # type: ignore[arg-type]
        (Collected("plugin", (), None), "refused: a NoneType, not a tuple"),  # type: ignore[arg-type]
        (Collected("plugin", (), (RefusedRow(0, "rack", None),)), "left out: rack: None"),  # type: ignore[arg-type]
        (SystemExit("bye"), "it crashed: SystemExit: bye"),
        (ValueError("one\ntwo" + "x" * 9999), "it crashed: ValueError: one two"),
    ],
)
async def test_whatever_a_collector_of_others_does_the_node_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, reason: str
) -> None:
    with Store(tmp_path / "node.db") as store:
        answers = [answer, *[collected(host("h1"))] * 999]
        collecting, registrar, _ = collecting_plugin(monkeypatch, tmp_path, store, *answers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collecting.run)
            with trio.fail_after(5):
                while not (warnings := collecting.warnings()):
                    await trio.lowlevel.checkpoint()
                assert reason in warnings[0].text
                assert len(warnings[0].text) < 500
                while not registrar.status_rows():
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cores_milli", [1500.5, math.nan, True])
async def test_what_is_free_is_told_in_whole_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores_milli: Any
) -> None:
    """Another node would refuse the whole batch of a provider's status, with all other hosts in it."""
    with Store(tmp_path / "node.db") as store:
        answer = collected(host("h1", free=Free(cores_milli, 64)), host("h2"))
        collecting, registrar, own = collecting_plugin(monkeypatch, tmp_path, store, answer)
        looked = await collecting.look(collecting.at_work[0])
        assert looked is not None
        assert "not an int" in str(looked.collected.refused[0])
        assert [row.slot for row in registrar.status_rows()] == [own.slot_of(cid("h2"))]


async def test_a_file_that_comes_back_as_it_was_is_offered_again(tmp_path: Path) -> None:
    """It was away (a network file system), and comes back with its old time and size: nothing changed."""
    (tmp_path / "hosts.csv").write_text(f"{HEAD}gen/3301/az1/h1,8,64,\n")
    table = CollectorConfig(name="inventory", interval_seconds=0.01, options={"file": "hosts.csv"})
    config = NodeConfig(role="provider", home=tmp_path, collectors=(table,))
    with Store(tmp_path / "node.db") as store:
        registrar = new_registrar(store, OwnCatalogue(KEY), table.key)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Collecting(config, registrar, prefix=PREFIX, endpoint=ENDPOINT).run)
            with trio.fail_after(5):
                while not registrar.status_rows():
                    await trio.sleep(0.001)
                (tmp_path / "hosts.csv").rename(tmp_path / "away.csv")
                while registrar.status_rows():
                    await trio.sleep(0.001)
                (tmp_path / "away.csv").rename(tmp_path / "hosts.csv")
                while not registrar.status_rows():
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()


async def test_what_could_not_be_registered_is_registered_later(tmp_path: Path) -> None:
    """The disk was full; the file doesn't change any more."""
    (tmp_path / "hosts.csv").write_text(f"{HEAD}gen/3301/az1/h1,8,64,\n")
    table = CollectorConfig(name="inventory", options={"file": "hosts.csv"})
    config = NodeConfig(role="provider", home=tmp_path, collectors=(table,))
    own = OwnCatalogue(KEY)
    with Store(tmp_path / "node.db") as store:
        registrar = new_registrar(store, own, table.key)
        collecting = Collecting(config, registrar, prefix=PREFIX, endpoint=ENDPOINT)
        store.execute("PRAGMA query_only=ON")
        with pytest.raises(NodeError, match="readonly"):
            await collecting.look(collecting.at_work[0])
        store.execute("PRAGMA query_only=OFF")
        looked = await collecting.look(collecting.at_work[0])
        assert looked is not None
        assert looked.replaced.added == 1
        assert list(own.records()) == [cid("h1")]
        assert await collecting.look(collecting.at_work[0]) is None


async def test_a_collector_that_fails_is_told_once_and_its_hosts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [
        collected(host("h1")), ZeroDivisionError("oops"), 7, Collected("plugin", (7,)),  # type: ignore[arg-type]
        *[CollectorFailed("the cluster is away")] * 20, *[collected(host("h1"))] * 999,
    ]  # fmt: skip
    with Store(tmp_path / "node.db") as store, structlog.testing.capture_logs() as lines:
        collecting, registrar, own = collecting_plugin(monkeypatch, tmp_path, store, *answers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collecting.run)
            with trio.fail_after(10):
                told = "the cluster is away; its hosts are not offered until it answers again"
                while told not in [each.text for each in collecting.warnings()]:
                    await trio.sleep(0.001)
                assert registrar.status_rows() == []
                assert list(own.records()) == [cid("h1")]
                while collecting.warnings():
                    await trio.sleep(0.001)
            assert [row.slot for row in registrar.status_rows()] == [own.slot_of(cid("h1"))]
            nursery.cancel_scope.cancel()
    logged = [line["reason"] for line in lines if line["event"] == "collector_failed"]
    assert logged[0].startswith("it crashed: ZeroDivisionError: oops (")
    assert logged[1:3] == [
        "it returned a int, not what it collected",
        "what it returned cannot be used: 'int' object has no attribute 'host'",
    ]
    assert logged.count("the cluster is away") == 1
    assert len([line for line in lines if line["event"] == "collected"]) == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module_at_all:Plugin", "cannot be loaded from no_such_module_at_all"),
        (f"{__name__}:NoPlugin", "cannot be loaded"),
        (f"{__name__}:Plugin", "options: AssertionError: none are known"),
    ],
)
def test_a_collector_of_others_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    monkeypatch.setitem(BUILT_IN, "plugin", value)
    with pytest.raises(BadCollector, match=reason):
        load_collector("plugin", {"some": 1}, tmp_path)


@pytest.mark.parametrize(
    ("interval_seconds", "options"), [(-1.0, b"{}"), (math.nan, b"{}"), (1.0, b"[]"), (1.0, b'{"a":' * 9999)]
)
async def test_a_collector_that_is_added_is_checked_like_one_of_config_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval_seconds: float, options: bytes
) -> None:
    with Store(tmp_path / "node.db") as store:
        answers = [collected(host("h1"))] * 9
        collecting, _, _ = collecting_plugin(monkeypatch, tmp_path, store, *answers)
        collecting.at_work.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collecting.run)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(UsageError):
                await collecting.add(AddCollector("plugin", interval_seconds, options))
            nursery.cancel_scope.cancel()
