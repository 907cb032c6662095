"""What a sweep carries: records on their way, what waits for each server, and stretches of keys being placed."""

from collections import deque
from collections.abc import Iterator
from typing import Final

from ioc_node.core.atlas import Atlas, Planner
from ioc_node.core.routing import Contact
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.cid import cid_key
from ioc_wire.codec import encode
from ioc_wire.errors import TooLarge
from ioc_wire.records import named_payload
from ioc_wire.signed import Signed

HEAD_BYTES: Final = 64
"""Of a `PutMany` beside its records."""


class Item:
    """One record on its way."""

    __slots__ = ("chain", "cid", "key", "moves", "record", "servers", "size", "stored", "wanted")

    def __init__(self, record: Signed, chain: bytes | None) -> None:
        self.cid = named_payload(record).cid
        self.key = int.from_bytes(cid_key(self.cid), "big")
        self.record = record
        self.chain = chain
        self.size = len(encode(record))
        self.servers: tuple[Contact, ...] = ()
        self.wanted = self.stored = self.moves = 0
        if self.size > wire.PLAINTEXT_BYTES_MAX - HEAD_BYTES:
            raise TooLarge(f"record of {self.cid}: at most {limits.RECORD_BYTES_MAX} bytes are allowed")


class Server:
    """What waits for one server, by chain."""

    __slots__ = (
        "contact",
        "gone",
        "is_queued",
        "open",
        "queues",
        "resting",
        "rests",
        "rests_all",
        "sending",
        "sent",
    )

    def __init__(self, contact: Contact) -> None:
        self.contact = contact
        self.queues: dict[bytes | None, deque[Item]] = {}
        self.open = 0
        self.rests = self.rests_all = 0
        self.resting = self.gone = self.is_queued = False
        self.sending: set[bytes] = set()
        """Chains that it is just being told, and `sent` those that it was told."""
        self.sent: set[bytes] = set()

    def take(self, *, flush: bool) -> list[Item]:
        """The next batch under one chain: a full datagram, or with `flush` what there is."""
        for chain, queue in self.queues.items():
            if chain in self.sending:
                continue
            batch: list[Item] = []
            room = wire.PLAINTEXT_BYTES_MAX - HEAD_BYTES
            for item in queue:
                room -= item.size
                if room < 0 or len(batch) == wire.BATCH_RECORDS_MAX:
                    flush = True
                    break
                batch.append(item)
            if flush and batch:
                for _ in batch:
                    queue.popleft()
                return batch
        return []


class Lane:
    """A stretch of the sorted records, from the first to before the last, and how far it is placed."""

    def __init__(self, items: list[Item], atlas: Atlas) -> None:
        self.planner = Planner([item.key for item in items], atlas)
        self.steps = self._steps(items)
        self.is_waiting = False

    def _steps(self, items: list[Item]) -> Iterator[tuple[Item, tuple[Contact, ...]] | int]:
        while (step := self.planner.next()) is not None:
            if isinstance(step, int):
                yield step
            else:
                for item in items[step.first : step.end]:
                    yield item, step.servers
