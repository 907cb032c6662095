"""The rows that `bench.bulk` promises of its streams, and their peers. Measures nothing."""

from collections import defaultdict
from pathlib import Path

import bench
from bench import bulk
from bench.bulk_streams import _rows

PROMISED = [
    ("stream_qh3_mb_s", "tls_tcp"),
    ("stream_qh3_mb_s", "aioquic"),
    ("stream_qh3_mb_s", "libp2p"),
    ("stream_aioquic_mb_s", "tls_tcp"),
    ("stream_qh3_2_mb_s", "tls_tcp"),
    ("stream_qh3_4_mb_s", "tls_tcp"),
    ("stream_qh3_path_mb_s", "tls_tcp"),
    ("sender_cpu_s_per_gb", "tls_tcp"),
    ("receiver_cpu_s_per_gb", "tls_tcp"),
    ("handshake_ms", "tls_tcp"),
    ("request_64_p99_ms", "tls_tcp"),
    ("loop_pass_4_p99_ms", "tls_tcp"),
]
PARTS = {
    "bulk_offloads": ["shm_vs_memcpy", "ucx_tcp_mb_s", "ucx_shm_mb_s"],
    "bulk_blobs": [
        "blob_vs_stream",
        "blob_vs_stream_1452",
        "two_sources_ratio",
        "resume_lost_s",
        "small_blobs_per_s",
        "memory_10gb_mb",
    ],
    "bulk_sharing": ["weighted_share", "two_paths_ratio"],
    "control": ["control_p99_ratio"],
}
UNIT_OF_SUFFIX = {"_mb_s": "MB/s", "_ms": "ms", "_per_gb": "s/GB", "_per_gb_path": "s/GB"}


def test_every_promised_row_is_there_once() -> None:
    rows = list(_rows(defaultdict(lambda: [2.0, 1.0, 3.0]), 3))
    keys = [(row.name, row.peer_name) for row in rows]
    assert len(set(keys)) == len(keys)
    assert set(PROMISED) <= set(keys)
    for row in rows:
        assert row.unit == next(unit for suffix, unit in UNIT_OF_SUFFIX.items() if row.name.endswith(suffix))
        assert row.better == ("higher" if row.unit == "MB/s" else "lower")
        assert (row.ours, row.peer, row.ratio) == (2.0, 2.0, 1.0)


def test_one_run_calls_every_part_and_each_has_its_rows() -> None:
    folder = Path(bench.__file__).parent
    for part, names in PARTS.items():
        text = (folder / f"{part}.py").read_text()
        assert getattr(bulk, part).measure_rows
        assert [name for name in names if f'"{name}"' not in text] == []


def test_a_peer_that_is_not_made_has_no_row() -> None:
    found = defaultdict(lambda: [1.0], {"libp2p": []})
    assert "libp2p" not in {row.peer_name for row in _rows(found, 1)}
