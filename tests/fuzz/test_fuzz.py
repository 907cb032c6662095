"""Every decoder of the DHT, and whole machines, against kept and fresh bad input (`make test-slow` searches longer)."""

import random
from typing import Final

import msgspec
import pytest

from ioc_wire import dht
from ioc_wire.errors import WireError
from tests.fuzz import campaign, corpus, seeds, stage
from tests.fuzz.mutation import mutate
from tests.fuzz.targets import TARGETS, WHOLE

MUTANTS: Final = 1500
SCRIPTS: Final = 150
CAMPAIGN_SECONDS: Final = 12.0
MACHINES_SECONDS: Final = 60.0


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_holds(target: str) -> None:
    inputs = corpus.load(target)
    assert inputs, "make the seeds: python -m tests.fuzz.seeds"
    for data in inputs:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_mutants_of_the_corpus_hold(target: str) -> None:
    inputs = sorted(corpus.load(target))
    dice = random.Random(target)
    for _ in range(SCRIPTS if target in WHOLE else MUTANTS):
        data = mutate(dice.choice(inputs), inputs, dice)
        try:
            TARGETS[target](data)
        except Exception:
            print(f"keep it in {corpus.FOLDER / target}.txt: {data.hex()}")  # noqa: T201 - for who mends it
            raise


def test_every_message_and_packet_is_in_the_corpus() -> None:
    """What is new on the wire wants new seeds: python -m tests.fuzz.seeds."""
    assert seeds.make().keys() == TARGETS.keys()
    for target in seeds.PACKETS.values():
        assert set(map(len, corpus.load(target))) > {0}, target
    kinds = {type(message) for message in map(_message_of, corpus.load("message")) if message is not None}
    assert kinds == set(dht.AnyMessage.__args__)


def _message_of(data: bytes) -> msgspec.Struct | None:
    try:
        return dht.decode_message(data)
    except WireError:
        return None


def test_scripts_reach_the_inside_of_sessions() -> None:
    """Sealed plaintext is decrypted, and handshakes made by hand become sessions: what is fuzzed is not the seal."""
    play = stage.Stage()
    before = (play.bob.sessions.counters.handshakes_accepted, play.bob.malformed)
    play.play(stage.script((3, 0, b"\xc1"), (8, 0, b"\x92\xc0\xc4\0")))
    assert (play.bob.sessions.counters.handshakes_accepted, play.bob.malformed) == (
        before[0] + 1,
        before[1] + 1,
    )
    made = play.alice.sessions.counters.handshakes_made
    play.play(stage.script((9, 0, b"\x94\xc4\x08" + bytes(8) + b"\0\xc0\xc4\0")))
    assert play.alice.sessions.counters.handshakes_made == made + 1
    asked = len(play.alice.exchange)
    play.play(stage.script((7, 2, b"\xff")))
    assert len(play.alice.exchange) == asked + 2
    play.play(stage.script(*((5, number, b"\x94\x04\x90\0") for number in range(asked + 2))))
    assert len(play.alice.exchange) == asked + 1, "of the two servers asked, bob has answered"


def test_a_broken_decoder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        if len(data) % 7 == 6:
            raise IndexError("not a WireError")

    monkeypatch.setitem(TARGETS, "message", broken)
    found = campaign.blind("message", 5.0)
    assert found is not None
    assert "IndexError" in found


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_campaign_finds_nothing(target: str) -> None:
    """Guided by coverage where atheris is installed, blind otherwise."""
    assert campaign.search(target, MACHINES_SECONDS if target in WHOLE else CAMPAIGN_SECONDS) is None
