"""A core node's membership over its links: who of the core nodes is alive, told to the gossip that dials them.

Messages travel over the links that gossip keeps. Where there is none to a member that has to be probed, one is opened,
a few at a time: whoever cannot be reached so does not answer, which is what the machine wants to know. Among more core
nodes than a full mesh holds such a link is closed again once nothing was told over it for a while; to both ends that
goodbye is no sign of a failure.
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
PROBE_LINK_SECONDS: Final = 60.0
"""A link that was opened for a probe goes when membership said nothing over it for so long."""

PROBE_OVER: Final = "it was opened for a probe, and nothing needs it"

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
        probe_link_seconds: float = PROBE_LINK_SECONDS,
    ) -> None:
        self._key, self._chain, self._trust = key, chain, trust
        self._gossip = gossip
        self._settings = settings
        self._machine: Membership | None = None
        self._links: LinkEndpoint | None = None
        self._nursery: trio.Nursery | None = None
        self._dialing: set[bytes] = set()
        self._probe_link_seconds = probe_link_seconds
        self._probe_links: dict[Link, float] = {}
        """Those opened here, and when they were last of use; as many as links are open at most."""
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
            nursery.start_soon(self._close_spare_links)
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
        if is_core(link) and not (link.said_goodbye and self._gossip.machine.wide):
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
            if link in self._probe_links:
                self._probe_links[link] = trio.current_time()
        elif self._nursery is None or contact.key in self._dialing or len(self._dialing) >= DIALS_MAX:
            return
        else:
            self._dialing.add(contact.key)
            self._nursery.start_soon(self._dial, self._links, contact, message)

    async def _dial(self, links: LinkEndpoint, contact: Contact, message: Message) -> None:
        began = trio.current_time()
        try:
            with trio.move_on_after(DIAL_SECONDS):
                link = await links.connect((contact.host, contact.port), contact.key)
                link.notify_nowait(message)
                if link.dialed and link.opened_at >= began:
                    self._probe_links[link] = trio.current_time()
        except (WireError, PeerUnreachable) as error:
            log.debug("member_unreachable", member=name_of(contact.key), error=str(error))
        finally:
            self._dialing.discard(contact.key)

    async def _close_spare_links(self) -> None:
        while True:
            await trio.sleep(self._probe_link_seconds / 4)
            before = trio.current_time() - self._probe_link_seconds
            gossip = self._gossip.machine
            neighbours, spare = set(gossip.neighbours), gossip.links_to_spare
            for link, used_at in list(self._probe_links.items()):
                if link.closed.is_set():
                    del self._probe_links[link]
                elif used_at < before and spare > 0 and not link.streams and link.peer.key not in neighbours:
                    del self._probe_links[link]
                    spare -= 1
                    link.close_nowait(PROBE_OVER)
