"""Whom this node believes: the network's rule, and a bounded cache of verified delegation chains.

A chain is verified once and remembered by its hash, so that checking a record costs one Ed25519 verification.
A remembered chain is believed until its last link ends or something in it is revoked.

A revocation counts from the moment that `take` has taken it in: nothing that rests on it is verified any more. What was
verified before is ended by whoever holds it (sessions, records, catalogue, links), told by the `Ended`.
"""

import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from ioc_node.core.checked import CheckedSignatures
from ioc_node.core.revocations import Revocations
from ioc_wire import limits
from ioc_wire.authority import (
    SERVER_ROLES,
    Grant,
    RevocationNews,
    chain_hash,
    check_names,
    verify_chain,
)
from ioc_wire.cid import Cid
from ioc_wire.dht import HolderRecord, verify_holder
from ioc_wire.errors import BrokenChain, ChainUnknown, Expired, PrefixNotCovered, Revoked, RoleNotGranted
from ioc_wire.records import NamedRecord, verify_named
from ioc_wire.signed import Signed

CHAINS_MAX: Final = 4096
"""Verified chains remembered, about 1 KiB each, and keys admitted with one."""

Admission = Literal["open", "certified"]


class _Known(NamedTuple):
    chain: tuple[Signed, ...]
    grant: Grant

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Issuers from the first on, then the last subject."""
        return (*(link.key for link in self.chain), self.grant.subject)


class _Either(Collection[bytes]):
    """A live view of two sets."""

    def __init__(self, first: set[bytes], second: set[bytes]) -> None:
        self._first, self._second = first, second

    def __contains__(self, key: object) -> bool:
        return key in self._first or key in self._second

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._first | self._second)

    def __len__(self) -> int:
        return len(self._first | self._second)


class Ended(NamedTuple):
    """What a revocation ended: `keys` whose nodes may take part no more (with what they showed so far; another chain
    admits them again), and the names of `chains` that were believed.
    `whole` is the key that was revoked whole, if one was: also its word without any chain counts no more.
    """

    keys: frozenset[bytes]
    chains: frozenset[bytes]
    whole: bytes | None

    def ends(self, signed: Signed, chain_name: bytes | None) -> bool:
        """Whether what was verified of these before rested on it."""
        return signed.key == self.whole or chain_name in self.chains


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
        self.revocations = Revocations(roots=self.roots, certified=self.certified)
        self._forbidden: set[bytes] = set()
        self.revoked: Collection[bytes] = _Either(self._forbidden, self.revocations.whole)
        """Keys of which nothing counts; a live view."""
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._admitted: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()

    def learn(self, chain: tuple[Signed, ...], *, unix: float) -> tuple[bytes, Grant]:
        """Verify `chain`, remember it, and return its hash and what it grants.

        Raises what `verify_chain` raises.
        """
        name = chain_hash(chain)
        known = self._known.get(name)
        if known is None or unix > known.grant.not_after + limits.CLOCK_SKEW_SECONDS:
            grant = verify_chain(
                chain,
                roots=self.roots,
                now=unix,
                revoked=self.revoked,
                ended=self.revocations.ended,
                self_certified=not self.certified,
            )
            known = self._known[name] = _Known(tuple(chain), grant)
            if len(self._known) > CHAINS_MAX:
                self._known.popitem(last=False)
        self._known.move_to_end(name)
        return name, known.grant

    def chain(self, name: bytes) -> tuple[Signed, ...] | None:
        """The verified chain with this hash, if it is remembered."""
        known = self._known.get(name)
        return None if known is None else known.chain

    def take(self, news: RevocationNews, *, unix: float) -> Ended | None:
        """Take in a revocation; None where it tells nothing new.

        Raises what `verify_revocation` raises, and `OverQuota`.
        """
        remembered = self.revocations.take(news, unix=unix)
        if remembered is None:
            return None
        return self._forget_ended(remembered.revocation.subject, whole=remembered.whole)

    def revoke(self, key: bytes) -> Ended:
        """Believe nothing any more that `key` signed or was granted, on this node's own account and for good."""
        self._forbidden.add(key)
        return self._forget_ended(key, whole=True)

    def _forget_ended(self, key: bytes, *, whole: bool) -> Ended:
        ended = {name: known for name, known in self._known.items() if self._is_ended(known.keys)}
        for name in ended:
            del self._known[name]
        keys = {admitted for admitted, keys in self._admitted.items() if self._is_ended(keys)}
        for admitted in keys:
            del self._admitted[admitted]
        if whole:
            keys.add(key)
        return Ended(frozenset(keys), frozenset(ended), key if whole else None)

    def _is_ended(self, keys: Sequence[bytes]) -> bool:
        """Whether a chain with these keys, the first issuer's first, is broken by what was revoked."""
        revoked, pairs = self.revoked, self.revocations.ended
        if any(key in revoked for key in keys):
            return True
        return bool(pairs) and any(pair in pairs for pair in itertools.combinations(keys, 2))

    def has_ended(self, key: bytes, chain: Sequence[Signed]) -> bool:
        """Whether `key`, or the verified chain that it showed, was revoked."""
        return key in self.revoked or self._is_ended([*(link.key for link in chain), key])

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
        name, grant = self.learn(chain, unix=unix)
        if grant.subject != key:
            raise BrokenChain("the chain was given to another key than the peer's")
        if server and not SERVER_ROLES.intersection(grant.roles):
            raise RoleNotGranted(f"server (the chain grants {', '.join(grant.roles)})")
        self._admitted[key] = self._known[name].keys
        self._admitted.move_to_end(key)
        if len(self._admitted) > CHAINS_MAX:
            self._admitted.popitem(last=False)
        return grant

    def stands(self, signed: Signed, chain_name: bytes | None) -> bool:
        """Whether nothing was revoked, or forgotten, that a verified record rests on."""
        return signed.key not in self.revoked and (chain_name is None or chain_name in self._known)

    def check_holder(self, signed: Signed, *, unix: float) -> HolderRecord:
        """Check that a node announces a blob; raises `Revoked` and what `verify_holder` raises."""
        if signed.key in self.revoked:
            raise Revoked("the holder's key")
        return verify_holder(signed, now=unix)

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
