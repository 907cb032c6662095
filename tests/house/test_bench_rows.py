"""The rows that `bench.dht` promises: names, units and directions, and what becomes of samples. Measures nothing."""

import argparse

import pytest

from bench.dht import FIGURES, FULL, LABELS, MEMBERS, QUICK, Measurements, rows_of, systems_of, targets_of
from bench.peers.setup import DHT_PEERS as PEERS

UNIT_OF_SUFFIX = {"_ms": "ms", "_mb": "MB", "_rate": "%", "_per_s": "1/s", "join_200_s": "s"}
PROMISED = [
    "get_p50_50",
    "get_p99_50",
    "get_authoritative_p50_50",
    "put_p50_50",
    "get_p50_200",
    "get_p99_200",
    "put_p50_200",
    "hit_rate",
    "resolves_per_s",
    "cold_resolve_ms",
    "handshake_ms",
    "node_rss_mb",
    "get_p50_32p",
    "put_p50_32p",
    "join_200_s",
    "cold_start_ms",
]


def test_every_promised_row_is_there_once():
    names = [figure.name for figure in FIGURES]
    assert len(set(names)) == len(names)
    assert set(PROMISED) <= set(names)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_unit_and_direction_fit_the_name(figure):
    units = [unit for suffix, unit in UNIT_OF_SUFFIX.items() if figure.name.endswith(suffix)]
    assert figure.unit == (units[-1] if units else "ms")
    assert figure.better == ("higher" if figure.unit in ("%", "1/s") else "lower")
    assert figure.network in FULL


def test_networks_and_labels_name_peers_that_can_be_made():
    assert {system for _, system, _ in LABELS} == set(PEERS)
    assert MEMBERS.issubset(PEERS)
    for network in (*FULL.values(), *QUICK.values()):
        assert network.peers.issubset(PEERS)


def test_rows_are_medians_over_runs_beside_each_peer_that_has_them():
    measurements = Measurements(["ours", "opendht"])
    measurements.samples["ours", "50"] = [{"get": [0.001], "hits": 1.0}, {"get": [0.003], "hits": 0.5}]
    measurements.samples["opendht", "50"] = [{"get": [0.004], "get_signed": [0.008], "hits": 1.0}]
    rows = {(row.name, row.peer_name): row for row in rows_of(measurements)}
    plain, signed = rows["get_p50_50", "opendht (plain)"], rows["get_p50_50", "opendht (signed)"]
    assert (plain.ours, plain.peer, plain.runs) == (2.0, 4.0, 2)
    assert signed.peer == 8.0
    assert rows["hit_rate", "opendht (plain)"].ours == 75.0
    assert ("hit_rate", "opendht (signed)") not in rows
    assert "get_p50_50 2 (target 0.29 ms)" in next(iter(targets_of(measurements)))
    assert "hit_rate 75 (target 100 %)" in next(iter(targets_of(measurements)))


def test_peers_are_chosen_by_name():
    assert systems_of("none") == ["ours"]
    assert systems_of("all") == ["ours", *PEERS]
    assert systems_of("libtorrent,kademlia") == ["ours", "libtorrent", "kademlia"]
    with pytest.raises(argparse.ArgumentTypeError, match="no such peer: redis"):
        systems_of("redis")
