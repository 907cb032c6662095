"""Whether a core node leaves something out: two are asked the same, and what only one offers is looked at again.

Equal digests say that both hold the same records. Status is not in them and reaches core nodes a moment apart, so only
an omission that lasts through several comparisons is reported. Offers are asked for in order of price, which leaves no
room for taste.
"""

from typing import Final

import msgspec
import trio

from ioc_node.api import Omission, Verdict
from ioc_node.core_links import CoreLinks
from ioc_node.core_side import CoreSide
from ioc_node.errors import PeerUnreachable
from ioc_node.market.query import UNSETTLED
from ioc_wire.codec import decode
from ioc_wire.errors import Busy, Closing
from ioc_wire.market import Cursor, FindOffers, OffersFound
from ioc_wire.records import ResourceRecord

COMPARISONS: Final = 3
ROUNDS_MAX: Final = 8
PAUSE_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 5.0
OWN: Final = "this node"


async def compare_cores(cores: CoreLinks, core: CoreSide | None, message: FindOffers) -> Verdict:
    """Ask two core nodes, this one among them if it is one. Raises `PeerUnreachable` where there are no two."""
    after = message.after or Cursor(0.0, 0)
    asked = msgspec.structs.replace(
        message, policy="cost", after=after, explain=False, forwarded=True, nearest_first=False
    )
    names = await _two(cores, own=core is not None)
    lasting: set[tuple[str, str]] | None = None
    equal = 0
    for _ in range(ROUNDS_MAX):
        answers = [await _ask(cores, core, name, asked) for name in names]
        if answers[0].digest == answers[1].digest != UNSETTLED:
            equal += 1
            found = _omissions(names, answers)
            lasting = found if lasting is None else lasting & found
            if not lasting or equal == COMPARISONS:
                break
        await trio.sleep(PAUSE_SECONDS)
    omissions = tuple(Omission(name, cid) for name, cid in sorted(lasting or ()))
    return Verdict(names, lasting is not None and (not lasting or equal == COMPARISONS), equal, omissions)


async def _two(cores: CoreLinks, *, own: bool) -> tuple[str, str]:
    first = None if own else await cores.any()
    try:
        second = await cores.any(but=frozenset({first.peer.key} if first is not None else ()))
    except PeerUnreachable:
        raise PeerUnreachable(
            "a second core node is needed to compare with, and none can be reached now"
        ) from None
    return (first.peer.name if first is not None else OWN, second.peer.name)


async def _ask(cores: CoreLinks, core: CoreSide | None, name: str, message: FindOffers) -> OffersFound:
    if name == OWN:
        assert core is not None
        return await core.answer(message)
    link = next((link for link in cores.linked() if link.peer.name == name), None)
    if link is None:
        raise PeerUnreachable(f"the link to core node {name[:11]} is down")
    try:
        with trio.fail_after(ANSWER_SECONDS):
            return await link.request(message, OffersFound)
    except (Busy, Closing, trio.TooSlowError) as error:
        raise PeerUnreachable(f"core node {name[:11]} does not answer: {error}") from None


def _omissions(names: tuple[str, str], answers: list[OffersFound]) -> set[tuple[str, str]]:
    """Who left out what the other offers, as far as its own page reaches."""
    found = set()
    offered = [
        {_cid(offer.record.payload): offer.price_micro for offer in answer.offers} for answer in answers
    ]
    for name, answer, mine, theirs in zip(names, answers, offered, reversed(offered), strict=True):
        reach = max(mine.values(), default=0) if answer.cursor is not None else None
        found |= {
            (name, cid)
            for cid, price in theirs.items()
            if cid not in mine and (reach is None or price < reach)
        }
    return found


def _cid(payload: bytes) -> str:
    return decode(payload, ResourceRecord).cid
