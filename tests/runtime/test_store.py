"""The node's database: transactions, versions of rooms, and everything that can be wrong with a file."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ioc_node.errors import DatabaseCorrupt, NodeError, StorageFull
from ioc_node.runtime.store import PeerMemory, Store, open_store

SCHEMA = ("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT)",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.db"


def filled(path: Path, rows: int = 1000) -> None:
    with open_store(path) as store:
        store.require("things", SCHEMA)
        store.execute_many("INSERT INTO things VALUES (?, ?)", [(n, "x" * 200) for n in range(rows)])


def fail_after(store: Store, id: int) -> None:
    store.execute("INSERT INTO things VALUES (?, 'a')", (id,))
    raise KeyError


def count(store: Store) -> int:
    return int(store.fetch("SELECT count(*) FROM things")[0][0])


def test_rows_survive_reopening_and_the_file_is_private(path: Path):
    filled(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with open_store(path) as store:
        store.require("things", SCHEMA)
        assert count(store) == 1000
        assert store.execute("DELETE FROM things WHERE id < ?", (10,)) == 10


def test_transaction_is_all_or_nothing_and_an_inner_one_fails_alone(path: Path):
    with open_store(path) as store:
        store.require("things", SCHEMA)
        with pytest.raises(KeyError), store.transaction(durable=True):
            fail_after(store, 1)
        assert count(store) == 0
        with store.transaction(durable=True):
            store.execute("INSERT INTO things VALUES (1, 'a')")
            with pytest.raises(KeyError), store.transaction():
                fail_after(store, 2)
            store.execute("INSERT INTO things VALUES (3, 'c')")
        assert store.fetch("SELECT id FROM things") == [(1,), (3,)]
        assert store.fetch("PRAGMA synchronous") == [(1,)]
        with pytest.raises(sqlite3.IntegrityError):
            store.execute("INSERT INTO things VALUES (1, 'again')")
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            store.execute("INSERT INTO nowhere VALUES (1)")


def test_durable_transaction_waits_for_the_disk(path: Path):
    with open_store(path) as store, store.transaction(durable=True):
        assert store.fetch("PRAGMA synchronous") == [(2,)]


def test_committed_rows_survive_a_kill(path: Path):
    program = (
        "import os, sys, pathlib; from ioc_node.runtime.store import Store\n"
        "s = Store(pathlib.Path(sys.argv[1])); s.require('things', ('CREATE TABLE things (id INTEGER, name TEXT)',))\n"
        "s.execute('INSERT INTO things VALUES (7, NULL)'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == -9
    with open_store(path) as store:
        assert store.fetch("SELECT id FROM things") == [(7,)]


def test_later_version_of_a_room_adds_its_statements_once(path: Path):
    later = (*SCHEMA, "ALTER TABLE things ADD COLUMN colour TEXT")
    filled(path)
    for _ in range(2):
        with open_store(path) as store:
            store.require("things", later)
            store.execute("UPDATE things SET colour = 'red'")
    with open_store(path) as store, pytest.raises(NodeError, match="newer version of ioc-node"):
        store.require("things", SCHEMA)


@pytest.mark.parametrize("damage", ["header", "page", "not a database"])
def test_corrupt_database_is_set_aside_byte_for_byte_and_the_next_start_is_fresh(path: Path, damage: str):
    filled(path)
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:16] = b"garbage garbage!"
    elif damage == "page":
        for page in range(2, len(data) // 4096):
            data[page * 4096 : page * 4096 + 64] = os.urandom(64)
    else:
        data = bytearray(b"no database at all\n" * 500)
    path.write_bytes(data)
    with pytest.raises(DatabaseCorrupt, match=r"is corrupt .*kept as node\.db\.corrupt-") as error:
        open_store(path)
    assert "\n" not in str(error.value)
    (kept,) = (file for file in path.parent.iterdir() if file.name.startswith("node.db.corrupt-"))
    assert kept.read_bytes() == bytes(data)
    assert not path.exists()
    filled(path)
    assert kept.read_bytes() == bytes(data)


def test_database_of_another_program_or_a_newer_version_is_left_alone(path: Path):
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (id)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(NodeError, match="another program"):
        open_store(path)
    assert path.read_bytes() == before
    newer = path.with_name("newer.db")
    filled(newer)
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(NodeError, match="newer version"):
        open_store(newer)


def test_path_that_cannot_hold_a_database_is_one_line(tmp_path: Path):
    with pytest.raises(NodeError, match="cannot be opened"):
        open_store(tmp_path / "missing" / "node.db")
    with pytest.raises(NodeError, match="cannot be opened"):
        open_store(tmp_path)


def test_full_disk_is_storage_full_and_loses_nothing_that_was_committed(path: Path):
    filled(path, 100)
    with open_store(path) as store:
        pages = int(store.fetch("PRAGMA page_count")[0][0])
        store.execute(f"PRAGMA max_page_count={pages + 2}")
        with pytest.raises(StorageFull, match="no space is left"):
            store.execute_many("INSERT INTO things VALUES (?, ?)", [(n, "y" * 500) for n in range(100, 1000)])
        assert count(store) == 100
        store.execute("PRAGMA max_page_count=1000000")
        store.execute("INSERT INTO things VALUES (100, 'room again')")
        assert count(store) == 101


def test_known_peers_are_bounded_and_the_newest_come_first(path: Path):
    with open_store(path) as store:
        memory = PeerMemory(store, peers_max=3)
        for n in range(5):
            memory.save_peer(f"10.0.0.{n}:4600", bytes([n]) * 32, 100 + n)
        memory.save_peer("10.0.0.3:4600", bytes([9]) * 32, 200)
    with open_store(path) as store:
        known = PeerMemory(store, peers_max=3).load_peers()
    assert [address for address, _ in known] == ["10.0.0.3:4600", "10.0.0.4:4600", "10.0.0.2:4600"]
    assert known[0][1] == b"\x09" * 32
