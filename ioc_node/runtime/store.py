"""The node's database: SQLite in WAL mode, called directly.

Key lookups take microseconds, so calls are synchronous and need no thread; long scans don't belong here. Statements
outside of a transaction commit by themselves. A commit survives a crash of the process always; it survives a power
cut where the transaction was `durable` (promises: leases, receipts), else the last moments before it may be missing.

A database that SQLite refuses, or that fails its check, is set aside under another name, and the node does not
start: an operator should know that leases and receipts are missing before anything new is promised. The next start
makes a new database; the old one stays for salvage (`sqlite3 FILE .recover`).
"""

import datetime
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import structlog

from ioc_node.errors import DatabaseCorrupt, NodeError, StorageFull

log = structlog.get_logger()

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x696F6331
"""`ioc1` in the header of our databases: another program's database is refused, and left alone."""
BUSY_MS: Final = 5000
CACHE_KIB: Final = 8192
WAL_PAGES: Final = 1000

_MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {
    1: (
        "CREATE TABLE IF NOT EXISTS rooms (name TEXT PRIMARY KEY, statements INTEGER NOT NULL) WITHOUT ROWID",
        """CREATE TABLE IF NOT EXISTS known_peers (
             key BLOB PRIMARY KEY, address TEXT NOT NULL, seen INTEGER NOT NULL) WITHOUT ROWID""",
    ),
}
"""Statements that lift a database to each version. Never edited once released; only added to."""

_NO_ROOM: Final = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
_CORRUPT: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Store:
    """One open database; a context manager that closes it."""

    def __init__(self, path: Path) -> None:
        """Open the database at `path`, made where there is none.

        Raises `DatabaseCorrupt` (after setting it aside), `StorageFull`, or `NodeError` for one that is locked, of
        another program or of a newer version.
        """
        self.path = path
        self._depth = 0
        self._connection = _open_checked(path)
        try:
            with _named_faults(path):
                _prepare(self, self._connection)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def require(self, name: str, statements: Sequence[str]) -> None:
        """Create the tables of one room. `statements` are run once each, in order; later versions append some."""
        with self.transaction():
            found = self.fetch("SELECT statements FROM rooms WHERE name = ?", (name,))
            done = found[0][0] if found else 0
            if done > len(statements):
                raise NodeError(f"{self.path} was written by a newer version of ioc-node: update this one")
            for statement in statements[done:]:
                self.execute(statement)
            self.execute("INSERT OR REPLACE INTO rooms VALUES (?, ?)", (name, len(statements)))

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run one statement; returns the number of rows that it changed. Raises `StorageFull`."""
        with _named_faults(self.path):
            return self._connection.execute(sql, values).rowcount

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for every row, all or none."""
        with self.transaction(), _named_faults(self.path):
            self._connection.executemany(sql, rows)

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query: bound it with LIMIT where a table can be long."""
        with _named_faults(self.path):
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """All or nothing. Inside another transaction this is part of it, undone alone if only it fails.

        `durable` waits for the disk, in the outermost transaction. Never await inside: others would take part.
        """
        if self._depth:
            begin, commit, undo = "SAVEPOINT inner", "RELEASE inner", "ROLLBACK TO inner"
        else:
            begin, commit, undo = "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"
            if durable:
                self.execute("PRAGMA synchronous=FULL")
        try:
            self.execute(begin)
            self._depth += 1
            try:
                yield
                self.execute(commit)
            except BaseException:
                self._undo(undo)
                raise
            finally:
                self._depth -= 1
        finally:
            if durable and not self._depth:
                self.execute("PRAGMA synchronous=NORMAL")

    def checkpoint(self) -> None:
        """Bring the database up to its write-ahead log, for a thread, while others write: SQLite does it as part of a
        commit otherwise, once there are WAL_PAGES.
        """
        with _named_faults(self.path), closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def open_reader(self) -> "Reader":
        """Another connection to the same database, for reads while a thread writes through this one."""
        return Reader(self.path)

    def close(self) -> None:
        self._connection.close()

    def _undo(self, sql: str) -> None:
        if not self._connection.in_transaction:
            return  # SQLite has undone it itself, as it does when the disk is full
        self.execute(sql)
        if sql == "ROLLBACK TO inner":
            self.execute("RELEASE inner")


class Reader:
    """A read-only connection. It sees what was committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _named_faults(path):
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_MS / 1000
            )

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query: bound it where a table can be long."""
        with _named_faults(self.path):
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        self._connection.close()


def open_store(path: Path) -> Store:
    """The database at `path`, for a `with` block; raises as `Store` does."""
    return Store(path)


def _open_checked(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, timeout=BUSY_MS / 1000, check_same_thread=False
        )
    except sqlite3.OperationalError as error:
        raise NodeError(f"database {path} cannot be opened: {error}") from None
    try:
        path.chmod(0o600)  # it holds what was asked, promised and paid
        report = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF in _CORRUPT:
            _set_aside(path, str(error))
        raise _fault(path, error) from None
    except OSError as error:
        connection.close()
        raise NodeError(f"database {path} cannot be opened: {error.strerror}") from None
    if report != "ok":
        connection.close()
        _set_aside(path, str(report).splitlines()[-1])
    return connection


def _prepare(store: Store, connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application not in (0, APPLICATION_ID) or (tables and application == 0):
        raise NodeError(f"{store.path} is a database of another program: move it, or use another home folder")
    if version > SCHEMA_VERSION:
        raise NodeError(f"{store.path} was written by a newer version of ioc-node: update this one")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
    with store.transaction():
        for step in range(version + 1, SCHEMA_VERSION + 1):
            for statement in _MIGRATIONS[step]:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _set_aside(path: Path, why: str) -> None:
    """Rename a corrupt database with its companions; raises `DatabaseCorrupt` saying where they are now."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    for suffix in ("-wal", "-shm", ""):  # the database last: an interruption leaves it to be found again
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(aside.with_name(aside.name + suffix))
    log.error("database_corrupt", path=str(path), kept_as=str(aside), reason=why)
    raise DatabaseCorrupt(
        f"database {path} is corrupt ({why}): it was kept as {aside.name}; start again to begin with a new one"
    )


@contextmanager
def _named_faults(path: Path) -> Iterator[None]:
    """Faults of the medium become the node's errors; a mistake in SQL stays what it is."""
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
            raise
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF == sqlite3.SQLITE_ERROR:
            raise
        raise _fault(path, error) from error


def _fault(path: Path, error: sqlite3.Error) -> NodeError:
    code = error.sqlite_errorcode & 0xFF
    if code == sqlite3.SQLITE_FULL or error.sqlite_errorcode in _NO_ROOM:
        return StorageFull(f"no space is left for database {path} ({error}): free some space")
    if code in _CORRUPT:
        return DatabaseCorrupt(
            f"database {path} has become corrupt ({error}): restart the node to have it set aside"
        )
    if code == sqlite3.SQLITE_BUSY:
        return NodeError(f"database {path} is locked by another process: is another node running?")
    return NodeError(f"database {path} cannot be used: {error}")


class PeerMemory:
    """Known peers across restarts, for `ioc_bootstrap`: at most `peers_max`, the least recently seen go first."""

    def __init__(self, store: Store, *, peers_max: int = 256) -> None:
        self._store = store
        self._peers_max = peers_max

    def load_peers(self) -> list[tuple[str, bytes]]:
        """(address, key), most recently seen first."""
        query = "SELECT address, key FROM known_peers ORDER BY seen DESC, key LIMIT ?"
        return [(str(address), bytes(key)) for address, key in self._store.fetch(query, (self._peers_max,))]

    def save_peer(self, address: str, key: bytes, seen: int) -> None:
        """Remember a peer that was reached at `address`; `seen` is seconds since 1970. Where it cannot be written, it
        is not: a full disk must not end a node for the sake of a cache."""
        try:
            with self._store.transaction():
                self._store.execute("DELETE FROM known_peers WHERE address = ? AND key != ?", (address, key))
                self._store.execute(
                    "INSERT OR REPLACE INTO known_peers VALUES (?, ?, ?)", (key, address, seen)
                )
                self._forget_oldest()
        except NodeError as error:
            log.warning("peer_not_remembered", address=address, error=str(error))

    def hear_of(self, address: str, key: bytes) -> None:
        """Remember a peer that others name, behind all that were reached."""
        try:
            with self._store.transaction():
                self._store.execute("INSERT OR IGNORE INTO known_peers VALUES (?, ?, 0)", (key, address))
                self._forget_oldest()
        except NodeError as error:
            log.warning("peer_not_remembered", address=address, error=str(error))

    def _forget_oldest(self) -> None:
        self._store.execute(
            """DELETE FROM known_peers WHERE key NOT IN
               (SELECT key FROM known_peers ORDER BY seen DESC, key LIMIT ?)""",
            (self._peers_max,),
        )
