"""What a core node replicates, told to the core nodes that it is linked with (tags 48-49)."""

from typing import Annotated

import msgspec

from ioc_wire import limits
from ioc_wire.codec import Message

Prefix = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.CID_BYTES_MAX)]


class InterestTold(Message, tag=48, frozen=True):
    """One-way, the first thing that a core node tells another over a new link: it replicates only providers whose
    granted prefix lies within one of these or contains one, so nothing else need be told to it or compared with it.
    No prefix, or no such message, means everything. `cn.r` and `cn.i` stand for all regional and industry nodes."""

    prefixes: Annotated[tuple[Prefix, ...], msgspec.Meta(max_length=limits.INTEREST_PREFIXES_MAX)]
