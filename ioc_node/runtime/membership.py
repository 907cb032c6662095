"""A core node's membership over its links: who of the core nodes is alive, told to the gossip that dials them.

Messages travel over the links that gossip keeps. Where there is none to a member that has to be probed, one is opened,
a few at a time: whoever cannot be reached so does not answer, which is what the machine wants to know.
"""

import random
import time
from typing import Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core import membership_events as ev
from ioc_node.core.gossip_events import ContactGone, ContactKnown
from ioc_node.core.membership import Membership
from ioc_node.core.membership_events import Member, Settings
from ioc_node.core.trust import Trust
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.gossip import CoreGossip, contact_of, is_core, name_of
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_wire import membership as wire
from ioc_wire.codec import Message
from ioc_wire.errors import WireError
from ioc_wire.market import Contact
from ioc_wire.signed import Signed

DIALS_MAX: Final = 16
"""Links being opened together for a probe; more are not, and count as silence."""
DIAL_SECONDS: Final = 2.0

log = structlog.get_logger()


class CoreMembership:
    """Drives one `Membership` machine, made when `run` knows where links are taken."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        chain: tuple[Signed, ...],
        trust: Trust,
        gossip: CoreGossip,
        *,
        settings: Settings = ev.OURS,
    ) -> None:
        self._key, self._chain, self._trust = key, chain, trust
        self._gossip = gossip
        self._settings = settings
        self._machine: Membership | None = None
        self._links: LinkEndpoint | None = None
        self._nursery: trio.Nursery | None = None
        self._dialing: set[bytes] = set()
        self._wake = trio.Event()

    @property
    def members(self) -> tuple[Member, ...]:
        """All other core nodes that are known, those that are gone too."""
        return self._machine.members if self._machine is not None else ()

    def register(self, handlers: Handlers) -> None:
        """Take what other core nodes tell; before links are opened."""
        for kind in (
            wire.Probe,
            wire.AskProbe,
            wire.ProbeAnswered,
            wire.CompareMembers,
            wire.MembersVector,
            wire.MembersTold,
        ):
            handlers.serve_notify(kind, self._take)

    def key_revoked(self) -> None:
        """`Trust` took in a revocation: whoever rests on it is no member."""
        self._feed(ev.KeyRevoked())

    async def run(self, links: LinkEndpoint, contact: Contact) -> None:
        """Probe and be probed until cancelled, then say goodbye. `contact` is where this node takes links."""
        await self._gossip.running.wait()
        self._machine = Membership(
            self._key,
            contact,
            self._chain,
            self._trust,
            random.SystemRandom(),
            unix_offset=time.time() - trio.current_time(),
            settings=self._settings,
        )
        async with open_background() as nursery:
            self._links, self._nursery = links, nursery
            links.on_link_up(self._link_up)
            links.on_link_down(self._link_down)
            for link in list(links.links.values()):
                self._link_up(link)
            try:
                await self._tick(self._machine)
            finally:
                self._nursery = None
                self._feed(ev.Leave())

    async def _tick(self, machine: Membership) -> None:
        while True:
            self._wake = trio.Event()
            with trio.move_on_at(machine.deadline()):
                await self._wake.wait()
            if machine.deadline() <= trio.current_time():
                self._feed(ev.Tick())
            await trio.lowlevel.checkpoint()

    # -- the machine

    def _link_up(self, link: Link) -> None:
        if is_core(link):
            self._feed(ev.LinkUp(link.peer.key, contact_of(link)))

    def _link_down(self, link: Link) -> None:
        if is_core(link):
            self._feed(ev.LinkDown(link.peer.key))

    def _take(self, link: Link, message: Message) -> None:
        if is_core(link):
            self._feed(ev.Received(link.peer.key, message))

    def _feed(self, event: ev.Event) -> None:
        if self._machine is None:
            return
        for effect in self._machine.handle(event, now=trio.current_time()):
            match effect:
                case ev.Send(contact, message):
                    self._send(contact, message)
                case ev.MemberCame(contact):
                    log.info("member_came", member=name_of(contact.key))
                    self._gossip.feed(ContactKnown(contact))
                case ev.MemberSuspected(key):
                    log.debug("member_suspected", member=name_of(key))
                case ev.MemberWent(key):
                    log.info("member_went", member=name_of(key))
                    self._gossip.feed(ContactGone(key))
                case ev.Refused(peer, what, error):
                    log.info("member_refused", what=what, told_by=name_of(peer), error=str(error))
        self._wake.set()

    def _send(self, contact: Contact, message: Message) -> None:
        assert self._links is not None
        link = self._links.link(contact.key)
        if link is not None:
            link.notify_nowait(message)
        elif self._nursery is None or contact.key in self._dialing or len(self._dialing) >= DIALS_MAX:
            return
        else:
            self._dialing.add(contact.key)
            self._nursery.start_soon(self._dial, self._links, contact, message)

    async def _dial(self, links: LinkEndpoint, contact: Contact, message: Message) -> None:
        try:
            with trio.move_on_after(DIAL_SECONDS):
                link = await links.connect((contact.host, contact.port), contact.key)
                link.notify_nowait(message)
        except (WireError, PeerUnreachable) as error:
            log.debug("member_unreachable", member=name_of(contact.key), error=str(error))
        finally:
            self._dialing.discard(contact.key)
