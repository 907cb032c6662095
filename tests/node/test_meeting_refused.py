"""What a hidden holder does not do, whoever asks: call strangers, call third parties, go to anybody's relay."""

import os
from pathlib import Path

import pytest
import trio

from ioc_wire.bulk import RequestTicket, TicketIssued
from ioc_wire.errors import NotFound, TicketRefused, WrongPeer
from ioc_wire.relay import CallReader, MeetAtRelay, OpenRelay, RelayOpened
from ioc_wire.tasks import Done
from tests.node.conftest import MakeHome
from tests.node.test_outbound_only import open_town


async def test_only_a_reader_with_a_ticket_is_met_and_only_where_it_is_known_to_be(
    make_home: MakeHome, tmp_path: Path
) -> None:
    async with open_town(make_home, provider=True, consumer=False) as town:
        contact = town.provider.where.contact()
        assert contact is not None
        link = await town.consumer.links.reach(contact)
        call, own = b"c" * 32, ("127.0.0.1", town.consumer.bulk.port)
        with pytest.raises(TicketRefused, match="no ticket here"):
            await link.request(CallReader(call, *own), Done)
        with pytest.raises(TicketRefused, match="no ticket here"):
            await link.request(MeetAtRelay("127.0.0.1", 9, b"t" * 16), Done)
        (tmp_path / "data").write_bytes(os.urandom(100))
        added = await town.provider.add(tmp_path / "data")
        issued = await link.request(RequestTicket(added.blob), TicketIssued)
        assert issued.ticket.endpoints[0].via == town.core.identity.public_key
        with pytest.raises(WrongPeer, match="nobody else is called"):
            await link.request(CallReader(call, "192.0.2.9", 7401), Done)
        with pytest.raises(WrongPeer, match="no core node that this holder has a link to"):
            await link.request(MeetAtRelay("192.0.2.9", 7402, b"t" * 16), Done)


async def test_a_call_that_nobody_expects_is_refused(make_home: MakeHome, tmp_path: Path) -> None:
    """The holder calls, names a call that was never asked for, and is told so; the reader serves on."""
    async with open_town(make_home, provider=True, consumer=False) as town:
        with trio.fail_after(10):
            await town.provider.bulk.plane.call_reader(
                "127.0.0.1",
                town.consumer.bulk.port,
                town.consumer.identity.public_key,
                b"c" * 32,
            )
            while not town.consumer.bulk.counters.refused:
                await trio.sleep(0.01)


async def test_a_relay_leads_to_linked_peers_only(make_home: MakeHome) -> None:
    async with open_town(make_home, provider=True, consumer=True) as town:
        core = town.consumer.cores.linked()[0]
        with pytest.raises(NotFound, match="a link from here to"):
            async with core.open_stream(OpenRelay(b"k" * 32), RelayOpened) as items:
                await anext(items)
        assert town.core.relaying is not None
        async with core.open_stream(OpenRelay(town.provider.identity.public_key), RelayOpened) as items:
            await anext(items)
            assert town.core.relaying.datagrams.sessions == 1
        with trio.fail_after(3):
            while town.core.relaying.datagrams.sessions:
                await trio.sleep(0.02)
