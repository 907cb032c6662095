"""A core node's catalogue that is killed again and again: `python crashing_core.py DB KILLS SEED`.

A child takes up the database, takes in one version of two catalogues after the other and saves each, until SIGKILL:
from here at any moment, or from a thread of its own while the WAL is checkpointed. After each kill another child takes
the database up as a node does, derives every root anew and reads every entry back. Prints what happened, as JSON.

Children are forked, which spares their imports; this process itself starts no thread.
"""

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import trio

from ioc_node.core.catalogue import Catalogue
from ioc_node.runtime.catalogue_store import CatalogueShelf, open_catalogue
from tests.core.gossip_staple import Provider, certified
from tests.core.staple import UNIX

WAL_PAGES = 40
"""The WAL is checkpointed with every other save or so: kills meet checkpoints too."""
HOSTS = 120
CHANGED = 30


async def write(
    path: Path, saved: int, chance: random.Random, dies_in_checkpoint: bool, say: Callable[[str], object]
) -> None:
    """Save versions for ever, telling of each."""
    providers = (Provider("alice", 20001), Provider("bob", 20002))
    with open_catalogue(path) as shelf:
        catalogue = Catalogue(certified(), book=shelf)
        await shelf.load(catalogue, unix=UNIX + saved)
        first = max((held_seq(catalogue, each) - UNIX for each in providers), default=0)
        for each in providers:
            each.put(*(f"h{number}" for number in range(HOSTS)), version=first + 1)
        shelf._store.execute(f"PRAGMA wal_autocheckpoint={0 if dies_in_checkpoint else WAL_PAGES}")
        say(f"up {first}\n")
        for version in range(first + 1, first + 10_000):
            for each in providers:
                take_in(catalogue, each, version)
            replicas = [catalogue.replica(each.public) for each in providers]
            await shelf.save({one.provider: one.news() for one in replicas if one is not None})
            say(f"saved {version}\n")
            if dies_in_checkpoint and version > first + 4:
                die_in_checkpoint(shelf, chance, say)


def held_seq(catalogue: Catalogue, provider: Provider) -> int:
    replica = catalogue.replica(provider.public)
    return replica.held_seq if replica is not None else UNIX


def take_in(catalogue: Catalogue, provider: Provider, version: int) -> None:
    """The next version: some entries change, some go and come back. All are sent, as the log began anew."""
    provider.put(*(f"h{(version * 37 + n) % HOSTS}" for n in range(CHANGED)), version=version + 1)
    if version % 3 == 0:
        provider.own.withdraw(provider.cid(f"h{version % HOSTS}"))
    unix = UNIX + version
    news = provider.news(unix)
    catalogue.consider(news, unix=unix)
    catalogue.apply(provider.public, news.head, provider.own.entries_after(0), unix=unix)


def die_in_checkpoint(shelf: CatalogueShelf, chance: random.Random, say: Callable[[str], object]) -> None:
    seconds = chance.random() * 0.004

    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    say("checkpoint\n")
    threading.Thread(target=kill).start()
    shelf._store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    say("checkpointed\n")
    time.sleep(1)


async def check(path: Path, saved: int, say: Callable[[str], object]) -> None:
    """What a restarted node finds: nothing missing, nothing that doesn't fit together."""
    with open_catalogue(path) as shelf:
        catalogue = Catalogue(certified(), book=shelf)
        await shelf.load(catalogue, unix=UNIX + saved)
        seqs = set()
        for provider in catalogue.providers():
            replica = catalogue.replica(provider)
            assert replica is not None
            assert replica.held is not None
            assert replica.base.tree.root == replica.held.head.root
            assert len(catalogue.entries(provider, range(replica.slots))) == replica.slots == HOSTS
            seqs.add(replica.held.head.seq - UNIX)
        assert len(catalogue.providers()) == (2 if seqs else 0)
        assert len(seqs) <= 1, "both were saved in one transaction"
        assert max(seqs, default=0) >= saved, f"{seqs} after {saved} was saved"
        say(f"held {max(seqs, default=0)}\n")


def forked(work: Callable[[Callable[[str], object]], None]) -> tuple[int, int]:
    """Do it in a child; its pid, and where what it says can be read."""
    here, there = os.pipe()
    pid = os.fork()
    if not pid:
        _in_child(work, there)
    os.close(there)
    return pid, here


def _in_child(work: Callable[[Callable[[str], object]], None], there: int) -> NoReturn:
    code = 1
    try:
        work(lambda text: os.write(there, text.encode()))
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)  # not back into what the parent was doing


def main(path: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    saved, found = 0, {"kills": 0, "versions": 0, "in_checkpoint": 0, "unsaid": 0, "wal_left": 0}
    for kill in range(kills):
        inside = kill % 3 == 2
        writing = random.Random(chance.random())
        pid, told = forked(lambda say: trio.run(write, path, saved, writing, inside, say))  # noqa: B023
        said = os.read(told, 1 << 16) if not inside else b""
        if not inside:
            time.sleep(chance.random() * 0.08)
            os.kill(pid, signal.SIGKILL)
        while more := os.read(told, 1 << 16):
            said += more
        os.close(told)
        os.waitpid(pid, 0)
        words = said.decode().split()
        saved = max([saved, *(int(words[n + 1]) for n, word in enumerate(words) if word == "saved")])
        wal = path.with_name(f"{path.name}-wal")
        found["wal_left"] += wal.exists() and wal.stat().st_size > 0
        found["in_checkpoint"] += words[-1] == "checkpoint"
        pid, told = forked(lambda say: trio.run(check, path, saved, say))  # noqa: B023
        held = os.read(told, 1 << 16).split()
        os.close(told)
        assert os.waitpid(pid, 0)[1] == 0, f"after kill {kill}"
        found["unsaid"] += int(held[1]) > saved
        found["kills"], found["versions"] = kill + 1, int(held[1])
        saved = int(held[1])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
