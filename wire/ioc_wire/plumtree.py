"""How news spreads where there are too many core nodes for a full mesh: Plumtree over HyParView (tags 36-39).

Sources: Leitão, Pereira, Rodrigues: Epidemic Broadcast Trees (SRDS 2007); HyParView (DSN 2007). What is broadcast is
state, not messages: a newer head or status batch takes the place of the older, so nobody keeps messages to graft from.
"""

from typing import Annotated, Literal

import msgspec

from ioc_wire import limits
from ioc_wire.codec import Key, Message, UInt

Standing = Literal["ask", "urge", "yes", "no"]


class Mark(Message, frozen=True):
    """A piece of news by its name: with `part` 0 the head of `provider`, else its status batch of part `part` - 1."""

    provider: Key
    part: Annotated[int, msgspec.Meta(ge=0, le=limits.STATUS_PARTS_MAX)]
    seq: UInt


class Neighbour(Message, tag=36, frozen=True):
    """One-way: `ask` to be neighbours, `urge` where the sender has none. Answered with `yes` or `no`. An unasked `no`
    ends it."""

    standing: Standing


class IHave(Message, tag=37, frozen=True):
    """One-way to a neighbour: what the sender holds and did not send. Without news: the sender is there."""

    news: Annotated[tuple[Mark, ...], msgspec.Meta(max_length=limits.NEWS_MAX)] = ()


class Graft(Message, tag=38, frozen=True):
    """One-way to a neighbour: these did not come from elsewhere in time. They are told, and whatever comes after."""

    news: Annotated[tuple[Mark, ...], msgspec.Meta(min_length=1, max_length=limits.NEWS_MAX)]


class Prune(Message, tag=39, frozen=True):
    """One-way to a neighbour: what it told had come from elsewhere. From now on it is enough to say `IHave`."""


TreeMessage = Neighbour | IHave | Graft | Prune
