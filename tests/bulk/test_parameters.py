"""What a reader announces of its path, in the transport parameters of either engine."""

import random

import pytest

from ioc_node.bulk.parameters import payload_bytes, with_payload_bytes

PARAMETERS = bytes.fromhex("01047fffffff" + "030245c0" + "0f080102030405060708")


def test_the_announced_size_is_replaced_and_nothing_else() -> None:
    changed = with_payload_bytes(PARAMETERS, 8952)
    assert payload_bytes(PARAMETERS) == 1472
    assert payload_bytes(changed) == 8952
    assert with_payload_bytes(changed, 1472) == with_payload_bytes(PARAMETERS, 1472)
    assert changed.startswith(PARAMETERS[:6])
    assert PARAMETERS[10:] in changed


@pytest.mark.parametrize(
    "parameters", [b"", bytes.fromhex("01047fffffff"), bytes.fromhex("03024001"), b"\x03\x02\x45"]
)
def test_where_nothing_sound_is_announced_the_least_holds(parameters: bytes) -> None:
    assert payload_bytes(parameters) == 1200


def test_any_bytes_are_parameters_or_nonsense() -> None:
    dice = random.Random(5)
    for _ in range(2000):
        assert payload_bytes(dice.randbytes(dice.randrange(40))) >= 1200
