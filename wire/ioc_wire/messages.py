"""Every body that travels over a link between nodes, as one union of tagged messages.

A body is an array whose first element is the type's tag. An unknown tag is refused with `UnknownType`, so that a
newer peer learns at once that it is not understood.
"""

from typing import Final

from ioc_wire import (
    bulk,
    bulletins,
    datasets,
    express,
    gossip,
    interest,
    latency,
    market,
    membership,
    plumtree,
    relay,
    tasks,
)
from ioc_wire.links import UnionCodec

Body = (
    gossip.PublishHead
    | gossip.Published
    | gossip.HeadsAnnounced
    | gossip.StatusAnnounced
    | gossip.CompareHeads
    | gossip.HeadsCompared
    | gossip.FetchHeads
    | gossip.HeadsPage
    | gossip.FetchEntries
    | gossip.EntriesPage
    | gossip.ExchangePeers
    | gossip.PeersKnown
    | gossip.RevocationsAnnounced
    | gossip.CompareRevocations
    | gossip.RevocationsCompared
    | gossip.FetchRevocations
    | membership.Probe
    | membership.AskProbe
    | membership.ProbeAnswered
    | membership.CompareMembers
    | membership.MembersVector
    | membership.MembersTold
    | plumtree.Neighbour
    | plumtree.IHave
    | plumtree.Graft
    | plumtree.Prune
    | interest.InterestTold
    | bulletins.BulletinsTold
    | bulletins.FetchBulletins
    | latency.LatencyTold
    | latency.FetchLatency
    | latency.FetchPlaces
    | latency.PlacesTold
    | latency.PlaceNoted
    | latency.FindNear
    | latency.NearFound
    | market.FindOffers
    | market.OffersFound
    | market.ReserveLease
    | market.LeaseGranted
    | market.ReleaseLease
    | market.MeasureRtt
    | market.RttMeasured
    | market.ResolveRecord
    | market.RecordResolved
    | tasks.StartTask
    | tasks.TaskStarted
    | tasks.WatchTask
    | tasks.TaskProgress
    | tasks.CancelTask
    | tasks.SettleTask
    | tasks.GrantOutput
    | tasks.Done
    | bulk.RequestTicket
    | bulk.TicketIssued
    | bulk.RequestTickets
    | bulk.TicketsIssued
    | relay.OpenCircuit
    | relay.AcceptCircuit
    | relay.FeedCircuit
    | relay.CircuitData
    | relay.OpenRelay
    | relay.RelayOpened
    | relay.RelayMetered
    | relay.CallReader
    | relay.MeetAtRelay
    | datasets.RequestDataset
    | datasets.DatasetTold
    | express.OfferShipment
    | express.ShipmentAccepted
    | express.ReportShipment
    | express.ShipmentSettled
    | express.CancelShipment
)

NODE_CODEC: Final = UnionCodec(Body)
"""The codec of links between nodes."""
