"""What a simulation is asked to do, and the command that asks for it again."""

import shlex
from dataclasses import dataclass, fields
from typing import Final, Literal, get_args

from ioc_node.errors import UsageError

Kind = Literal["silent", "lying", "inventing", "stale", "forging", "flooding", "mixed"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MIXED: Final[tuple[Kind, ...]] = ("silent", "lying", "stale", "forging")
"""What `mixed` deals out, one after the other."""
Start = Literal["warm", "joined"]
LATENCY_DEFAULT: Final = "constant:50"
NODES_MAX: Final = 100_000
TRIALS_MAX: Final = 10_000_000


@dataclass(frozen=True)
class SimOptions:
    """One run. Shares are between 0 and 1, `skew` is seconds, `latency` is a file or `constant[:ms]` (round trip)."""

    nodes: int = 200
    clients: int = 0
    seed: int = 1
    churn: float = 0.0
    malicious: float = 0.0
    kind: Kind = "mixed"
    sybils: int = 0
    groups: int = 1
    latency: str = LATENCY_DEFAULT
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    partition: float = 0.0
    skew: float = 0.0
    trials: int = 200
    records: int = 50
    updates: float = 0.25
    answers: int = 1
    start: Start = "warm"
    diverse: bool = True

    def check(self) -> "SimOptions":
        """Return these options if they can be meant; raises `UsageError`."""
        for name in ("churn", "malicious", "loss", "duplicate", "reorder", "updates"):
            _within(name, getattr(self, name), 0.0, 0.95 if name in ("churn", "malicious", "loss") else 1.0)
        _within("partition", self.partition, 0.0, 0.9)
        _within("skew", self.skew, 0.0, 86400.0)
        _within("nodes", self.nodes, 2, NODES_MAX)
        _within("clients", self.clients, 0, NODES_MAX)
        _within("trials", self.trials, 1, TRIALS_MAX)
        _within("records", self.records, 1, TRIALS_MAX)
        _within("sybils", self.sybils, 0, 4096)
        _within("groups", self.groups, 1, 4096)
        _within("answers", self.answers, 1, 20)
        if self.groups > 1 and self.groups > self.sybils:
            raise UsageError(f"--groups {self.groups}: there are only {self.sybils} Sybils (--sybils)")
        if self.sybils and self.malicious:
            raise UsageError("--sybils and --malicious are two attacks: run them one at a time")
        honest_live = (1 - self.malicious) * (1 - self.churn) * self.nodes
        if honest_live < 2:
            raise UsageError(f"{honest_live:.1f} honest live servers would be left: at least 2 are needed")
        return self

    def command(self) -> str:
        """The exact command of this run: only what differs from the defaults, and always the seed."""
        words = ["ioc-testnet", "sim", "dht"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "diverse":
                words += [] if value else ["--no-replica-groups"]
            elif value != field.default or field.name in ("nodes", "seed"):
                words += [f"--{field.name}", f"{value:g}" if isinstance(value, float) else str(value)]
        return shlex.join(words)


def parse_malicious(text: str, kind: str | None) -> tuple[float, Kind]:
    """`SHARE`, or `KIND:SHARE`; raises `UsageError`."""
    name, colon, share = text.rpartition(":")
    name = name if colon else (kind or "mixed")
    if kind is not None and colon and kind != name:
        raise UsageError(f"--malicious {text} and --kind {kind} contradict each other")
    found = next((known for known in KINDS if known == name), None)
    if found is None:
        raise UsageError(f"--malicious {text}: {name!r} is no kind; there are {', '.join(KINDS)}")
    try:
        return float(share), found
    except ValueError:
        raise UsageError(f"--malicious {text}: {share!r} is not a share such as 0.2") from None


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"--{name} {value:g}: must be from {low:g} to {high:g}")
