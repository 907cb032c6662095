"""Bulk data beside its peers: `python -m bench.bulk [--json] [--quick] [--runs N]`.

Streams (`bench.bulk_streams`): one, two and four QUIC connections between two processes on loopback. Offloads
(`bench.bulk_offloads`): one blob by shared memory and by UCX. Blobs (`bench.bulk_blobs`): from disk to disk, verified,
beside a stream of datagrams of the same size. Sharing (`bench.bulk_sharing`): weights and two paths. Control
(`bench.control`): identifiers resolved while four blobs move.
"""

import argparse

import structlog

from bench import bulk_blobs, bulk_offloads, bulk_sharing, bulk_streams, control
from bench.report import report


def main() -> None:
    """Measure and report medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a tenth of the bytes, one run")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    quick, runs = options.quick, 1 if options.quick else options.runs
    rows, notes = bulk_streams.measure_rows(quick=quick, runs=runs)
    more_rows, more_notes = bulk_offloads.measure_rows(quick=quick, runs=runs)
    rows += more_rows
    notes += more_notes
    more_rows, more_notes = bulk_blobs.measure_rows(
        quick=quick,
        runs=runs,
        stream_mb_s=next(row.ours for row in rows if row.name == "stream_qh3_path_mb_s"),
        ethernet_mb_s=next(row.ours for row in rows if row.name == "stream_qh3_mb_s"),
    )
    rows += more_rows
    notes += more_notes
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    for part in (bulk_sharing, control):
        more_rows, more_notes = part.measure_rows(quick=quick, runs=runs)
        rows += more_rows
        notes += more_notes
    report("bulk", rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
