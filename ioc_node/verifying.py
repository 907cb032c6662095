"""Whether a core node leaves something out: two are asked the same, and what only one offers is looked at again.

Equal digests say that both hold the same records; so one that replicates only a part is compared with another of the
same part, and not at all for a demand that allows more. Status is not in digests and reaches core nodes a moment apart,
so only an omission that lasts through several comparisons is reported. Offers are asked for in order of price, which
leaves no room for taste.
"""

from typing import Final

import msgspec
import trio

from ioc_node.api import Omission, Verdict
from ioc_node.core_links import CoreLinks
from ioc_node.core_side import CoreSide
from ioc_node.errors import PeerUnreachable
from ioc_node.forwarding import INTEREST
from ioc_node.market.query import UNSETTLED
from ioc_wire.codec import decode
from ioc_wire.errors import Busy, Closing
from ioc_wire.market import Cursor, FindOffers, OffersFound
from ioc_wire.records import ResourceRecord

COMPARISONS: Final = 3
ROUNDS_MAX: Final = 8
PAUSE_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 5.0
ASKED_MAX: Final = 5
"""Core nodes that are asked at most, until two hold the same records."""
OWN: Final = "this node"


async def compare_cores(cores: CoreLinks, core: CoreSide | None, message: FindOffers) -> Verdict:
    """Ask two core nodes, this one among them if it is one. Raises `PeerUnreachable` where there are no two."""
    after = message.after or Cursor(0.0, 0)
    asked = msgspec.structs.replace(
        message, policy="cost", after=after, explain=False, forwarded=True, nearest_first=False
    )
    names = [OWN if core is not None else (await cores.any()).peer.name]
    names = await _one_more(cores, names)
    pair = (names[0], names[1])
    lasting: set[tuple[str, str]] | None = None
    equal = 0
    for _ in range(ROUNDS_MAX):
        answers = await _ask_equals(cores, core, names, asked)
        if answers:
            if (now := tuple(answers)) != pair:
                pair, lasting, equal = (now[0], now[1]), None, 0  # what lasted was between others
            equal += 1
            found = _omissions(pair, list(answers.values()))
            lasting = found if lasting is None else lasting & found
            if not lasting or equal == COMPARISONS:
                break
        else:
            names = await _one_more(cores, names)
        await trio.sleep(PAUSE_SECONDS)
    omissions = tuple(Omission(name, cid) for name, cid in sorted(lasting or ()))
    return Verdict(pair, lasting is not None and (not lasting or equal == COMPARISONS), equal, omissions)


async def _one_more(cores: CoreLinks, names: list[str]) -> list[str]:
    """These core nodes and another one, where there is one. Raises `PeerUnreachable` where that leaves one alone."""
    if len(names) == ASKED_MAX:
        return names
    asked = frozenset(link.peer.key for link in cores.linked() if link.peer.name in names)
    try:
        another = (await cores.any(but=asked)).peer.name
    except PeerUnreachable:
        another = names[0]
    if another not in names:
        return [*names, another]
    if len(names) == 1:
        raise PeerUnreachable("a second core node is needed to compare with, and none can be reached now")
    return names


async def _ask_equals(
    cores: CoreLinks, core: CoreSide | None, names: list[str], message: FindOffers
) -> dict[str, OffersFound]:
    """Answers of the first core node that holds what the demand allows, and of one that holds the same records; empty
    where there are no two."""
    first: tuple[str, OffersFound] | None = None
    for name in names:
        try:
            answer = await _ask(cores, core, name, message)
        except PeerUnreachable:
            if len(names) == 2:
                raise
            continue
        if answer.digest == UNSETTLED or any(item.condition == INTEREST for item in answer.removals):
            continue
        if first is None:
            first = name, answer
        elif answer.digest == first[1].digest:
            return {first[0]: first[1], name: answer}
    return {}


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
