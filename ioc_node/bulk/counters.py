"""What the bulk room counts, for metrics and for the reasons it gives."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class BulkCounters:
    """Totals since the endpoint was opened."""

    bytes_sent: int = 0
    bytes_received: int = 0
    refused: int = 0
    """Claims and requests that this holder refused."""
    reconnections: int = 0
    corrupt_chunks: int = 0
    liars: int = 0
    """Sources that were dropped because what they sent was not what they promised."""
    laggards: int = 0
    """Connections that were dropped because others were far quicker."""
    transfers: Counter[str] = field(default_factory=Counter)
    """Finished fetches by transport."""
    offload_fallbacks: Counter[str] = field(default_factory=Counter)
    """Offloads that were tried for a blob and failed, by name: QUIC took over."""
    fallback_kinds: Counter[str] = field(default_factory=Counter)
    """The same by `NAME/KIND`: unusable, refused, stalled, broken, corrupt, malformed, incomplete, fault."""

    def count_fallback(self, offload: str, kind: str) -> None:
        """One offload failed for one blob."""
        self.offload_fallbacks[offload] += 1
        self.fallback_kinds[f"{offload}/{kind}"] += 1
