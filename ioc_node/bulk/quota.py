"""How much room blobs take, and which of them was used longest ago.

Counted are complete blobs, and the full size of what is on its way. Called from the trio loop and from worker threads.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator

from ioc_node.errors import StorageFull
from ioc_wire.bulk import BlobId


class Quota:
    """Sizes of blobs in order of their last use, and reservations by name, within `bytes_max` (None: any)."""

    def __init__(self, bytes_max: int | None) -> None:
        self.bytes_max = bytes_max
        self._used: OrderedDict[BlobId, tuple[int, float]] = OrderedDict()
        self._reserved: dict[str, int] = {}
        self._total = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._used)

    def __contains__(self, blob: BlobId) -> bool:
        return blob in self._used

    @property
    def bytes_total(self) -> int:
        """Bytes of all blobs, with the full size of those on their way."""
        return self._total

    @property
    def bytes_free(self) -> int:
        """What may still come; not negative."""
        return 1 << 62 if self.bytes_max is None else max(0, self.bytes_max - self._total)

    def size(self, blob: BlobId) -> int | None:
        """Bytes of a complete blob."""
        entry = self._used.get(blob)
        return entry[0] if entry is not None else None

    def used_at(self, blob: BlobId) -> float:
        """When a complete blob was last used, seconds since 1970; 0 for one that is gone."""
        entry = self._used.get(blob)
        return entry[1] if entry is not None else 0.0

    def by_use(self) -> Iterator[BlobId]:
        """All complete blobs, the one used longest ago first."""
        with self._lock:
            return iter(list(self._used))

    def add(self, blob: BlobId, size: int, used: float) -> None:
        """A blob is complete; its reservations are dropped by whoever made them."""
        with self._lock:
            known = self._used.pop(blob, None)
            self._total += size - (known[0] if known is not None else 0)
            self._used[blob] = (size, used)

    def touch(self, blob: BlobId, used: float) -> float:
        """A complete blob is used now; when it was before."""
        with self._lock:
            entry = self._used.get(blob)
            if entry is None:
                return used
            self._used[blob] = (entry[0], used)
            self._used.move_to_end(blob)
            return entry[1]

    def remove(self, blob: BlobId) -> bool:
        """A blob is no longer here; whether it was."""
        with self._lock:
            entry = self._used.pop(blob, None)
            self._total -= entry[0] if entry is not None else 0
            return entry is not None

    def reserved(self, name: str) -> int | None:
        """What is reserved under a name."""
        return self._reserved.get(name)

    def reservations(self) -> list[str]:
        """Names under which something is reserved."""
        return list(self._reserved)

    def reserve(self, name: str, size: int, what: str = "", *, checked: bool = True) -> None:
        """Reserve `size` bytes in all under `name`. Raises `StorageFull`, naming `what`, where there is no room."""
        with self._lock:
            if checked:
                self._require(size - self._reserved.get(name, 0), size, what)
            self._total += size - self._reserved.get(name, 0)
            self._reserved[name] = size

    def release(self, name: str) -> None:
        """Give a reservation back."""
        with self._lock:
            self._total -= self._reserved.pop(name, 0)

    def require(self, size: int, what: str) -> None:
        """Raise `StorageFull` unless `size` more bytes have room."""
        with self._lock:
            self._require(size, size, what)

    def _require(self, more: int, size: int, what: str) -> None:
        if self.bytes_max is not None and more > self.bytes_max - self._total:
            raise StorageFull(
                f"no space left for {what}: {size} bytes, but only {max(self.bytes_max - self._total, 0)} of the "
                f"{self.bytes_max} that blobs may take are free; remove some or raise the limit"
            )
