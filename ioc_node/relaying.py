"""What a core node does for peers that cannot reach each other: it passes on circuits and datagrams, and meters both.

What it passes on it cannot read. Bytes are counted by day, caller and target, in the node's database, so that whoever
runs the core node can say for whom it works.
"""

import datetime
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog
import trio

from ioc_node import api
from ioc_node.bulk.relay import DatagramRelay, Session
from ioc_node.bulk.udp import UdpSocket, open_udp
from ioc_node.config import NodeConfig
from ioc_node.errors import NodeError, PortInUse
from ioc_node.identity import advertised_host
from ioc_node.runtime.circuits import Circuits
from ioc_node.runtime.link_handlers import Handlers, SendItem
from ioc_node.runtime.links import Link
from ioc_node.runtime.store import Store
from ioc_node.runtime.throttle import Throttle
from ioc_wire.errors import NotFound, Unserved
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.relay import OpenRelay, RelayMetered, RelayOpened

METER_SECONDS: Final = 1.0
SAVE_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 60.0
"""A session through which nothing went for so long is closed."""
KEPT_DAYS: Final = 400
PAIRS_MAX: Final = 4096
"""Pairs of peers counted apart between two saves; the bytes of others are counted for nobody."""

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS relayed (day TEXT NOT NULL, caller BLOB NOT NULL, target BLOB NOT NULL,
         circuit_bytes INTEGER NOT NULL, datagram_bytes INTEGER NOT NULL,
         PRIMARY KEY (day, caller, target)) WITHOUT ROWID""",
)
_log = structlog.get_logger()


class Relaying:
    """The relays of one core node. `host` and the port are told to peers."""

    def __init__(
        self,
        config: NodeConfig,
        circuits: Circuits,
        store: Store,
        throttle: Throttle,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """What `throttle` has no room for is not passed on. Raises `PortInUse` where the configured port is taken."""
        store.require("relayed", _SCHEMA)
        self._store = store
        self._clock = clock
        self._circuits = circuits
        self._udp = _open_port(config)
        self.datagrams = DatagramRelay(
            self._udp,
            advertised_host(config),
            bytes_per_second=config.relay.mib_per_second_max * 1024 * 1024,
            sessions_max=config.relay.sessions_max,
            admits=lambda to, size: throttle.admits(to, "bulk", size),
        )
        self._circuit_bytes: Counter[tuple[bytes, bytes]] = Counter()
        self._datagram_bytes: Counter[tuple[bytes, bytes]] = Counter()
        circuits.meter = self._meter_circuit

    def register(self, handlers: Handlers) -> None:
        """Answer peers that want a relay; before links are opened."""
        handlers.serve_stream(OpenRelay, self._on_open)

    async def run(self) -> None:
        """Pass on and count until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.datagrams.serve)
            while True:
                await trio.sleep(SAVE_SECONDS)
                self._save()

    def close(self) -> None:
        """Give the port back, and write down what was counted."""
        self._udp.close()
        self._save()

    def told(self) -> api.Relayed:
        """What was passed on: the newest days first, the most bytes first."""
        self._save()
        found = self._store.fetch(
            "SELECT day, caller, target, circuit_bytes, datagram_bytes FROM relayed "
            "ORDER BY day DESC, circuit_bytes + datagram_bytes DESC LIMIT ?",
            (api.ROWS_MAX,),
        )
        rows = tuple(
            api.RelayedRow(
                day, format_node_id(node_id_of(caller)), format_node_id(node_id_of(target)), *sizes
            )
            for day, caller, target, *sizes in found
        )
        relay = self.datagrams
        return api.Relayed(self._circuits.passed_on, relay.sessions, relay.port, rows)

    async def _on_open(self, link: Link, message: OpenRelay, send: SendItem) -> None:
        caller, target = link.peer.key, message.target
        if self._circuits.links.link(target) is None:
            raise NotFound(f"a link from here to {format_node_id(node_id_of(target))[:11]}")
        if target == caller:
            raise Unserved("a relay to oneself")
        session = self.datagrams.open_session(caller, target)
        try:
            tokens = session.caller.token, session.target.token
            await send(RelayOpened(self.datagrams.host, self.datagrams.port, *tokens))
            await self._meter(session, send)
        finally:
            self.datagrams.close_session(session)

    async def _meter(self, session: Session, send: SendItem) -> None:
        told = (0, 0)
        changed_at = trio.current_time()
        try:
            while trio.current_time() - changed_at < IDLE_SECONDS:
                await trio.sleep(METER_SECONDS)
                now = (session.caller.bytes_sent, session.target.bytes_sent)
                if now != told:
                    self._count(
                        self._datagram_bytes, session.caller.key, session.target.key, sum(now) - sum(told)
                    )
                    told, changed_at = now, trio.current_time()
                    await send(RelayMetered(*now))
        finally:
            left = session.caller.bytes_sent + session.target.bytes_sent - sum(told)
            self._count(self._datagram_bytes, session.caller.key, session.target.key, left)

    def _meter_circuit(self, caller: bytes, target: bytes, size: int) -> None:
        self._count(self._circuit_bytes, caller, target, size)

    def _count(self, counter: Counter[tuple[bytes, bytes]], caller: bytes, target: bytes, size: int) -> None:
        pair = (caller, target)
        if size and (pair in counter or len(counter) < PAIRS_MAX):
            counter[pair] += size

    def _save(self) -> None:
        pairs = self._circuit_bytes.keys() | self._datagram_bytes.keys()
        if not pairs:
            return
        today = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).date()
        oldest = today - datetime.timedelta(days=KEPT_DAYS)
        try:
            with self._store.transaction():
                self._store.execute("DELETE FROM relayed WHERE day < ?", (oldest.isoformat(),))
                for pair in pairs:
                    self._store.execute(
                        "INSERT INTO relayed VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                        "circuit_bytes = circuit_bytes + excluded.circuit_bytes, "
                        "datagram_bytes = datagram_bytes + excluded.datagram_bytes",
                        (today.isoformat(), *pair, self._circuit_bytes[pair], self._datagram_bytes[pair]),
                    )
        except NodeError as error:  # a full disk: the figures wait here
            _log.warning("relayed_not_saved", error=str(error))
            return
        self._circuit_bytes.clear()
        self._datagram_bytes.clear()


def _open_port(config: NodeConfig) -> UdpSocket:
    """The configured UDP port, or `port + 2`, or where that is taken any."""
    if config.relay.port is not None:
        return open_udp(config.host, config.relay.port)
    try:
        return open_udp(config.host, config.port + 2)
    except PortInUse as error:
        udp = open_udp(config.host, 0)
        _log.warning("relay_on_another_port", port=udp.port, reason=str(error))
        return udp
