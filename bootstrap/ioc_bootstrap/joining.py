"""Find a way into a network: where first peers come from, in which order and how often each is tried.

Sources are asked in order: option, configuration, network file, environment, remembered peers. Each address keeps a
back-off of its own, so a dead one is tried ever more rarely and never keeps a live one waiting. It never gives up:
while no peer answers it keeps trying, says so in `state`, and joins by itself once one returns.

`Bootstrapper` decides and has no clock; `join` is the loop that dials.
"""

import math
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from ioc_bootstrap.addresses import Address, BadAddress, parse_address

ENVIRONMENT_NAME: Final = "IOC_BOOTSTRAP"
ADDRESSES_MAX: Final = 512
PAUSE_SECONDS_MIN: Final = 0.5
PAUSE_SECONDS_MAX: Final = 60.0
PARALLEL_DIALS: Final = 4
PEERS_WANTED: Final = 3
CHECK_SECONDS: Final = 5.0
"""How often a node that has joined looks whether it still has a peer."""


@dataclass(frozen=True, slots=True)
class PeerSource:
    """Addresses and where they come from, as `status` names it."""

    name: str
    addresses: tuple[Address, ...]


class PeerMemory(Protocol):
    """Where known peers survive a restart. Bounded by whoever implements it."""

    def load_peers(self) -> list[tuple[str, bytes]]: ...

    def save_peer(self, address: str, key: bytes, seen: int) -> None: ...


def peer_sources(
    *,
    option: Sequence[str] = (),
    config: Sequence[str] = (),
    network: Sequence[Address] = (),
    environment: str = "",
    memory: PeerMemory | None = None,
) -> list[PeerSource]:
    """All sources in their order. Raises `BadAddress` naming the source; remembered nonsense is left out."""
    remembered = []
    for text, _ in memory.load_peers() if memory is not None else ():
        try:
            remembered.append(parse_address(text))
        except BadAddress:
            continue  # only a cache: the others serve
    return [
        PeerSource("option", _parse_all("--bootstrap", option)),
        PeerSource("config", _parse_all("bootstrap in config.toml", config)),
        PeerSource("network file", tuple(network)),
        PeerSource(
            "environment",
            _parse_all(ENVIRONMENT_NAME, [text for text in environment.split(",") if text.strip()]),
        ),
        PeerSource("remembered", tuple(remembered)),
    ]


def _parse_all(where: str, texts: Iterable[str]) -> tuple[Address, ...]:
    try:
        return tuple(parse_address(text) for text in texts)
    except BadAddress as error:
        raise BadAddress(f"{where}: {error}") from None


@dataclass(slots=True)
class _Target:
    address: Address
    source: str
    failures: int = 0
    due: float = 0.0
    dialing: bool = False
    up: bool = False
    reason: str = ""


class Bootstrapper:
    """Which address to dial next. `now` is seconds of any one clock; nothing is dialed here."""

    def __init__(self, sources: Sequence[PeerSource], rng: random.Random) -> None:
        self._rng = rng
        self._targets: dict[Address, _Target] = {}
        for source in sources:
            for address in source.addresses[: ADDRESSES_MAX - len(self._targets)]:
                self._targets.setdefault(address, _Target(address, source.name))

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Every address in the order of the first attempt."""
        return tuple(self._targets)

    @property
    def reached(self) -> int:
        """Addresses at which a peer was reached and not lost since."""
        return sum(target.up for target in self._targets.values())

    def next_due(self, now: float) -> Address | None:
        """The next address to dial, marked as being dialed; None while none is due."""
        for target in self._targets.values():
            if not target.up and not target.dialing and target.due <= now:
                target.dialing = True
                return target.address
        return None

    def deadline(self) -> float:
        """When the next address is due; infinite while none waits."""
        waiting = [target.due for target in self._targets.values() if not target.up and not target.dialing]
        return min(waiting, default=math.inf)

    def succeeded(self, address: Address) -> None:
        target = self._targets[address]
        target.dialing, target.up, target.failures, target.reason = False, True, 0, ""

    def failed(self, address: Address, reason: str, now: float) -> None:
        """A dial failed: the address is due again after a pause that doubles, with jitter."""
        target = self._targets[address]
        pause_seconds = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN * 2 ** min(target.failures, 16))
        target.dialing, target.up, target.reason = False, False, reason
        target.failures += 1
        target.due = now + pause_seconds * self._rng.uniform(0.5, 1.0)

    def lost(self, now: float) -> None:
        """This node has no peer any more: every address is due again, at once, from the shortest pause."""
        for target in self._targets.values():
            if not target.dialing:
                target.up, target.failures, target.due = False, 0, now

    def state(self, now: float) -> str:
        """One line for `status`."""
        count = len(self._targets)
        if not count:
            return "bootstrap: no peer is known; waiting to be contacted"
        if self.reached:
            return f"bootstrap: joined, {self.reached} of {count} peers reached"
        tried = [target for target in self._targets.values() if target.failures]
        if len(tried) < count:
            return f"bootstrap: trying {count} {_peers(count)}, {len(tried)} did not answer so far"
        last = tried[0].reason
        down = "it is down" if count == 1 else "all down"
        wait_seconds = max(0, math.ceil(self.deadline() - now)) if self.deadline() < math.inf else 0
        again = f"next try in {wait_seconds} s" if wait_seconds else "trying again now"
        return f"bootstrap: {count} {_peers(count)} tried, {down}, {again} ({last})"


def _peers(count: int) -> str:
    return "peer" if count == 1 else "peers"


class DialFailed(Exception):
    """What `dial` raises when a peer cannot be reached; `str()` says why."""


class Joining:
    """The loop around a `Bootstrapper`: dials until the node has peers, and again whenever it has none."""

    def __init__(
        self,
        bootstrapper: Bootstrapper,
        dial: Callable[[Address], Awaitable[bytes]],
        peers: Callable[[], int],
        *,
        memory: PeerMemory | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`dial` connects to an address and returns the peer's key, or raises `DialFailed`. `peers` is how many
        peers the node has now, by whatever way; `clock` gives seconds since 1970 for `memory`."""
        self.joined = trio.Event()
        """Set once the node has had a peer."""
        self._bootstrapper = bootstrapper
        self._dial = dial
        self._peers = peers
        self._memory = memory
        self._clock = clock
        self._changed = trio.lowlevel.ParkingLot()

    def state(self) -> str:
        """One line for `status`."""
        if self._peers() and not self._bootstrapper.reached:
            return f"bootstrap: joined, {self._peers()} {_peers(self._peers())} connected"
        return self._bootstrapper.state(trio.current_time())

    async def run(self) -> None:
        """Join, and stay joined, until cancelled."""
        limit = trio.CapacityLimiter(PARALLEL_DIALS)
        async with trio.open_nursery() as nursery:
            while True:
                await self._wait_lonely()
                await self._dial_due(nursery, limit)

    async def _wait_lonely(self) -> None:
        """Return while more peers are wanted; once the node had some, only when it has none."""
        while self._peers() and (
            self._bootstrapper.reached >= PEERS_WANTED or self._bootstrapper.deadline() > trio.current_time()
        ):
            self.joined.set()
            await trio.sleep(CHECK_SECONDS)
        if self.joined.is_set() and not self._peers() and self._bootstrapper.reached:
            self._bootstrapper.lost(trio.current_time())

    async def _dial_due(self, nursery: trio.Nursery, limit: trio.CapacityLimiter) -> None:
        now = trio.current_time()
        while limit.available_tokens > 0 and (address := self._bootstrapper.next_due(now)) is not None:
            limit.acquire_on_behalf_of_nowait(address)
            nursery.start_soon(self._try, address, limit)
        until = now + CHECK_SECONDS
        if limit.available_tokens > 0:
            until = min(until, self._bootstrapper.deadline())
        with trio.move_on_at(until):
            await self._changed.park()

    async def _try(self, address: Address, limit: trio.CapacityLimiter) -> None:
        try:
            key = await self._dial(address)
        except DialFailed as error:
            self._bootstrapper.failed(address, str(error), trio.current_time())
        else:
            self._bootstrapper.succeeded(address)
            self.joined.set()
            if self._memory is not None and self._clock is not None:
                self._memory.save_peer(str(address), key, int(self._clock()))
        finally:
            limit.release_on_behalf_of(address)
            self._changed.unpark_all()
