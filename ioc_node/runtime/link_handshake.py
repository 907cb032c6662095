"""Who may hold a link: the three messages that open one, seen from both sides.

    accepting side                       dialing side
    ServerHello (key, fresh nonce)  -->  is it the network, the key of the TLS channel, the expected key?
    is it our nonce, our key, the   <--  ClientHello (proof signed with the node key)
    network; a valid chain?
    Welcome                         -->

Whoever finds a fault sends it as `Refusal` and ends the connection, so both sides can say why. The proof covers the
accepting side's key and a nonce that lives inside the TLS channel authenticated by that key: this binds it to the
connection as a TLS exporter would, which Python's ssl module does not offer for TLS 1.3.
"""

import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_bootstrap.network import Network
from ioc_node.runtime.link_mux import PeerIdentity
from ioc_node.runtime.link_transport import FrameTransport, TransportBroken
from ioc_wire import limits
from ioc_wire.authority import Grant, Role, verify_chain
from ioc_wire.codec import encode
from ioc_wire.errors import (
    BadSignature,
    BrokenChain,
    Malformed,
    ReplayedProof,
    Revoked,
    RoleNotGranted,
    UnknownNetwork,
    UnknownType,
    WireError,
    WrongPeer,
    error_of,
)
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.links import (
    DETAIL_CHARS_MAX,
    ClientHello,
    ClientProof,
    Listen,
    Refusal,
    ServerHello,
    Welcome,
    decode_handshake,
)
from ioc_wire.signed import Signed, public_bytes, sign, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalIdentity:
    """What this node shows of itself, and whom it admits."""

    key: Ed25519PrivateKey
    network: Network
    roles: tuple[Role, ...] = ()
    chain: tuple[Signed, ...] = ()
    listen: Listen | None = None
    revoked: Collection[bytes] = frozenset()
    """Keys that are refused; may be a live set."""
    ended: Collection[tuple[bytes, bytes]] = frozenset()
    """Pairs of an issuer and the key whose grants it ended; may be a live set."""
    clock: Callable[[], float]
    public_key: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "public_key", public_bytes(self.key))


class RefusedByPeer(TransportBroken):
    """The peer ended the handshake with a wire error, kept in `error`."""

    def __init__(self, error: WireError) -> None:
        super().__init__(str(error))
        self.error = error


def admit(
    local: LocalIdentity, key: bytes, roles: tuple[str, ...], chain: tuple[Signed, ...]
) -> Grant | None:
    """What `chain` grants to `key`; raises the wire error for which this peer is refused.

    In an open network a chain is optional, and without one the roles are a claim and no more.
    """
    if key in local.revoked:
        raise Revoked(format_node_id(node_id_of(key)))
    if not chain:
        if local.network.certified:
            raise BrokenChain("no delegation chain was shown, and this network is certified")
        return None
    grant = verify_chain(
        chain,
        roots=local.network.root_keys,
        now=local.clock(),
        revoked=local.revoked,
        ended=local.ended,
        self_certified=not local.network.certified,
    )
    if grant.subject != key:
        raise BrokenChain("the delegation chain belongs to another key")
    excess = set(roles) - set(grant.roles) - {"consumer"}  # whoever is admitted may ask for compute
    if excess:
        raise RoleNotGranted(", ".join(sorted(excess)))
    return grant


async def accept_peer(transport: FrameTransport, local: LocalIdentity, remote_host: str) -> PeerIdentity:
    """The accepting side up to, not including, `Welcome`. Refuses by raising, after telling the peer."""
    nonce = secrets.token_bytes(32)
    await transport.send(
        encode(
            ServerHello(
                limits.PROTOCOL_VERSION,
                local.network.network_id,
                local.public_key,
                nonce,
                local.roles,
                local.chain,
            )
        )
    )
    try:
        return check_client(await transport.receive(), local, nonce, remote_host)
    except WireError as error:
        await refuse(transport, error)
        raise


def check_client(data: bytes, local: LocalIdentity, nonce: bytes, remote_host: str) -> PeerIdentity:
    """Judge a `ClientHello`; raises the wire error for which it is refused."""
    hello = decode_handshake(data)
    if isinstance(hello, Refusal):
        raise RefusedByPeer(error_of(hello.code, hello.detail))
    if not isinstance(hello, ClientHello):
        raise UnknownType(f"{type(hello).__name__} where ClientHello was due")
    _check_version(hello.version)
    proof = verify(hello.proof, ClientProof)
    key = hello.proof.key
    if proof.network_id != local.network.network_id:
        raise UnknownNetwork(_networks(proof.network_id, local))
    if proof.server_key != local.public_key:
        raise ReplayedProof("it names another node as its reader")
    if proof.server_nonce != nonce:
        raise ReplayedProof("its nonce is not of this connection")
    if key == local.public_key:
        raise WrongPeer("it has this node's own key")
    grant = admit(local, key, proof.roles, hello.chain)
    host = (proof.listen.host or remote_host) if proof.listen else ""
    endpoint = (host, proof.listen.port) if proof.listen and host else None
    return PeerIdentity(
        key=key, node_id=node_id_of(key), roles=proof.roles, grant=grant, chain=hello.chain, endpoint=endpoint
    )


async def read_server_hello(
    transport: FrameTransport,
    local: LocalIdentity,
    *,
    channel_key: bytes,
    expected_key: bytes | None,
    address: tuple[str, int] | None,
) -> tuple[PeerIdentity, bytes]:
    """The dialing side's first half: whom have we reached? Returns the peer and its nonce."""
    hello = decode_handshake(await transport.receive())
    if isinstance(hello, Refusal):
        raise RefusedByPeer(error_of(hello.code, hello.detail))
    if not isinstance(hello, ServerHello):
        raise UnknownType(f"{type(hello).__name__} where ServerHello was due")
    try:
        _check_version(hello.version)
        if hello.key != channel_key:
            raise BadSignature("the key of the hello is not the key of the TLS channel")
        if expected_key is not None and hello.key != expected_key:
            raise WrongPeer(f"expected {_name(expected_key)}, reached {_name(hello.key)}")
        if hello.network_id != local.network.network_id:
            raise UnknownNetwork(_networks(hello.network_id, local))
        if hello.key == local.public_key:
            raise WrongPeer("this address is the node's own")
        grant = admit(local, hello.key, hello.roles, hello.chain)
    except WireError as error:
        await refuse(transport, error)
        raise
    peer = PeerIdentity(
        key=hello.key,
        node_id=node_id_of(hello.key),
        roles=hello.roles,
        grant=grant,
        chain=hello.chain,
        endpoint=address,
    )
    return peer, hello.nonce


async def prove_key(
    transport: FrameTransport, local: LocalIdentity, peer: PeerIdentity, nonce: bytes
) -> None:
    """The dialing side's second half; returns when the peer bids welcome."""
    proof = ClientProof(
        network_id=local.network.network_id,
        server_nonce=nonce,
        server_key=peer.key,
        roles=local.roles,
        listen=local.listen,
    )
    await transport.send(encode(ClientHello(limits.PROTOCOL_VERSION, sign(local.key, proof), local.chain)))
    answer = decode_handshake(await transport.receive())
    if isinstance(answer, Refusal):
        raise RefusedByPeer(error_of(answer.code, answer.detail))
    if not isinstance(answer, Welcome):
        raise UnknownType(f"{type(answer).__name__} where Welcome was due")


async def refuse(transport: FrameTransport, error: WireError) -> None:
    """Tell the peer why, as far as it still listens."""
    try:
        await transport.send(encode(Refusal(error.code, error.detail[:DETAIL_CHARS_MAX])))
        with trio.move_on_after(1):
            await transport.aclose()
    except TransportBroken:
        return  # it will see a closed connection


def _check_version(version: int) -> None:
    if version != limits.PROTOCOL_VERSION:
        raise Malformed(f"it speaks version {version} of the protocol, this node {limits.PROTOCOL_VERSION}")


def _networks(theirs: bytes, local: LocalIdentity) -> str:
    ours = local.network
    return f"theirs is {theirs[:6].hex()}, ours {ours.network_id[:6].hex()} ({ours.name})"


def _name(key: bytes) -> str:
    return format_node_id(node_id_of(key))
