"""A demand that names providers: only their hosts, and where it is asked for, those of the first ones first."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ioc_node.market.columns import Table
from ioc_node.market.conditions import Condition
from ioc_node.market.kinds import Mask, Rows
from ioc_node.market.plans import Many

NAMED: Final = "provider"
"""What the condition is called that leaves out the hosts of providers that were not named."""
_UNNAMED: Final = 1 << 31


class NamedOwners:
    """The place of each row's provider among `providers`."""

    def __init__(self, table: Table, providers: Sequence[bytes]) -> None:
        places = {provider: place for place, provider in reversed(list(enumerate(providers)))}
        owners = table.owners.values
        self._owner = table["owner"]
        found = (places.get(each or b"", _UNNAMED) for each in owners)
        self._places: Rows = np.fromiter(found, np.int64, len(owners))

    def condition(self) -> Condition:
        """The condition on rows that their provider was named."""
        return Condition(NAMED, self._is_named, lambda row: "is of a provider that was not asked about")

    def estimate(self, rows: Rows | slice) -> npt.NDArray[np.float64]:
        """Of each row, in the stead of a price; 0 for the provider named first."""
        return self._place(rows).astype(np.float64)

    def rule_out(self, mask: Mask, block: Many, best: Rows, edge: float) -> None:
        """Clear rows of a block that come after `edge`."""
        mask &= self._place(block.rows) <= edge

    def _is_named(self, rows: Rows | slice) -> Mask:
        named: Mask = self._place(rows) < _UNNAMED
        return named

    def _place(self, rows: Rows | slice) -> Rows:
        if not len(self._places):
            return np.zeros(len(self._owner[rows]), np.int64)
        places: Rows = self._places.take(self._owner[rows], mode="clip")
        return places
