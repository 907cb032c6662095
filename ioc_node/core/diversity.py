"""Choosing servers that do not all belong to one owner.

Whoever runs many servers, or holds many addresses of one block, could place them around a key and be all of its
replica holders. So of the servers nearest to a key at most one is chosen for each *label* (an address block, an
operator), as long as there are enough labels; what is missing then is filled up by distance. An attacker has to
own as many labels as there are replicas to be all of them.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")

Labels = tuple[bytes, ...]
"""What a server shares with others of its owner; empty if nothing is known that could be shared."""


class Spread:
    """Takes servers, nearest first, and says which of them are chosen for their place."""

    __slots__ = ("_taken",)

    def __init__(self) -> None:
        self._taken: set[bytes] = set()

    def take(self, labels: Labels) -> bool:
        """Whether none of these labels was taken before; they are from here on."""
        for label in labels:
            if label in self._taken:
                return False
        self._taken.update(labels)
        return True


def spread(nearest_first: Iterable[_T], count: int, labels_of: Callable[[_T], Labels]) -> list[_T]:
    """The nearest `count`: first those that share no label with a nearer one, then, if there are too few, the
    nearest of the rest.
    """
    chosen: list[_T] = []
    rest: list[_T] = []
    places = Spread()
    for server in nearest_first:
        if places.take(labels_of(server)):
            chosen.append(server)
            if len(chosen) == count:
                return chosen
        else:
            rest.append(server)
    return chosen + rest[: count - len(chosen)]
