"""The responder's half before it keeps any state: cookies, prekeys, and which cookies were already spent.

A cookie proves that the initiator receives at the address it sends from. It is good for `COOKIE_STEPS` steps
of `COOKIE_STEP_SECONDS` and can be spent once. Spent cookies are remembered, with the ACCEPT they earned, so
that a repeated HANDSHAKE is answered the same way; when that memory is full the secret is changed, which
voids all cookies still out at once rather than let an old one be spent twice.
"""

import hmac
from collections import OrderedDict
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ioc_node.core.chance import Chance
from ioc_wire.dht import COOKIE_BYTES, Knock, Whoareyou, pack_host, prekey_signed_bytes
from ioc_wire.signed import public_bytes

Address = tuple[str, int]

COOKIE_STEP_SECONDS: Final = 8
COOKIE_STEPS: Final = 3
SPENT_MAX: Final = 4096
PREKEY_SECONDS: Final = 3600
"""A prekey is handed out for this long and accepted for twice as long."""


class Prekey:
    """An X25519 key pair signed by the node key."""

    __slots__ = ("identifier", "not_after", "private", "public", "retires", "signature")

    def __init__(
        self, key: Ed25519PrivateKey, network_id: bytes, chance: Chance, now: float, unix: float
    ) -> None:
        self.private = X25519PrivateKey.from_private_bytes(chance.randbytes(32))
        self.public = self.private.public_key().public_bytes_raw()
        self.identifier = self.public[:8]
        self.retires = now + PREKEY_SECONDS
        self.not_after = int(unix) + 2 * PREKEY_SECONDS
        self.signature = key.sign(prekey_signed_bytes(network_id, self.public, self.not_after))


class Spent:
    """What became of a cookie: the HANDSHAKE that spent it and the ACCEPT to repeat."""

    __slots__ = ("accept", "accepts", "at", "signature")

    def __init__(self, signature: bytes, at: float) -> None:
        self.signature = signature
        self.accept = b""
        self.accepts = 1
        self.at = at


class Challenges:
    """Gives out WHOAREYOUs and checks what comes back. Not a machine of its own: part of `Sessions`."""

    def __init__(self, key: Ed25519PrivateKey, network_id: bytes, chance: Chance, unix_offset: float) -> None:
        self._key = key
        self._public = public_bytes(key)
        self._network_id = network_id
        self._chance = chance
        self._unix_offset = unix_offset
        self._secret = chance.randbytes(32)
        self._prekeys: list[Prekey] = []
        self._spent: OrderedDict[bytes, Spent] = OrderedDict()

    def set_clock(self, unix_offset: float) -> None:
        """Seconds since 1970 are from now on the machine's seconds plus this."""
        self._unix_offset = unix_offset

    def whoareyou(self, knock: Knock, address: Address, now: float) -> bytes:
        """The answer to a KNOCK; nothing is remembered."""
        prekey = self._current(now)
        step = int(now / COOKIE_STEP_SECONDS)
        cookie = self._cookie(step, knock.node_id, knock.session_id, knock.nonce, address)
        return Whoareyou(
            knock.session_id,
            knock.nonce,
            cookie,
            self._public,
            prekey.public,
            prekey.not_after,
            prekey.signature,
        ).encode()

    def is_ours(
        self, cookie: bytes, node_id: bytes, session_id: bytes, nonce: bytes, address: Address, now: float
    ) -> bool:
        """Whether `cookie` was given to this very initiator, at this address, not long ago."""
        step = int.from_bytes(cookie[:4], "big")
        age = (int(now / COOKIE_STEP_SECONDS) & 0xFFFFFFFF) - step
        if not 0 <= age < COOKIE_STEPS:
            return False
        return hmac.compare_digest(cookie, self._cookie(step, node_id, session_id, nonce, address))

    def spent(self, cookie: bytes) -> Spent | None:
        """What an earlier HANDSHAKE got for this cookie."""
        return self._spent.get(cookie)

    def spend(self, cookie: bytes, signature: bytes, now: float) -> Spent:
        """Note that `cookie` is used up by the HANDSHAKE with `signature`."""
        self.forget_old(now)
        if len(self._spent) >= SPENT_MAX:
            self._spent.clear()
            self._secret = self._chance.randbytes(32)
        spent = self._spent[cookie] = Spent(signature, now)
        return spent

    def forget_old(self, now: float) -> None:
        """Free what can no longer be repeated, and prekeys that are no longer accepted; called now and then."""
        self._prekeys = [prekey for prekey in self._prekeys if now < prekey.retires + PREKEY_SECONDS]
        horizon = now - COOKIE_STEPS * COOKIE_STEP_SECONDS
        while self._spent and next(iter(self._spent.values())).at < horizon:
            self._spent.popitem(last=False)

    def prekey(self, identifier: bytes, now: float) -> Prekey | None:
        """The prekey with this identifier, if it is still accepted."""
        for prekey in self._prekeys:
            if prekey.identifier == identifier and now < prekey.retires + PREKEY_SECONDS:
                return prekey
        return None

    def _current(self, now: float) -> Prekey:
        if not self._prekeys or now >= self._prekeys[0].retires:
            fresh = Prekey(self._key, self._network_id, self._chance, now, now + self._unix_offset)
            self._prekeys = [fresh, *self._prekeys[:1]]
        return self._prekeys[0]

    def _cookie(self, step: int, node_id: bytes, session_id: bytes, nonce: bytes, address: Address) -> bytes:
        stamp = (step & 0xFFFFFFFF).to_bytes(4, "big")
        where = pack_host(address[0]) + address[1].to_bytes(2, "big")
        mac = hmac.digest(self._secret, stamp + session_id + nonce + node_id + where, "sha256")
        return stamp + mac[: COOKIE_BYTES - 4]
