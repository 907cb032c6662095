"""Path probes: sizes, echoes, and everything that is neither."""

import random

import pytest

from ioc_wire import pathprobe
from ioc_wire.pathprobe import echo_of, echoed_bytes, encode_probe

NONCE = b"nonce678"


@pytest.mark.parametrize("size", [16, *pathprobe.PROBE_SIZES])
def test_an_echo_confirms_the_size_of_its_probe(size: int) -> None:
    probe = encode_probe(NONCE, size)
    echo = echo_of(probe)
    assert len(probe) == size
    assert echo is not None
    assert echoed_bytes(echo, NONCE) == size
    assert echoed_bytes(echo, b"another8") is None


def test_the_bytes_of_a_probe() -> None:
    assert encode_probe(NONCE, 20) == b"\x08ioc-mtunonce678\0\0\0\0"
    assert echo_of(encode_probe(NONCE, 20)) == b"\x09ioc-mtunonce678\0\0\0\0"


def test_an_echo_is_never_answered() -> None:
    echo = echo_of(encode_probe(NONCE, 1452))
    assert echo is not None
    assert echo_of(echo) is None


def test_a_probe_is_no_quic_packet() -> None:
    for kind in (pathprobe.PROBE, pathprobe.ECHO):
        assert kind < 0x40  # RFC 9443 section 4: QUIC's are 64 to 127 and 192 to 255, STUN's end at 3


@pytest.mark.parametrize(("nonce", "size"), [(b"short", 1200), (NONCE, 15), (NONCE, 8953)])
def test_impossible_probes_are_refused(nonce: bytes, size: int) -> None:
    with pytest.raises(ValueError, match="a probe has"):
        encode_probe(nonce, size)


def test_any_bytes_are_a_probe_or_none() -> None:
    dice = random.Random(11)
    for _ in range(2000):
        data = dice.choice((b"", b"\x08", b"\x09", b"\x08ioc-mtu", b"\x09ioc-mtu")) + dice.randbytes(
            dice.randrange(20)
        )
        echo = echo_of(data)
        assert echo is None or len(echo) == len(data)
        assert echoed_bytes(data, NONCE) is None
