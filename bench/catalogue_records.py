"""A synthetic population of providers with signed catalogues, for `bench.catalogue`: the same bytes for the same seed.

1,020,000 identifiers of 136 providers are the scale of the report that the project answers. Hosts are drawn from the
inventory of the data set gpu-cluster-2023 (`HOSTS`: how many nodes have which cores, memory and GPUs). The rest is
plausible and invented: cities (GB/T 2260), industries, classes, prices, sizes of catalogues (a few are large, most are
small), and the figures of the two GPU models (`g2`, `g3`) that the data set does not name. One identifier in 250 is a
pool (an aggregate), the others are hosts.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_wire import limits
from ioc_wire.authority import Delegation, Role
from ioc_wire.gossip import HeadNews
from ioc_wire.market import Contact
from ioc_wire.records import (
    Accelerator,
    Cpu,
    Endpoint,
    Network,
    Place,
    Price,
    ResourceRecord,
    StatusBatch,
    StatusRow,
)
from ioc_wire.signed import Signed, public_bytes, sign

RECORDS: Final = 1_020_000
PROVIDERS: Final = 136
SEED: Final = 4
SLOTS_MAX: Final = 60_000
"""Of one provider; the protocol's own bound is a little higher."""
POOL_EVERY: Final = 250
SKEW: Final = 0.8
"""Provider number n has a share like (n + SKEW_OFFSET) ** -SKEW."""
SKEW_OFFSET: Final = 3


class HostKind(NamedTuple):
    """`nodes` nodes of the inventory are like this."""

    nodes: int
    cores: int
    memory_mib: int
    gpus: int
    model: str


HOSTS: Final = tuple(
    HostKind(*kind)
    for kind in (
        (549, 96, 393216, 8, "g2"), (387, 104, 524288, 2, "t4"), (129, 32, 262144, 0, ""),
        (107, 16, 122880, 2, "p100"), (59, 96, 524288, 0, ""), (39, 128, 786432, 8, "g3"),
        (30, 96, 393216, 0, ""), (28, 32, 131072, 4, "v100m16"), (23, 32, 131072, 0, ""),
        (22, 64, 262144, 2, "p100"), (22, 64, 524288, 0, ""), (21, 96, 786432, 8, "v100m32"),
        (20, 104, 524288, 0, ""), (19, 8, 32768, 1, "v100m16"), (17, 96, 393216, 4, "t4"),
        (10, 32, 65536, 0, ""), (9, 48, 376832, 4, "v100m32"), (8, 64, 262144, 0, ""),
        (7, 64, 262144, 8, "v100m16"), (4, 64, 131072, 0, ""), (3, 104, 786432, 0, ""),
        (3, 8, 61440, 1, "p100"), (2, 8, 61440, 2, "p100"), (2, 128, 1048576, 1, "a10"),
        (1, 82, 344064, 8, "v100m16"), (1, 104, 196608, 0, ""), (1, 96, 786432, 0, ""),
    )
)  # fmt: skip
"""The 1,523 nodes of openb_node_list_all_node.csv of gpu-cluster-2023."""

_GIB: Final = 1024
GPUS: Final = {
    "g2": (24 * _GIB, (("bf16", 125_000), ("fp16", 125_000), ("fp32", 31_200)), 250_000, 900_000),
    "t4": (16 * _GIB, (("fp16", 65_000), ("fp32", 8_100)), 130_000, 350_000),
    "p100": (16 * _GIB, (("fp16", 18_700), ("fp32", 9_300), ("fp64", 4_700)), 0, 400_000),
    "g3": (80 * _GIB, (("bf16", 312_000), ("fp16", 312_000), ("fp32", 19_500)), 624_000, 2_400_000),
    "v100m16": (16 * _GIB, (("fp16", 125_000), ("fp32", 15_700), ("fp64", 7_800)), 0, 1_100_000),
    "v100m32": (32 * _GIB, (("fp16", 125_000), ("fp32", 15_700), ("fp64", 7_800)), 0, 1_300_000),
    "a10": (24 * _GIB, (("bf16", 125_000), ("fp16", 125_000), ("fp32", 31_200)), 250_000, 950_000),
}
"""Memory in MiB, 10^9 operations per second by precision, int8 likewise, and a plausible price per hour."""
CITIES: Final = (
    "1100", "1200", "1301", "1306", "1401", "1501", "1509", "2101", "2102", "2201", "2301", "3100", "3201", "3202",
    "3205", "3301", "3302", "3401", "3402", "3501", "3502", "3601", "3701", "3702", "4101", "4201", "4301", "4401",
    "4402", "4403", "4501", "4601", "5000", "5101", "5201", "5301", "6101", "6201", "6210", "6301", "6401", "6405",
    "6501",
)  # fmt: skip
"""GB/T 2260, four digits."""
INDUSTRIES: Final = ("ifin", "imed", "iedu", "imet", "iauto")
INDUSTRY_SHARE: Final = 0.2
CPUS: Final = {
    True: ("Xeon Platinum 8163", "Xeon Platinum 8269CY", "EPYC 7763"),
    False: ("Kunpeng 920", "Yitian 710"),
}
"""By whether it is x86."""
RUNTIMES: Final = (("process", "wasm"), ("wasm",), ("oci", "process", "wasm"), ("oci",))
SERVICES: Final = ((), (), ("storage",), ("inference",), ("inference", "storage"), ("training",))


@dataclass(frozen=True)
class Population:
    """What is made. `issued` (seconds since 1970) stands in every record and head; they are good for 48 hours."""

    issued: int
    records: int = RECORDS
    providers: int = PROVIDERS
    seed: int = SEED

    def rng(self, *names: object) -> random.Random:
        """The same numbers for the same names and seed, whoever asks."""
        return random.Random("/".join(map(str, (self.seed, *names))))

    def key(self, *names: object) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.rng("key", *names).randbytes(32))

    @cached_property
    def root(self) -> Ed25519PrivateKey:
        """The key that the network rests on."""
        return self.key("root")

    def grant(
        self, issuer: Ed25519PrivateKey, subject: Ed25519PrivateKey, prefix: str, *roles: Role
    ) -> Signed:
        """A delegation for ninety days."""
        ends = self.issued + 90 * 86400
        return sign(issuer, Delegation(public_bytes(subject), prefix, roles, self.issued - 3600, ends))

    @cached_property
    def sizes(self) -> list[int]:
        """How many identifiers each provider has: some large, most small, together `records`."""
        shares = [(number + SKEW_OFFSET) ** -SKEW for number in range(self.providers)]
        total = sum(shares)
        sizes = [min(SLOTS_MAX, max(1, int(self.records * share / total))) for share in shares]
        missing = self.records - sum(sizes)
        for number in itertools.cycle(range(self.providers)):
            if not missing:
                return sizes
            step = min(missing, 64) if missing > 0 else -1
            if 1 <= sizes[number] + step <= SLOTS_MAX:
                sizes[number] += step
                missing -= step
        raise AssertionError("unreachable")

    def provider(self, number: int) -> "Provider":
        return Provider(self, number, self.sizes[number])


@dataclass(frozen=True)
class Provider:
    """One provider: who it is, and what its `size` identifiers say."""

    population: Population
    number: int
    size: int

    @cached_property
    def key(self) -> Ed25519PrivateKey:
        return self.population.key("provider", self.number)

    @cached_property
    def name(self) -> bytes:
        """Its public key."""
        return public_bytes(self.key)

    @cached_property
    def cities(self) -> tuple[str, ...]:
        """Where it stands, the city of its regional node first."""
        return tuple(self.population.rng("cities", self.number).sample(CITIES, 1 + self.number % 4))

    @cached_property
    def above(self) -> str:
        """The prefix of the regional or industry node that admitted it."""
        rng = self.population.rng("above", self.number)
        node = rng.choice(INDUSTRIES) if rng.random() < INDUSTRY_SHARE else f"r{self.cities[0]}"
        return f"cn.{node}"

    @property
    def prefix(self) -> str:
        return f"{self.above}.{20000 + self.number:05d}"

    @cached_property
    def chain(self) -> tuple[Signed, ...]:
        """Root, then the regional or industry node."""
        population, above = self.population, self.population.key(self.above)
        role: Role = "regional" if ".r" in self.above else "industry"
        return (
            population.grant(population.root, above, self.above, role),
            population.grant(above, self.key, self.prefix, "provider"),
        )

    @property
    def contact(self) -> Contact:
        return Contact(self.name, f"10.{self.number // 250}.{self.number % 250}.1", 7400)

    def news(self, head: Signed) -> HeadNews:
        return HeadNews(head, self.chain, self.contact)

    def record(self, slot: int, *, version: int = 1) -> ResourceRecord:
        """What is said of a slot; another `version` differs in its price."""
        rng = self.population.rng("record", self.number, slot)
        kind = rng.choices(HOSTS, cum_weights=_HOST_WEIGHTS)[0]
        city = rng.choice((*self.cities, self.cities[0]))
        zone = f"az{rng.randint(1, 3)}"
        pool = slot % POOL_EVERY == 0
        path = f"{_class_of(kind, rng)}/{city}/{zone}/{'p' if pool else 'h'}{slot:05x}"
        return self._described(kind, rng, f"ioc:{self.prefix}/{path}", Place("cn", city, zone), pool, version)

    def _described(
        self, kind: HostKind, rng: random.Random, cid: str, place: Place, pool: bool, version: int
    ) -> ResourceRecord:
        issued = self.population.issued
        level = rng.lognormvariate(0, 0.35) * (1 + 0.01 * (version - 1))
        host = f"10.{self.number // 250}.{self.number % 250}.{rng.randint(2, 250)}"
        hosts = rng.randint(2, 64) if pool else 1
        return ResourceRecord(
            cid=cid,
            version=version,
            issued=issued,
            expires=issued + limits.RECORD_SECONDS_MAX,
            type="pool" if pool else "node",
            place=place,
            cpu=_cpu(kind.cores * hosts, rng),
            memory_mib=kind.memory_mib * hosts,
            storage_mib=rng.choice((500_000, 1_000_000, 2_000_000, 8_000_000)) * hosts,
            accelerators=_accelerators(kind, hosts),
            network=Network(rng.choice((10_000, 25_000, 100_000, 200_000)), ("shm",)),
            runtimes=rng.choice(RUNTIMES),
            services=rng.choice(SERVICES),
            prices=_prices(kind, level),
            labels=(("rack", f"r{rng.randint(1, 400)}"),),
            endpoints=(Endpoint(host, 7400),),
            task_seconds_max=rng.choice((3600, 86400, 604_800)),
        )

    def records(self) -> Iterator[Signed]:
        """Every identifier's signed record, in order of slot."""
        return (sign(self.key, self.record(slot)) for slot in range(self.size))

    @property
    def parts(self) -> range:
        """The parts of its slots; each has a status batch of its own."""
        return range(-(-self.size // limits.STATUS_ROWS_MAX))

    def status_rows(self, part: int, *, turn: int = 0) -> tuple[StatusRow, ...]:
        """What is free in the slots of a part at `turn`: each turn is another draw."""
        rng = self.population.rng("status", self.number, part, turn)
        first = part * limits.STATUS_ROWS_MAX
        slots = range(first, min(first + limits.STATUS_ROWS_MAX, self.size))
        return tuple(self._status(slot, rng) for slot in slots)

    def _status(self, slot: int, rng: random.Random) -> StatusRow:
        kind = self.population.rng("record", self.number, slot).choices(HOSTS, cum_weights=_HOST_WEIGHTS)[0]
        free = rng.random()
        devices = (rng.randrange(4 * kind.gpus + 1) * 250,) if kind.gpus else ()
        cores, memory = int(kind.cores * free) * 1000, int(kind.memory_mib * free)
        return StatusRow(slot, cores, memory, devices, queued=int(rng.expovariate(1)))

    def status(self, rows: Sequence[StatusRow], part: int, *, seq: int, unix: int, seconds: int) -> Signed:
        """A signed batch of the `rows` of a part, good for `seconds` from `unix` on."""
        return sign(self.key, StatusBatch(seq, unix, unix + seconds, tuple(rows), part))


_HOST_WEIGHTS: Final = list(itertools.accumulate(kind.nodes for kind in HOSTS))


def _class_of(kind: HostKind, rng: random.Random) -> str:
    weights = (5, 85, 8, 2) if kind.gpus else (70, 0, 15, 15)
    return rng.choices(("gen", "ai", "sup", "edge"), weights)[0]


def _cpu(cores: int, rng: random.Random) -> Cpu:
    x86 = rng.random() < 0.9
    return Cpu("x86_64" if x86 else "aarch64", rng.choice(CPUS[x86]), cores, cores)


def _accelerators(kind: HostKind, hosts: int) -> tuple[Accelerator, ...]:
    if not kind.gpus:
        return ()
    memory, peak, int8, _ = GPUS[kind.model]
    sharing: Literal["shared", "exclusive"] = "shared" if kind.model in ("t4", "p100") else "exclusive"
    return (Accelerator("gpu", "nvidia", kind.model, kind.gpus * hosts, memory, sharing, peak, int8),)


def _prices(kind: HostKind, level: float) -> tuple[Price, ...]:
    prices = (Price("core-hour", int(120_000 * level)), Price("gib-hour", int(15_000 * level)))
    if not kind.gpus:
        return prices
    return (*prices, Price("accelerator-hour", int(GPUS[kind.model][3] * level)))
