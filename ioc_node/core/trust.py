"""Whom this node believes: the network's rule, and a bounded cache of verified delegation chains.

A chain is verified once and remembered by its hash, so that checking a record costs one Ed25519 verification.
A remembered chain is believed until its last link ends or a key in it is revoked.
"""

from collections import OrderedDict
from collections.abc import Collection
from typing import Final, Literal, NamedTuple

from ioc_node.core.checked import CheckedSignatures
from ioc_wire import limits
from ioc_wire.authority import SERVER_ROLES, Grant, chain_hash, check_names, verify_chain
from ioc_wire.cid import Cid
from ioc_wire.errors import BrokenChain, ChainUnknown, Expired, PrefixNotCovered, Revoked, RoleNotGranted
from ioc_wire.records import NamedRecord, verify_named
from ioc_wire.signed import Signed

CHAINS_MAX: Final = 4096
"""Verified chains remembered; about 1 KiB each."""

Admission = Literal["open", "certified"]


class _Known(NamedTuple):
    chain: tuple[Signed, ...]
    grant: Grant


class Trust:
    """One network's rule. `network_id` is the SHA-256 of its definition, `roots` its root public keys. `checked` may be
    shared with others; a node has its own.
    """

    def __init__(
        self,
        *,
        network_id: bytes,
        admission: Admission,
        roots: Collection[bytes],
        checked: CheckedSignatures | None = None,
    ) -> None:
        self.network_id = network_id
        self.checked = CheckedSignatures() if checked is None else checked
        self.admission: Admission = admission
        self.certified = admission == "certified"
        self.roots = frozenset(roots)
        self.revoked: set[bytes] = set()
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def learn(self, chain: tuple[Signed, ...], *, unix: float) -> tuple[bytes, Grant]:
        """Verify `chain`, remember it, and return its hash and what it grants.

        Raises what `verify_chain` raises.
        """
        name = chain_hash(chain)
        known = self._known.get(name)
        if known is None or unix > known.grant.not_after + limits.CLOCK_SKEW_SECONDS:
            grant = verify_chain(chain, roots=self.roots, now=unix, revoked=self.revoked)
            known = self._known[name] = _Known(tuple(chain), grant)
            if len(self._known) > CHAINS_MAX:
                self._known.popitem(last=False)
        self._known.move_to_end(name)
        return name, known.grant

    def chain(self, name: bytes) -> tuple[Signed, ...] | None:
        """The verified chain with this hash, if it is remembered."""
        known = self._known.get(name)
        return None if known is None else known.chain

    def revoke(self, key: bytes) -> None:
        """Believe nothing any more that `key` signed or was granted."""
        self.revoked.add(key)
        for name, known in list(self._known.items()):
            if known.grant.subject == key or any(link.key == key for link in known.chain):
                del self._known[name]

    def admit(
        self, key: bytes, chain: tuple[Signed, ...] | None, *, server: bool, unix: float
    ) -> Grant | None:
        """Check that the node with `key` may take part, as a server or as a client.

        Raises `Revoked`, `RoleNotGranted`, `BrokenChain` and what `verify_chain` raises.
        """
        if key in self.revoked:
            raise Revoked("the peer's key")
        if not self.certified:
            return None
        if not chain:
            raise BrokenChain("this network is certified and the peer showed no chain")
        _, grant = self.learn(chain, unix=unix)
        if grant.subject != key:
            raise BrokenChain("the chain was given to another key than the peer's")
        if server and not SERVER_ROLES.intersection(grant.roles):
            raise RoleNotGranted(f"server (the chain grants {', '.join(grant.roles)})")
        return grant

    def stands(self, signed: Signed, chain_name: bytes | None) -> bool:
        """Whether nothing was revoked, or forgotten, that a verified record rests on."""
        return signed.key not in self.revoked and (chain_name is None or chain_name in self._known)

    def check_record(
        self, signed: Signed, chain_name: bytes | None, *, unix: float
    ) -> tuple[NamedRecord, Cid]:
        """Check all of a record or tombstone: size, signature, name, period, the signer's right to the name.

        Raises `ChainUnknown` where the chain has to be fetched first; otherwise the fault.
        """
        if signed.key in self.revoked:
            raise Revoked("the record's key")
        record, cid = verify_named(signed, now=unix, check=self.checked.check)
        grant = None
        if chain_name is not None:
            known = self._known.get(chain_name)
            if known is None:
                raise ChainUnknown(record.cid)
            grant = known.grant
            if unix > grant.not_after + limits.CLOCK_SKEW_SECONDS:
                raise Expired(f"the delegation chain behind {record.cid}")
            self._known.move_to_end(chain_name)
        if self.certified and cid.prefix.startswith("p2p."):
            raise PrefixNotCovered(f"{cid.prefix} (this network is certified: no self-certified names)")
        check_names(cid.prefix, signed.key, grant)
        return record, cid
