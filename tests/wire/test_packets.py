"""What is not a struct: DHT packets, addresses, blob IDs, chunks and the frames of a bulk stream."""

import hashlib
import struct
from collections.abc import Callable

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from ioc_wire import bulk, dht
from ioc_wire.bulk import (
    BlobInfo,
    blob_id_of,
    check_blob_info,
    check_chunk,
    chunk_count,
    chunk_hash,
    chunk_length,
)
from ioc_wire.codec import encode
from ioc_wire.errors import BlobCorrupt, Malformed, TooLarge, UnknownType, WireError
from ioc_wire.limits import CHUNK_BYTES, DATAGRAM_BYTES_MAX
from tests.wire.structs import of_struct, refused_or
from tests.wire.test_structs import QUICK

replace = msgspec.structs.replace


def fixed(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


knocks = st.builds(dht.Knock, fixed(8), fixed(12), st.integers(0, 255), fixed(32), fixed(32))
challenges = st.builds(
    dht.Whoareyou, fixed(8), fixed(12), fixed(24), fixed(32), fixed(32), st.integers(0, 2**64 - 1), fixed(64)
)
handshakes = st.builds(
    dht.Handshake,
    fixed(8),
    fixed(12),
    fixed(24),
    fixed(32),
    fixed(8),
    fixed(32),
    st.integers(0, 255),
    fixed(64),
)


# -- packets


@given(knocks, challenges, handshakes, st.integers(0, 65535))
@QUICK
def test_packets_round_trip(knock: dht.Knock, who: dht.Whoareyou, shake: dht.Handshake, code: int) -> None:
    assert dht.decode_knock(knock.encode()) == knock
    assert dht.decode_whoareyou(who.encode()) == who
    assert dht.decode_handshake(shake.encode() + bytes(16)) == shake
    assert dht.decode_refused(dht.encode_refused(knock.encode(), code)) == (
        knock.session_id,
        knock.nonce,
        code,
    )


def test_answers_before_the_cookie_are_no_larger_than_the_question() -> None:
    knock = dht.Knock(bytes(8), bytes(12), 1, bytes(32), bytes(32)).encode()
    who = dht.Whoareyou(bytes(8), bytes(12), bytes(24), bytes(32), bytes(32), 0, bytes(64)).encode()
    assert (knock[0], who[0]) == (dht.KNOCK, dht.WHOAREYOU)
    assert len(who) <= len(knock) <= DATAGRAM_BYTES_MAX
    assert len(dht.encode_refused(knock, 9)) <= len(knock)


@pytest.mark.parametrize(
    ("decode", "length"),
    [
        (dht.decode_knock, dht.KNOCK_BYTES),
        (dht.decode_whoareyou, dht.WHOAREYOU_BYTES),
        (dht.decode_refused, dht.REFUSED_BYTES),
    ],
)
def test_packet_of_another_length(decode: Callable[[bytes], object], length: int) -> None:
    decode(bytes(length))
    for wrong in (0, 1, 21, length - 1, length + 1, 1200):
        with pytest.raises(Malformed):
            decode(bytes(wrong))


def test_handshake_without_a_ciphertext() -> None:
    for wrong in (0, 21, dht.HANDSHAKE_HEADER_BYTES, dht.HANDSHAKE_HEADER_BYTES + 15):
        with pytest.raises(Malformed):
            dht.decode_handshake(bytes(wrong))


def test_what_signatures_cover_differs_in_each_part() -> None:
    """No two handshakes that differ in anything share a transcript."""
    plain = dht.Handshake(bytes(8), bytes(12), bytes(24), bytes(32), bytes(8), bytes(32), 0, bytes(64))
    changed = [
        plain._replace(session_id=b"\1" * 8),
        plain._replace(nonce=b"\1" * 12),
        plain._replace(cookie=b"\1" * 24),
        plain._replace(key=b"\1" * 32),
        plain._replace(ephemeral=b"\1" * 32),
        plain._replace(flags=1),
    ]
    zero, one = bytes(32), b"\1" * 32
    transcripts = {dht.transcript(zero, shake, zero, zero) for shake in (plain, *changed)}
    transcripts |= {dht.transcript(one, plain, zero, zero), dht.transcript(zero, plain, one, zero)}
    transcripts.add(dht.transcript(zero, plain, zero, one))
    assert len(transcripts) == 1 + len(changed) + 3
    assert dht.handshake_signed_bytes(b"x") != dht.prekey_signed_bytes(b"x", b"", 0)


# -- addresses


@pytest.mark.parametrize(
    ("text", "packed"),
    [
        ("192.0.2.1", "c0000201"),
        ("2001:db8::1", "20010db8000000000000000000000001"),
        ("fe80::1%eth0", "fe800000000000000000000000000001"),
        ("::ffff:192.0.2.1", "c0000201"),
    ],
)
def test_address_is_packed(text: str, packed: str) -> None:
    assert dht.pack_host(text).hex() == packed
    assert dht.pack_host(dht.unpack_host(bytes.fromhex(packed))).hex() == packed


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2", "192.0.2.256", "1.2.3.4.5", "::g", "x" * 5000])
def test_text_that_is_no_address(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        dht.pack_host(text)
    assert len(str(caught.value)) < 200


@given(st.binary(max_size=20))
@QUICK
def test_any_bytes_are_an_address_or_refused(packed: bytes) -> None:
    outcome = refused_or(dht.unpack_host, packed)
    assert isinstance(outcome, Malformed) or dht.pack_host(outcome) == packed


# -- blobs


def info_of(data: bytes) -> BlobInfo:
    chunks = tuple(chunk_hash(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))
    return BlobInfo(blob_id_of(len(data), chunks), len(data), chunks)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_blob_is_verified_chunk_by_chunk(size: int) -> None:
    data = hashlib.shake_128(b"blob").digest(size)
    info = check_blob_info(info_of(data))
    assert len(info.chunks) == chunk_count(size) == -(-size // 2**20)
    assert sum(chunk_length(size, index) for index in range(chunk_count(size))) == size
    for index in range(chunk_count(size)):
        chunk = data[index * CHUNK_BYTES :][: chunk_length(size, index)]
        check_chunk(info, index, chunk)
        for wrong in (chunk[:-1], chunk + b"\0", chunk[:-1] + bytes((chunk[-1] ^ 1,)), b""):
            with pytest.raises(BlobCorrupt):
                check_chunk(info, index, wrong)
    for index in (-1, chunk_count(size)):
        with pytest.raises(BlobCorrupt):
            check_chunk(info, index, b"")


def test_blob_id_commits_to_size_and_hashes() -> None:
    info = info_of(hashlib.shake_128(b"blob").digest(CHUNK_BYTES + 5))
    for wrong in (
        replace(info, size=info.size - 1),
        replace(info, size=3 * CHUNK_BYTES),
        replace(info, chunks=info.chunks[::-1]),
        replace(info, chunks=info.chunks[:1]),
        replace(info, chunks=(*info.chunks, bytes(32))),
        replace(info, blob=bytes(32)),
    ):
        with pytest.raises(BlobCorrupt):
            check_blob_info(wrong)


def test_blob_id_is_no_hash_of_content() -> None:
    """A blob of one chunk is not named by that chunk's hash: nobody can pass one off as the other."""
    data = b"content"
    assert info_of(data).blob not in (blake3(data).digest(), chunk_hash(data))


@given(fixed(32))
@QUICK
def test_blob_id_text_and_back(blob: bytes) -> None:
    assert bulk.parse_blob_id(bulk.format_blob_id(blob)) == blob


@pytest.mark.parametrize(
    "text", ["", "b", "t" + "a" * 52, "b" + "a" * 51, "b" + "a" * 51 + "b", "B" + "a" * 52]
)
def test_bad_blob_id(text: str) -> None:
    with pytest.raises(Malformed):
        bulk.parse_blob_id(text)


# -- frames of a bulk stream

FRAMES = bulk.BulkMessage.__args__


@pytest.mark.parametrize("kind", FRAMES)
def test_frame_round_trip(kind: type[bulk.BulkMessage]) -> None:
    def check(message: bulk.BulkMessage) -> None:
        frame = bulk.encode_frame(message)
        number, length = bulk.decode_frame_header(frame[:5])
        assert length == len(frame) - 5 == len(encode(message))
        assert bulk.decode_frame(number, frame[5:]) == message

    QUICK(given(of_struct(kind))(check))()


@given(st.integers(0, 255), st.integers(0, 2**32 - 1))
@QUICK
def test_any_frame_header_is_bounded_or_refused(number: int, length: int) -> None:
    outcome = refused_or(bulk.decode_frame_header, struct.pack(">BI", number, length))
    if isinstance(outcome, WireError):
        return
    assert outcome == (number, length)
    assert number <= len(FRAMES)
    assert length <= CHUNK_BYTES + 4


def test_frame_header_names_its_fault() -> None:
    with pytest.raises(UnknownType):
        bulk.decode_frame_header(struct.pack(">BI", len(FRAMES) + 1, 0))
    with pytest.raises(TooLarge):
        bulk.decode_frame_header(struct.pack(">BI", 0, CHUNK_BYTES + 5))
    with pytest.raises(TooLarge):
        bulk.decode_frame_header(struct.pack(">BI", 1, 2**32 - 1))
    with pytest.raises(Malformed):
        bulk.decode_frame_header(struct.pack(">BI", 0, 4))
    with pytest.raises(UnknownType):
        bulk.decode_frame(200, b"")


def test_ticket_does_not_print_its_secret() -> None:
    ticket = bulk.Ticket(b"\xaa" * 32, bytes(32), bytes(32), bytes(32), 1)
    assert "\\xaa" not in repr(ticket)
    assert bulk.ticket_digest(ticket.secret) != blake3(ticket.secret).digest()
