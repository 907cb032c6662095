"""How a node enters its network: dials first peers until some answer, joins the DHT through them, learns core nodes."""

import os
import random
import time
from collections.abc import Sequence
from typing import Final

import structlog
import trio

from ioc_bootstrap.addresses import Address, BadAddress
from ioc_bootstrap.joining import ENVIRONMENT_NAME, Bootstrapper, DialFailed, Joining, peer_sources
from ioc_bootstrap.network import Network
from ioc_node.config import NodeConfig
from ioc_node.core_links import CoreLinks
from ioc_node.errors import ConfigError, NodeError
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.gossip import is_core
from ioc_node.runtime.links import LinkEndpoint
from ioc_node.runtime.store import PeerMemory
from ioc_wire.errors import WireError

DIAL_SECONDS: Final = 10.0
REJOIN_SECONDS: Final = 10.0
"""A node whose DHT table is empty although it has links tries its peers again after so long."""

_log = structlog.get_logger()


class Entrance:
    """Joins and stays joined. A core node without any bootstrap address is the first of its network."""

    def __init__(
        self,
        config: NodeConfig,
        network: Network,
        *,
        option: Sequence[str],
        links: LinkEndpoint,
        dht: Dht,
        cores: CoreLinks,
        memory: PeerMemory,
    ) -> None:
        """Raises `ConfigError` for an address that cannot be one."""
        self._own = {(host, config.port) for host in (config.host, config.advertise) if host}
        self._links = links
        self._dht = dht
        self._cores = cores
        self.joined_at = 0.0
        """When the first peer was reached (seconds since 1970); 0 while none was."""
        try:
            sources = peer_sources(
                option=option,
                config=config.bootstrap,
                network=network.bootstrap,
                environment=os.environ.get(ENVIRONMENT_NAME, ""),
                memory=memory,
            )
        except BadAddress as error:
            raise ConfigError(str(error)) from None
        chance = random.Random()  # noqa: S311 - jitter of back-off, not a secret
        self._joining = Joining(
            Bootstrapper(sources, chance), self._dial, self._peers, memory=memory, clock=time.time
        )

    def state(self) -> str:
        """One line for `status`."""
        return self._joining.state()

    async def wait_joined(self) -> None:
        """Wait until a peer was reached."""
        await self._joining.joined.wait()

    async def run(self) -> None:
        """Enter, and enter again whenever all peers are gone, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._joining.run)
            nursery.start_soon(self._refill)
            await self._joining.joined.wait()
            self.joined_at = time.time()
            _log.info("joined", servers=len(self._dht.contacts()), links=len(self._links.links))

    def _peers(self) -> int:
        return len(self._links.links)

    async def _dial(self, address: Address) -> bytes:
        target = (address.host, address.port)
        if target in self._own:
            raise DialFailed("this is the node's own address")
        try:
            with trio.fail_after(DIAL_SECONDS):
                link = await self._links.connect(target)
                await self._dht.join([target])
        except (WireError, NodeError) as error:
            raise DialFailed(str(error)) from None
        except trio.TooSlowError:
            raise DialFailed(f"no answer within {DIAL_SECONDS:.0f} s") from None
        if is_core(link):
            await self._cores.learn(link)
        return link.peer.key

    async def _refill(self) -> None:
        """Join the DHT through linked peers while its table is empty: the first datagrams may have been lost."""
        while True:
            await trio.sleep(REJOIN_SECONDS)
            if self._dht.contacts():
                continue
            targets = [link.peer.endpoint for link in self._links.links.values() if link.peer.endpoint]
            if targets:
                try:
                    await self._dht.join(targets)
                except (WireError, NodeError) as error:
                    _log.info("rejoin_failed", error=str(error))
