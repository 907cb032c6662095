"""SQLite (3, WAL, indexed) or DuckDB on the hosts of `bench.catalogue`: `python catalogue_sql.py SYSTEM ORDERS`.

ORDERS is a JSON file: `hosts`, a CSV file with a header; `database`, the file to make; `indexes`, lists of columns;
`queries`, kind to a list of {where, estimate}; `counts` and `intervals`, by kind; `rates`, status rows per second.
Prints one JSON object: for every kind and rate seconds of `service` (the call) and `latency` (from when it was due),
`matches`, the number of hosts that each query of a kind leaves, `version` and `load_seconds`. Needs nothing of the
project: DuckDB runs in an environment of its own.
"""

import csv
import json
import random
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

OFFERS = 32
TEXTS = ("cid", "node", "class", "city", "architecture", "runtimes", "model")
STATUS = "free_cores = ?, free_memory = ?, free_gpus = ?, queued = ?, fresh = 1"


class Sqlite:
    """One connection per thread; readers do not wait for the writer."""

    version = sqlite3.sqlite_version

    def __init__(self, orders: dict[str, Any]) -> None:
        self._path = orders["database"]
        self._local = threading.local()
        with Path(orders["hosts"]).open(newline="") as file:
            rows = csv.reader(file)
            names = next(rows)
            columns = ", ".join(f'"{name}" {"TEXT" if name in TEXTS else "INTEGER"}' for name in names)
            own = self._own()
            own.execute(f"CREATE TABLE hosts ({columns})")
            own.executemany(f"INSERT INTO hosts VALUES ({', '.join('?' * len(names))})", rows)
        own.execute("CREATE UNIQUE INDEX by_slot ON hosts (provider, slot)")
        for number, index in enumerate(orders["indexes"]):
            own.execute(f"CREATE INDEX by_{number} ON hosts ({', '.join(index)})")
        own.execute("ANALYZE")
        own.commit()

    def _own(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = sqlite3.connect(self._path)
            for pragma in (
                "journal_mode=WAL",
                "synchronous=NORMAL",
                "cache_size=-262144",
                "mmap_size=1073741824",
            ):
                self._local.connection.execute(f"PRAGMA {pragma}")
        connection: sqlite3.Connection = self._local.connection
        return connection

    def fetch(self, sql: str) -> list[Any]:
        return self._own().execute(sql).fetchall()

    def write(self, rows: list[tuple[int, ...]]) -> None:
        with self._own() as connection:
            connection.executemany(f"UPDATE hosts SET {STATUS} WHERE provider = ? AND slot = ?", rows)


class DuckDb:
    """One cursor per thread. It has no use for indexes here: it scans columns with all cores."""

    def __init__(self, orders: dict[str, Any]) -> None:
        import duckdb  # type: ignore[import-not-found]

        self.version: str = duckdb.__version__
        self._database = duckdb.connect(orders["database"])
        self._local = threading.local()
        types = "{" + ", ".join(f"'{name}': 'VARCHAR'" for name in TEXTS) + "}"
        self._database.execute(
            f"CREATE TABLE hosts AS SELECT * FROM read_csv('{orders['hosts']}', header = true, types = {types})"
        )

    def _own(self) -> Any:
        if not hasattr(self._local, "cursor"):
            self._local.cursor = self._database.cursor()
        return self._local.cursor

    def fetch(self, sql: str) -> list[Any]:
        found: list[Any] = self._own().execute(sql).fetchall()
        return found

    def write(self, rows: list[tuple[int, ...]]) -> None:
        cores, memory, gpus, queued, provider, slot = ([*column] for column in zip(*rows, strict=True))
        self._own().execute(
            "UPDATE hosts SET free_cores = s.c, free_memory = s.m, free_gpus = s.g, queued = s.q, fresh = 1 FROM"
            " (SELECT unnest($1) AS c, unnest($2) AS m, unnest($3) AS g, unnest($4) AS q, unnest($5) AS slot) s"
            " WHERE provider = $6 AND hosts.slot = s.slot",
            [cores, memory, gpus, queued, slot, provider[0]],
        )


def write_status(database: Any, sizes: list[tuple[int, int]], rate: float, ended: threading.Event) -> None:
    """Status of provider after provider, one transaction each, `rate` rows each second."""
    rng = random.Random(1)
    due = time.perf_counter()
    while True:
        for provider, size in sizes:
            rows = [
                (rng.randrange(96_000), rng.randrange(400_000), rng.randrange(8000), 0, provider, slot)
                for slot in range(size)
            ]
            database.write(rows)
            due += size / rate
            if ended.wait(max(0.0, due - time.perf_counter())):
                return


def ask(database: Any, queries: list[dict[str, str]], count: int, interval: float) -> dict[str, list[float]]:
    """Queries at fixed times, whether or not the database keeps up."""
    service, latency = [], []
    due = time.perf_counter()
    for number in range(count):
        query = queries[number % len(queries)]
        due += interval
        time.sleep(max(0.0, due - time.perf_counter()))
        began = time.perf_counter()
        database.fetch(
            f"SELECT cid, {query['estimate']} AS estimate FROM hosts WHERE {query['where']}"
            f" ORDER BY estimate, tie LIMIT {OFFERS}"
        )
        ended = time.perf_counter()
        service.append(ended - began)
        latency.append(ended - due)
    return {"service": service, "latency": latency}


def measure(database: Any, orders: dict[str, Any]) -> dict[str, Any]:
    """Every kind at every rate, quiet first."""
    told = database.fetch(
        "SELECT provider, max(slot) + 1 FROM hosts WHERE fresh = 1 GROUP BY provider ORDER BY 1"
    )
    samples: dict[str, Any] = {"matches": {}}
    for kind, queries in orders["queries"].items():
        samples["matches"][kind] = [
            database.fetch(f"SELECT count(*) FROM hosts WHERE {query['where']}")[0][0] for query in queries
        ]
    for rate in (0, *orders["rates"]):
        ended = threading.Event()
        writer = threading.Thread(target=write_status, args=(database, told, rate, ended), daemon=True)
        if rate:
            writer.start()
        for kind, queries in orders["queries"].items():
            ask(database, queries, len(queries), 0.0)
            samples[f"{kind}@{rate}"] = ask(
                database, queries, orders["counts"][kind], orders["intervals"][kind]
            )
        ended.set()
        if rate:
            writer.join()
    return samples


def main() -> None:
    orders = json.loads(Path(sys.argv[2]).read_text())
    began = time.perf_counter()
    database: Sqlite | DuckDb = Sqlite(orders) if sys.argv[1] == "sqlite" else DuckDb(orders)
    loaded = time.perf_counter() - began
    print(
        json.dumps(measure(database, orders) | {"version": database.version, "load_seconds": loaded}),
        flush=True,
    )


if __name__ == "__main__":
    main()
