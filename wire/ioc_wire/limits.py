"""Limits that are part of the protocol. A node that is stricter or laxer does not interoperate.

Limits that are one implementation's choice (cache sizes, time-outs) live beside the code that needs them.
"""

from typing import Final

PROTOCOL_VERSION: Final = 1

# -- identities and authority
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
CHAIN_LINKS_MAX: Final = 4
DELEGATION_SECONDS_DEFAULT: Final = 30 * 86400
CLOCK_SKEW_SECONDS: Final = 300
REASON_CHARS_MAX: Final = 128
"""Why a key was revoked, in its revoker's words."""
REVOCATION_BYTES_MAX: Final = 2048
"""A revocation, its chain included."""
REVOCATIONS_MAX: Final = 4096
"""Revocations that a node remembers at a time."""

# -- identifiers
CID_BYTES_MAX: Final = 255
SEGMENT_CHARS_MAX: Final = 32

# -- DHT
DATAGRAM_BYTES_MAX: Final = 1200
RECORD_BYTES_MAX: Final = 1024
"""A signed record, envelope included."""
RECORD_SECONDS_MAX: Final = 48 * 3600
REPLICATION: Final = 20
"""k of Kademlia: bucket size and number of replica holders."""
PARALLELISM: Final = 8
"""alpha of Kademlia: requests of one lookup in flight."""

# -- links
LINK_FRAME_BYTES_MAX: Final = 1 << 20
LINK_STREAMS_MAX: Final = 1024
LINK_STREAM_CREDIT_MAX: Final = 256
"""Items that may be on their way on one stream without having been credited."""
PAGE_ENTRIES_MAX: Final = 512
"""Entries in one page of a catalogue transfer."""

CIRCUIT_DATA_BYTES_MAX: Final = 64 << 10
"""Bytes of a circuit in one message."""

# -- catalogue and gossip
HEAD_SECONDS_MAX: Final = 48 * 3600
STATUS_SECONDS_MAX: Final = 600
STATUS_ROWS_MAX: Final = 1024
"""Slots in one status batch: the batches of a provider are few, and each is quickly verified and applied."""
STATUS_PARTS_MAX: Final = 64
PROVIDERS_MAX: Final = 8192
"""Providers in one head vector."""
NEWS_MAX: Final = 256
"""Heads, or status batches, in one message."""
MEMBERS_MAX: Final = 4096
"""Core nodes in one membership."""
INTEREST_PREFIXES_MAX: Final = 64
"""Prefixes that a core node may say it replicates."""

# -- bulletins
BULLETIN_TITLE_CHARS_MAX: Final = 120
BULLETIN_TEXT_CHARS_MAX: Final = 2000
BULLETIN_BYTES_MAX: Final = 12 << 10
"""A bulletin, its chain included."""
BULLETIN_SECONDS_MAX: Final = 30 * 86400
BULLETINS_TOLD_MAX: Final = 16
"""Bulletins in one message."""
BULLETINS_TOLD_BYTES_MAX: Final = 64 << 10
"""Bytes of one message of bulletins."""
BULLETINS_NAMED_MAX: Final = 512

# -- latency
LATENCY_RTT_US_MAX: Final = 60_000_000
LATENCY_RTTS_MAX: Final = 512
"""Providers in one latency row."""
LATENCY_SECONDS_MAX: Final = 3600
"""How long a latency row holds at most, and how old a round trip in it may be."""
LATENCY_ROW_BYTES_MAX: Final = 64 << 10
"""A latency row, its chain included."""
LATENCY_TOLD_MAX: Final = 8
"""Latency rows in one message."""
LATENCY_HELD_MAX: Final = 256
VANTAGE_CORES_MAX: Final = 64
"""Core nodes that an asker may name its round trips to, or be told the places of."""
NEAR_PROVIDERS_MAX: Final = 512
"""Providers in one answer about who is near, and providers that a demand query may be restricted to."""

# -- blobs
CHUNK_BYTES: Final = 1 << 20
BLOB_CHUNKS_MAX: Final = 1 << 20
TICKET_SECONDS_MAX: Final = 3600

# -- datasets
DATASET_NAME_CHARS_MAX: Final = 64
DATASET_PATH_BYTES_MAX: Final = 1024
DATASET_DEPTH_MAX: Final = 32
"""Segments of a path."""
DATASET_PAGE_FILES_MAX: Final = 2048
DATASET_PAGES_MAX: Final = 512
DATASET_FILES_MAX: Final = DATASET_PAGE_FILES_MAX * DATASET_PAGES_MAX
"""About a million."""

# -- tasks
EXPRESSION_CHARS_MAX: Final = 2000
TASK_BYTES_MAX: Final = 64 << 10
TASK_INPUTS_MAX: Final = 1024
TASK_OUTPUTS_MAX: Final = 256
LOG_LINE_BYTES_MAX: Final = 4096
OFFERS_MAX: Final = 256
