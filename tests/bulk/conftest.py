"""Alice holds blobs, Bob reads them, Carol is somebody else."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.endpoint import Listener
from ioc_node.bulk.engines import load_engine
from ioc_node.bulk.quic import Channel
from ioc_node.bulk.udp import open_udp

ALICE = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
BOB = Ed25519PrivateKey.from_private_bytes(b"b" * 32)
CAROL = Ed25519PrivateKey.from_private_bytes(b"c" * 32)

MIB = 1 << 20


def pattern(size: int) -> bytes:
    """Bytes that differ from chunk to chunk."""
    block = bytes((i * 7 + i // 251) % 256 for i in range(65_521))
    return (block * (size // len(block) + 1))[:size]


@pytest.fixture
def alice_store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "alice")


@pytest.fixture
def bob_store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "bob")


@asynccontextmanager
async def open_rogue(converse: Callable[[Channel], object], engine: str = "aioquic") -> AsyncIterator[int]:
    """A holder with Alice's key that says what the test wants; yields its port."""
    import trio

    udp = open_udp("127.0.0.1", 0)
    listener = Listener(udp, load_engine(engine, ALICE), converse)  # type: ignore[arg-type]
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve)
            yield udp.port
            nursery.cancel_scope.cancel()
    finally:
        udp.close()


Rogue = Callable[..., AbstractAsyncContextManager[int]]
