"""Names of blobs, tickets and frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioc_wire import limits
from ioc_wire.bulk import (
    CHUNK_FRAME,
    FRAME_HEADER,
    BlobInfo,
    ChunkRange,
    Claim,
    Endpoint,
    Hello,
    Ticket,
    Want,
    blob_id_of,
    check_blob_info,
    check_chunk,
    chunk_count,
    chunk_hash,
    chunk_length,
    decode_frame,
    decode_frame_header,
    encode_chunk_header,
    encode_frame,
    format_blob_id,
    parse_blob_id,
)
from ioc_wire.codec import decode, encode
from ioc_wire.errors import BlobCorrupt, Malformed, TooLarge, UnknownType, WireError


def info_of(data: bytes) -> BlobInfo:
    chunks = tuple(
        chunk_hash(data[at : at + limits.CHUNK_BYTES]) for at in range(0, len(data), limits.CHUNK_BYTES)
    )
    return BlobInfo(blob_id_of(len(data), chunks), len(data), chunks)


@given(st.binary(min_size=32, max_size=32))
def test_a_blob_id_survives_its_text_form(blob: bytes) -> None:
    text = format_blob_id(blob)
    assert len(text) == 53
    assert text.startswith("b")
    assert parse_blob_id(text) == blob


@pytest.mark.parametrize("text", ["", "b", "n" + "a" * 52, "b" + "A" * 52, "b" + "a" * 51, "b" + "1" * 52])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(Malformed):
        parse_blob_id(text)


def test_the_id_commits_to_size_and_chunks() -> None:
    data = bytes(limits.CHUNK_BYTES + 1)
    info = check_blob_info(info_of(data))
    assert [chunk_length(info.size, at) for at in range(chunk_count(info.size))] == [limits.CHUNK_BYTES, 1]
    check_chunk(info, 1, b"\0")
    for wrong in (
        BlobInfo(info.blob, info.size + 1, info.chunks),
        BlobInfo(info.blob, info.size, info.chunks[:1]),
        BlobInfo(info.blob, info.size, info.chunks[::-1]),
        BlobInfo(bytes(32), info.size, info.chunks),
    ):
        with pytest.raises(BlobCorrupt):
            check_blob_info(wrong)
    for index, chunk in ((1, b"\1"), (2, b"\0"), (-1, b"\0")):
        with pytest.raises(BlobCorrupt):
            check_chunk(info, index, chunk)


def test_the_empty_blob_has_a_name() -> None:
    assert check_blob_info(info_of(b"")).chunks == ()


def test_a_ticket_travels_and_hides_its_secret() -> None:
    ticket = Ticket(b"s" * 32, b"b" * 32, b"h" * 32, b"r" * 32, 99, 5, (Endpoint("127.0.0.1", 7),))
    assert decode(encode(ticket), Ticket) == ticket
    assert "ssss" not in repr(ticket)


@pytest.mark.parametrize(
    "message",
    [Hello(1, bytes(32)), Claim(bytes(32), bytes(32), bytes(64)), Want((ChunkRange(0, 3),), 16)],
)
def test_frames_survive(message: Hello | Claim | Want) -> None:
    frame = encode_frame(message)
    kind, length = decode_frame_header(frame[: FRAME_HEADER.size])
    assert length == len(frame) - FRAME_HEADER.size
    assert decode_frame(kind, frame[FRAME_HEADER.size :]) == message


def test_frame_headers_are_bounded() -> None:
    assert decode_frame_header(encode_chunk_header(3, 10)[: FRAME_HEADER.size]) == (CHUNK_FRAME, 14)
    with pytest.raises(TooLarge):
        decode_frame_header(FRAME_HEADER.pack(CHUNK_FRAME, limits.CHUNK_BYTES + 5))
    with pytest.raises(TooLarge):
        decode_frame_header(FRAME_HEADER.pack(3, 1 << 20))
    with pytest.raises(Malformed):
        decode_frame_header(FRAME_HEADER.pack(CHUNK_FRAME, 4))
    with pytest.raises(UnknownType):
        decode_frame_header(FRAME_HEADER.pack(200, 1))


@given(st.integers(0, 12), st.binary(max_size=200))
def test_garbage_is_refused_with_a_wire_error_or_means_something(kind: int, payload: bytes) -> None:
    try:
        message = decode_frame(kind, payload)
    except WireError:
        return
    assert encode_frame(message)[0] == kind
