"""What publishing a whole country's identifiers costs: the real planner at full size, the real machines at a smaller.

The small one checks the plan: same servers, same providers' tables, records through real sessions into real stores.
Providers are clients with bucketed tables, so that they do not see the whole network and have to look up; with a full
table a sweep needs no lookup at all.
"""

from functools import partial
from typing import Any, Final

from ioc_node.core.atlas import Atlas, Plan, plan
from ioc_node.core.dht import DhtMachine
from ioc_node.core.events import Chain, PutReport, PutStarted, SweepReport, SweepStarted
from ioc_node.core.routing import FULL_TABLE_SERVERS_MAX, Contact
from ioc_node.core.sweeping import SWEEP_RECORDS_MAX
from ioc_testnet.sim import population
from ioc_testnet.sim.latency import ConstantLatency
from ioc_testnet.sim.population import Oracle, Published, derived
from ioc_testnet.sim.simulation import Progress
from ioc_testnet.sim.world import Faults, SimNode, World
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.cid import cid_key, self_certified_prefix
from ioc_wire.codec import encode
from ioc_wire.signed import Signed, public_bytes

SERVERS: Final = 500
PROVIDERS: Final = 136
RECORDS_EACH: Final = 7500
"""136 times that is 1.02 M."""
CHECK_PROVIDERS: Final = 34
CHECK_RECORDS_EACH: Final = 75
ONE_BY_ONE: Final = 40
"""Records that are put one by one, to see what one costs."""
SEED: Final = 1
SECONDS_MAX: Final = 600.0


def compare_sweeps(progress: Progress) -> dict[str, Any]:
    """Plan the full size, run the small one, put some one by one."""
    world, servers, providers = _network()
    oracle = Oracle([node.machine.contact for node in servers])
    progress(f"{SERVERS} servers and {CHECK_PROVIDERS} providers are up")
    check = _check(world, providers, oracle, progress)
    one = _one_by_one(world, providers[0])
    total = PROVIDERS * RECORDS_EACH
    planned = _planned(oracle, check["records_per_message"], progress)
    return {
        "servers": SERVERS,
        "providers": PROVIDERS,
        "records": total,
        "planned": planned,
        "per_record": {
            "lookups": total,
            "requests_per_record": round(one, 3),
            "requests": round(total * one),
        },
        "check": check,
    }


def _network() -> tuple[World, list[SimNode], list[SimNode]]:
    world = World(ConstantLatency(0.02), Faults(0, 0, 0), derived(SEED, "wire"))
    addresses = population.open_addresses()
    for index in range(SERVERS + CHECK_PROVIDERS):
        server = index < SERVERS
        address = next(addresses)
        machine = population.make_machine(
            DhtMachine, population.key_of(derived(SEED, "sweep", index)), address,
            derived(SEED, "machine", index), server=server, servers=SERVERS if server else FULL_TABLE_SERVERS_MAX + 1,
        )  # fmt: skip
        world.add(machine, address)
    servers, providers = world.nodes[:SERVERS], world.nodes[SERVERS:]
    oracle = Oracle([node.machine.contact for node in servers])
    for node in world.nodes:
        oracle.warm(node.machine, derived(SEED, "warm", node.index))
    return world, servers, providers


def _records(number: int, count: int) -> list[Published]:
    """One provider's identifiers."""
    owner = population.key_of(derived(SEED, "provider", number))
    prefix = self_certified_prefix(public_bytes(owner))
    cids = [f"ioc:{prefix}/gen/xinjiang/az1/h{index}" for index in range(count)]
    return [Published(cid, cid_key(cid), owner) for cid in cids]


def _check(world: World, providers: list[SimNode], oracle: Oracle, progress: Progress) -> dict[str, Any]:
    """The small size on the real machines, beside what the planner says of the same keys and tables."""
    reports: list[SweepReport] = []
    plans: list[Plan] = []
    keys: list[bytes] = []
    per_message = 1

    def ended(result: object, now: float) -> None:
        assert isinstance(result, SweepReport), result
        reports.append(result)

    for number, provider in enumerate(providers):
        records = _records(number, CHECK_RECORDS_EACH)
        signed = tuple((record.sign_next(world.now), ()) for record in records)
        per_message = wire.PLAINTEXT_BYTES_MAX // len(encode(signed[0][0]))
        keys += [record.key for record in records]
        known = [peer.contact for peer in provider.machine.table.peers()]
        plans.append(_plan([record.key for record in records], oracle, per_message, known))
        world.start(provider, partial(_sweep, signed), ended)
    assert world.run(world.now + SECONDS_MAX, lambda: len(reports) == len(providers)), "a sweep did not end"
    world.run(world.now + 5)
    progress("the sweeps of the real machines have ended")
    held = sum(
        node is not None and node.machine.store.get(key, population.UNIX + world.now) is not None
        for key in keys
        for node in (world.at(contact.address) for contact in oracle.nearest(key, limits.REPLICATION))
    )
    return {
        "providers": len(providers),
        "records": len(keys),
        "records_per_message": per_message,
        "replicas_held": round(held / (len(keys) * limits.REPLICATION), 6),
        "missed": sum(len(report.missed) for report in reports),
        "real_lookups": sum(report.lookups for report in reports),
        "planned_lookups": sum(each.lookups for each in plans),
        "real_requests": sum(report.messages for report in reports),
        "planned_record_messages": sum(each.messages for each in plans),
    }


def _one_by_one(world: World, provider: SimNode) -> float:
    """Mean requests of a put, its lookup's counted in, on the real machine."""
    reports: list[PutReport] = []

    def ended(result: object, now: float) -> None:
        assert isinstance(result, PutReport), result
        reports.append(result)

    for record in _records(PROVIDERS, ONE_BY_ONE):
        world.start(provider, partial(_put, record.sign_next(world.now)), ended)
    assert world.run(world.now + SECONDS_MAX, lambda: len(reports) == ONE_BY_ONE), "a put did not end"
    return sum(len(report.trace.hops) for report in reports) / len(reports)


def _planned(oracle: Oracle, per_message: int, progress: Progress) -> dict[str, Any]:
    """The full size: each provider sweeps its records in as few sweeps as their bound allows, in order of key."""
    plans: list[Plan] = []
    chance = derived(SEED, "planned")
    for number in range(PROVIDERS):
        keys = sorted(record.key for record in _records(number, RECORDS_EACH))
        client = population.make_machine(
            DhtMachine, population.key_of(chance), ("1.0.0.1", population.PORT), chance, server=False,
            servers=FULL_TABLE_SERVERS_MAX + 1,
        )  # fmt: skip
        oracle.warm(client, chance)
        known = [peer.contact for peer in client.table.peers()]
        plans += [_plan(keys[first : first + SWEEP_RECORDS_MAX], oracle, per_message, known)
                  for first in range(0, len(keys), SWEEP_RECORDS_MAX)]  # fmt: skip
        if number % 20 == 19:
            progress(f"planned {number + 1} of {PROVIDERS} providers")
    return {
        "sweeps": len(plans),
        "lookups": sum(each.lookups for each in plans),
        "record_messages": sum(each.messages for each in plans),
        "writes": sum(each.writes for each in plans),
        "unplaced": sum(each.unplaced for each in plans),
    }


def _plan(keys: list[bytes], oracle: Oracle, per_message: int, known: list[Contact]) -> Plan:
    atlas = Atlas()
    for contact in known:
        atlas.add(contact)
    numbers = sorted(int.from_bytes(key, "big") for key in keys)
    return plan(numbers, partial(_ask, oracle), atlas=atlas, records_per_message=per_message)


def _ask(oracle: Oracle, point: int) -> list[Contact]:
    return oracle.nearest(point.to_bytes(32, "big"), limits.REPLICATION)


def _sweep(records: tuple[tuple[Signed, Chain], ...], number: int) -> SweepStarted:
    return SweepStarted(number, records)


def _put(record: Signed, number: int) -> PutStarted:
    return PutStarted(number, record, ())
