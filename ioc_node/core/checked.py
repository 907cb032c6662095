"""A bounded memory of signatures that were found good.

The same record comes from several servers, and with every refresh of whoever asks again: its Ed25519 check costs a
hundred times a lookup here. Only the signature is remembered. Period, name, chain and revocation are judged every
time, by whoever asks for the check.
"""

import hashlib
from collections import OrderedDict
from typing import Final

from ioc_wire.signed import verify_bytes

CHECKED_MAX: Final = 8192
"""About 200 bytes each."""


class CheckedSignatures:
    """Least recently used go first. Simulated nodes may share one."""

    def __init__(self, *, size_max: int = CHECKED_MAX) -> None:
        self._size_max = size_max
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self.hits = 0

    def __len__(self) -> int:
        return len(self._good)

    def check(self, key: bytes, signature: bytes, data: bytes, what: str) -> None:
        """As `ioc_wire.signed.verify_bytes`; raises `BadSignature`."""
        name = hashlib.sha256(key + signature + data).digest()  # both of fixed length
        if name in self._good:
            self._good.move_to_end(name)
            self.hits += 1
            return
        verify_bytes(key, signature, data, what)
        self._good[name] = None
        if len(self._good) > self._size_max:
            self._good.popitem(last=False)
