"""Core nodes by where they take links: whom to dial, and when.

Whoever was reached once, or says itself where it is, is *sure*. All others are hearsay: a core node can make up as many
as it likes, so that each teller has a share of the book, hearsay makes room for what is sure and never the other way
round, and where a sure one is said to be elsewhere, that is only tried in turn with the address that is sure.
"""

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from ioc_node.core.chance import Chance
from ioc_wire.market import Contact

CONTACTS_MAX: Final = 256
TOLD_MAX: Final = 64
"""Hearsay of one teller."""
TELLERS_MAX: Final = 2
"""Remembered of one contact: what two say is taken for likelier than what one says."""
DIAL_SECONDS: Final = 10.0
"""Before a contact that did not answer is dialed again."""
DIAL_AGAIN_SECONDS: Final = 0.5
"""Before a link that went down is dialed again."""
DIAL_PATIENCE_SECONDS: Final = 2.0
SEEK_SECONDS: Final = 5.0
"""How often one more is dialed by who has links enough: nobody else may know of an island that was cut off."""
SEEK_SILENT_SECONDS: Final = 60.0
"""It is one that nobody has been linked with for so long."""
FORGET_SECONDS: Final = 3600.0
"""A core node that nobody is linked with any more is dialed for so long."""


@dataclass(slots=True)
class _Known:
    contact: Contact
    heard: float
    dial_at: float
    tellers: tuple[bytes, ...] = ()
    sure: bool = False
    elsewhere: Contact | None = None
    """Where others say it is, if that differs."""
    dials: int = 0
    """Since it was last reached."""


class ContactBook:
    """The contacts that the core node `me` knows."""

    def __init__(self, me: bytes, chance: Chance) -> None:
        self._me = me
        self._chance = chance
        self._known: dict[bytes, _Known] = {}
        self._told: Counter[bytes] = Counter()
        self._seek_at = 0.0
        self._wake: tuple[float | None] | None = None
        """When somebody is to be dialed next, as long as nothing has changed: it is asked for at every event."""

    def __len__(self) -> int:
        return len(self._known)

    def contact(self, key: bytes) -> Contact | None:
        known = self._known.get(key)
        return known.contact if known is not None else None

    def hear(self, contact: Contact, teller: bytes, now: float) -> None:
        """`teller` says that it is linked with this one."""
        if contact.key == self._me:
            return
        known = self._known.get(contact.key)
        if known is None:
            self._note(contact, teller, now)
            return
        known.heard = now
        if not known.sure and teller not in known.tellers and len(known.tellers) < TELLERS_MAX:
            known.tellers += (teller,)
        if contact != known.contact:
            known.elsewhere = contact

    def _note(self, contact: Contact, teller: bytes, now: float) -> None:
        if self._told[teller] >= TOLD_MAX and not self._evict(now, frozenset(), teller):
            return
        if len(self._known) >= CONTACTS_MAX and not self._evict(now, frozenset()):
            return
        self._wake = None
        self._told[teller] += 1
        self._known[contact.key] = _Known(contact, now, now + self._patience(contact.key), (teller,))

    def know(self, contact: Contact, now: float, *, linked: Container[bytes] = frozenset()) -> None:
        """It was reached there, or has signed that it is there. `linked`: whom this node is linked with."""
        if contact.key == self._me:
            return
        self._wake = None
        known = self._known.get(contact.key)
        if known is None:
            if len(self._known) >= CONTACTS_MAX and not self._evict(now, linked, sure=True):
                return
            known = self._known[contact.key] = _Known(contact, now, now + self._patience(contact.key))
        elif not known.sure:
            self._told[known.tellers[0]] -= 1
        known.contact, known.heard, known.sure, known.tellers = contact, now, True, ()
        known.elsewhere, known.dials = None, 0

    def _evict(
        self, now: float, linked: Container[bytes], teller: bytes | None = None, *, sure: bool = False
    ) -> bool:
        """Make room: hearsay that was dialed in vain, of whoever tells most; for a sure one also other hearsay, and
        at last the sure one not heard of for longest."""
        hearsay = [key for key, known in self._known.items() if not known.sure]
        if teller is not None:
            hearsay = [key for key in hearsay if self._known[key].tellers[0] == teller]
        if not sure:
            hearsay = [key for key in hearsay if self._known[key].dials]
        if hearsay:
            self.forget(max(hearsay, key=self._doubt))
            return True
        if not sure:
            return False
        left = [key for key in self._known if key not in linked]
        if left:
            self.forget(min(left, key=lambda key: (self._known[key].heard, key)))
        return bool(left)

    def _doubt(self, key: bytes) -> tuple[int, int, bytes]:
        known = self._known[key]
        return self._told[known.tellers[0]], known.dials, key

    def _patience(self, key: bytes) -> float:
        return 0.0 if self._me < key else DIAL_PATIENCE_SECONDS

    def linked(self, key: bytes, now: float) -> None:
        """There is a link to it, whoever opened it."""
        self._wake = None
        if known := self._known.get(key):
            known.heard = now

    def lost(self, key: bytes, now: float) -> None:
        """The link to it went down."""
        self._wake = None
        if known := self._known.get(key):
            known.heard = now
            known.dial_at = now + DIAL_AGAIN_SECONDS * (1 + self._chance.random())

    def forget(self, key: bytes) -> None:
        self._wake = None
        known = self._known.pop(key, None)
        if known is not None and not known.sure:
            self._told[known.tellers[0]] -= 1
            self._told += Counter()  # drops those at zero

    def _forget_silent(self, now: float, linked: Container[bytes]) -> None:
        """Forget those that nobody is linked with any more."""
        for key in [key for key, known in self._known.items() if now - known.heard > FORGET_SECONDS]:
            if key not in linked:
                self.forget(key)

    def due(self, now: float, linked: Container[bytes], room: int) -> list[Contact]:
        """Whom to dial now, at most `room`: sure ones first. All that are due have their next time put off."""
        at = self.deadline(linked)
        if at is None or at > now:
            return []
        self._wake = None
        self._forget_silent(now, linked)
        until = now if room > 0 else now + DIAL_SECONDS / 2  # nobody is dialed: put off many at once
        due = [key for key, known in self._known.items() if known.dial_at <= until and key not in linked]
        due.sort(key=lambda key: not self._known[key].sure)
        for key in due[max(room, 0) :]:
            self._put_off(self._known[key], now)
        return [self.dialed(key, now) for key in due[: max(room, 0)]]

    def dialed(self, key: bytes, now: float) -> Contact:
        """It is about to be dialed: where?"""
        known = self._known[key]
        self._put_off(known, now)
        known.dials += 1
        elsewhere = known.elsewhere if known.dials % 2 == 0 else None
        return elsewhere or known.contact

    def is_seeking(self, now: float) -> bool:
        """Whether it is time to look for one."""
        return now >= self._seek_at

    def seek(self, now: float, linked: Container[bytes]) -> list[Contact]:
        """The one that was reached once and was not heard of for longest, if it is time to look for it."""
        if not self.is_seeking(now):
            return []
        self._seek_at = now + SEEK_SECONDS * (1 + self._chance.random())
        silent = [
            (known.heard, known.dials, key)
            for key, known in self._known.items()
            if known.sure and key not in linked and now - known.heard > SEEK_SILENT_SECONDS
        ]
        if not silent:
            return []
        self._wake = None
        # The one that was dialed least in vain: those that are dead for good do not stand before the others.
        return [self.dialed(min(silent, key=lambda one: (one[1], one[0], one[2]))[2], now)]

    def _put_off(self, known: _Known, now: float) -> None:
        known.dial_at = now + DIAL_SECONDS * (1 + self._chance.random())

    def deadline(self, linked: Container[bytes]) -> float | None:
        """When somebody is to be dialed next."""
        if self._wake is None:
            times = (known.dial_at for key, known in self._known.items() if key not in linked)
            self._wake = (min(times, default=None),)
        return self._wake[0]

    def believed(self) -> int:
        """How many core nodes there are, as far as one can tell: the sure ones, and those that two have told of."""
        return sum(known.sure or len(known.tellers) >= TELLERS_MAX for known in self._known.values())

    def sure(self) -> list[Contact]:
        """In order of key."""
        return [known.contact for _, known in sorted(self._known.items()) if known.sure]
