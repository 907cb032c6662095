"""Where the entries of a node's catalogues lie: a million of them are too many for memory beside their index.

The catalogue decides what is written; a book only keeps it. Core nodes keep theirs in SQLite
(`ioc_node.runtime.catalogue_store`), tests and simulations in memory.
"""

from collections.abc import Sequence
from typing import Protocol

from ioc_node.core.by_slot import BySlot


class EntryBook(Protocol):
    """Encoded entries by provider (key of 32 bytes) and slot. What was put is read back at once."""

    def get_many(self, provider: bytes, slots: Sequence[int]) -> list[bytes]:
        """The entries in these slots, in this order; those that are missing are left out."""

    def put(self, provider: bytes, entries: BySlot[bytes], count: int, *, size: int) -> None:
        """Enter or replace entries by slot, which are given away, and forget every slot from `count` on. They have
        `size` bytes at most.
        """

    def drop(self, provider: bytes) -> None:
        """Forget a provider's entries."""


class MemoryBook:
    """An `EntryBook` in memory."""

    def __init__(self) -> None:
        self._entries: dict[bytes, dict[int, bytes]] = {}

    def get_many(self, provider: bytes, slots: Sequence[int]) -> list[bytes]:
        entries = self._entries.get(provider, {})
        return [entries[slot] for slot in slots if slot in entries]

    def put(self, provider: bytes, entries: BySlot[bytes], count: int, *, size: int) -> None:
        kept = self._entries.setdefault(provider, {})
        for chunk in entries.chunks():
            kept.update(chunk)
        for slot in [slot for slot in kept if slot >= count]:
            del kept[slot]

    def drop(self, provider: bytes) -> None:
        self._entries.pop(provider, None)
