"""Takes in one version of a catalogue after the other and saves each, until it is killed: `python crashing_core.py DB`.

Prints the number of each version once it is saved.
"""

import sys
from pathlib import Path

import trio

from ioc_node.core.catalogue import Catalogue
from ioc_node.runtime.catalogue_store import open_catalogue
from tests.core.gossip_staple import Provider, certified
from tests.core.staple import UNIX


async def main(path: Path) -> None:
    alice, bob = Provider("alice", 20001), Provider("bob", 20002)
    with open_catalogue(path) as shelf:
        catalogue = Catalogue(certified(), book=shelf)
        for version in range(1, 10_000):
            for provider in (alice, bob):
                provider.put(*(f"h{(version * 37 + n) % 300}" for n in range(60)), version=version)
                if version % 3 == 0:
                    provider.own.withdraw(provider.cid(f"h{version % 300}"))
                unix = UNIX + version
                replica = catalogue.replica(provider.public)
                news = provider.news(unix)
                catalogue.consider(news, unix=unix)
                after = replica.held_seq if replica is not None else 0
                catalogue.apply(provider.public, news.head, provider.own.entries_after(after), unix=unix)
            replicas = [catalogue.replica(provider.public) for provider in (alice, bob)]
            await shelf.save({one.provider: one.news() for one in replicas if one is not None})
            sys.stdout.write(f"{version}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
