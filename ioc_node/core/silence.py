"""Addresses at which nobody answered. A contact that others tell of is knocked at on their word alone, so a liar could
aim many nodes at one victim, with ever new node IDs. After one knock in vain no further contact at that address is
believed for `SILENT_SECONDS`, whatever its ID; a host of the Internet with `SILENT_PORTS_MAX` such ports counts as
silent as a whole. Whoever is heard there ends it. Servers that we knew ourselves are tried again all the same.
"""

from collections import Counter, OrderedDict
from typing import Final

from ioc_node.core.challenge import Address
from ioc_node.core.routing import address_scope

SILENT_SECONDS: Final = 300.0
SILENT_MAX: Final = 4096
"""Addresses remembered; the oldest is forgotten first."""
SILENT_PORTS_MAX: Final = 16
_GLOBAL: Final = 2


class Silence:
    """Which addresses were silent lately."""

    def __init__(self) -> None:
        self._until: OrderedDict[Address, float] = OrderedDict()
        self._ports: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, address: Address, now: float) -> None:
        """Nobody answered here."""
        self.discard(address)
        self._until[address] = now + SILENT_SECONDS
        self._ports[address[0]] += 1
        if len(self._until) > SILENT_MAX:
            self.discard(next(iter(self._until)))

    def discard(self, address: Address) -> None:
        """Somebody was heard here."""
        if self._until.pop(address, None) is not None:
            self._ports[address[0]] -= 1
            if not self._ports[address[0]]:
                del self._ports[address[0]]

    def covers(self, address: Address, now: float) -> bool:
        """Whether it is no use to knock here on others' word."""
        while self._until and next(iter(self._until.values())) <= now:
            self.discard(next(iter(self._until)))
        if address in self._until:
            return True
        return self._ports[address[0]] >= SILENT_PORTS_MAX and address_scope(address[0]) == _GLOBAL
