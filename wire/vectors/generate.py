"""Write the golden vectors (JSON beside this file) and the generated tables of `wire/SPEC.md`.

    python wire/vectors/generate.py            write what changed
    python wire/vectors/generate.py --check    change nothing; name what is stale and exit with 1

Everything is fixed: keys come from the SHA-256 of a name, times are constants, Ed25519 is deterministic. The tests
hold these files against `ioc_wire` and, without it, against msgpack, cryptography and blake3.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import dht_messages
import dht_session
import spec_tables
from people import CID, DAY, NOW, PEOPLE, Vector, digest, key_of, link, public, signed_vector, struct_vector
from plain import sample
from structs import modules, structs_of

from ioc_bootstrap.network import network_id_of
from ioc_wire import (
    authority,
    bulk,
    cid,
    datasets,
    identity,
    links,
    market,
    merkle,
    metering,
    pathprobe,
    records,
    tasks,
)
from ioc_wire.codec import encode
from ioc_wire.signed import Signed

HERE: Final = Path(__file__).resolve().parent
SPEC: Final = HERE.parent / "SPEC.md"


# -- one function per file


def identities() -> Vector:
    return {
        "people": {
            name: {
                "private_key": digest(name).hex(),
                "public_key": public(name).hex(),
                "node_id": identity.node_id_of(public(name)).hex(),
                "node_id_text": identity.format_node_id(identity.node_id_of(public(name))),
                "self_certified_prefix": cid.self_certified_prefix(public(name)),
            }
            for name in PEOPLE
        },
        "networks": [
            network("harbour", "certified", 2, "root", "bob", "carol"),
            network("meadow", "open", 0),
        ],
    }


def network(name: str, admission: str, threshold: int, *root_names: str) -> Vector:
    """A network ID, and the array it is the hash of."""
    keys, nonce = sorted(map(public, root_names)), digest(name)[:16]
    return {
        "name": name,
        "admission": admission,
        "threshold": threshold,
        "root_keys": [key.hex() for key in keys],
        "nonce": nonce.hex(),
        "bytes": encode(("ioc/1", "network", name, admission, threshold, tuple(keys), nonce)).hex(),
        "network_id": network_id_of(name, admission, threshold, keys, nonce).hex(),
    }


def identifiers() -> Vector:
    good = [
        f"{CID}/gpu0",
        CID,
        "ioc:cn.r3301.20004/ai/3301/az1",
        "ioc:cn.n0.20004/gen/3301/z",
        "ioc:cn.ienergy42.20004/edge/9999/z",
        "ioc:de.r0001.00001/gen/berlin/az-1/h_0",
        f"ioc:{cid.self_certified_prefix(public('alice'))}/sup/home/z0",
    ]
    bad = [
        "",
        "ioc:CN.r3301.20004/ai/3301/az1",
        "ioc:cn.r330.20004/ai/3301/az1",
        "ioc:cn.r3301.2000/ai/3301/az1",
        "ioc:cn.r3301.20004/gpu/3301/az1",
        "ioc:cn.r3301.20004/ai/hangzhou/az1",
        "ioc:cn.r3301.20004/ai/3301",
        "ioc:cn.r3301.20004/ai/3301/-a",
        "ioc:cn.r3301.20004/ai/3301/" + "a" * 33,
        f"{CID}/gpu0/x",
        f"{CID}/",
        f"{CID}\n",
    ]
    pairs = [
        ("", "cn"),
        ("cn", "cn"),
        ("cn", "cn.r3301"),
        ("cn.r33", "cn.r3301"),
        ("cn.r3301", "cn"),
        ("cn", "de"),
    ]
    return {
        "good": [
            {"text": text, "prefix": parsed.prefix, "path": list(parsed.path), "key": cid.cid_key(text).hex()}
            for text in good
            for parsed in [cid.parse_cid(text)]
        ],
        "bad": bad,
        "covers": [{"outer": a, "inner": b, "covers": cid.prefix_covers(a, b)} for a, b in pairs],
    }


def chains() -> Vector:
    good = [
        link("root", "beijing", "cn", "national"),
        link("beijing", "hangzhou", "cn.r3301", "regional"),
        link("hangzhou", "alice", "cn.r3301.20004", "provider", "consumer"),
    ]
    stranger = link("bob", "alice", "cn.r3301.20004", "provider")
    wide = link("hangzhou", "alice", "cn.r3302.20004", "provider")
    role = link("hangzhou", "alice", "cn.r3301", "regional")

    def case(name: str, chosen: list[tuple[Signed, Vector]], now: int, error: int | None) -> Vector:
        chain = tuple(signed for signed, _ in chosen)
        return {
            "name": name,
            "now": now,
            "error": error,
            "links": [vector for _, vector in chosen],
            "bytes": encode(chain).hex(),
            "chain_hash": authority.chain_hash(chain).hex(),
        }

    return {
        "root": public("root").hex(),
        "chains": [
            case("good", good, NOW, None),
            case("good, one link", good[:1], NOW, None),
            case("does not begin at a root key", good[1:], NOW, 4),
            case("signed by a stranger", [*good[:2], stranger], NOW, 4),
            case("prefix outside of the issuer's", [*good[:2], wide], NOW, 4),
            case("role that may not be handed on", [*good[:2], role], NOW, 4),
            case("ended", good, NOW + DAY + 301, 7),
            case("not begun", good, NOW - DAY - 301, 8),
        ],
        "revocations": revocations([signed for signed, _ in good]),
        "endorsement": endorsement(),
    }


def revocations(chain: list[Signed]) -> list[Vector]:
    """Revocations of alice, the last subject of `chain`, each with the error that it is refused with at `now`."""

    def case(
        name: str,
        signer: str,
        error: int | None,
        *,
        shown: int = 3,
        until: int = NOW + DAY,
        now: int = NOW,
    ) -> Vector:
        revocation = authority.Revocation(public("alice"), NOW, until, "the key was stolen")
        signed, vector = signed_vector(signer, revocation)
        return {
            "name": name,
            "now": now,
            "error": error,
            "revocation": vector,
            "revocation_name": authority.revocation_name(signed).hex(),
            "bytes": encode(authority.RevocationNews(signed, tuple(chain[:shown]))).hex(),
        }

    return [
        case("by a root key", "root", None, shown=0),
        case("by the issuer", "hangzhou", None),
        case("by the issuer's issuer", "beijing", None),
        case("by the key itself", "alice", None),
        case("after the delegation's end", "hangzhou", None, until=NOW + 2 * DAY, now=NOW + DAY + 301),
        case("by a stranger", "bob", 14),
        case("without a chain", "hangzhou", 14, shown=0),
        case("chain of another key", "beijing", 14, shown=2),
        case("ends before the delegation", "hangzhou", 14, until=NOW + DAY - 1),
        case("need not be remembered any more", "hangzhou", 7, now=NOW + DAY + 301),
        case("from the future", "hangzhou", 8, now=NOW - 301),
    ]


def endorsement() -> Vector:
    """Alice lets bob sign for her self-certified prefix, in an open network."""
    signed, vector = link("alice", "bob", cid.self_certified_prefix(public("alice")), "provider")
    return {
        "link": vector,
        "bytes": encode((signed,)).hex(),
        "chain_hash": authority.chain_hash((signed,)).hex(),
    }


def record_of(version: int = 1) -> records.ResourceRecord:
    return records.ResourceRecord(
        cid=CID,
        version=version,
        issued=NOW,
        expires=NOW + 2 * DAY,
        type="node",
        place=records.Place("cn", "3301", "az1", 30_274_000, 120_155_000),
        cpu=records.Cpu("x86_64", "EPYC 9654", 96, 192),
        memory_mib=786_432,
        storage_mib=7_000_000,
        accelerators=(
            records.Accelerator(
                "gpu",
                "nvidia",
                "h100",
                8,
                81_920,
                peak=(("fp64", 67_000), ("bf16", 989_000)),
                int8_gops=1_979_000,
            ),
        ),
        network=records.Network(100_000, ("shm", "ucx")),
        runtimes=("wasm", "process"),
        prices=(records.Price("core-hour", 36_000),),
        labels=(("rack", "r12"),),
        endpoints=(records.Endpoint("192.0.2.7", 4001),),
    )


def catalogue() -> Vector:
    record, record_vector = signed_vector("alice", record_of(), name="record")
    entries = [
        records.CatalogueEntry(0, 1, CID, record),
        records.CatalogueEntry(1, 1, f"{CID}/gpu0", None),
        records.CatalogueEntry(2, 2, f"{CID}/gpu1", None),
    ]
    root = merkle.root_of([merkle.leaf_hash(encode(entry)) for entry in entries])
    head = records.Head(2, bytes(32), root, len(entries), NOW, NOW + 2 * DAY)
    status = records.StatusBatch(
        5,
        NOW,
        NOW + 60,
        (records.StatusRow(0, 48_000, 393_216, (1000, 1000, 500), 2, 36_000), records.StatusRow(1, 0, 0)),
    )
    leaves = [b"leaf %d" % number for number in range(9)]
    return {
        "signed": [
            record_vector,
            signed_vector("alice", head, name="head")[1],
            signed_vector("alice", status, name="status")[1],
        ],
        "entries": [struct_vector(entry) for entry in entries],
        "entries_root": root.hex(),
        "merkle": [
            {
                "leaves": [leaf.hex() for leaf in leaves[:count]],
                "root": merkle.root_of([merkle.leaf_hash(leaf) for leaf in leaves[:count]]).hex(),
            }
            for count in range(len(leaves) + 1)
        ],
    }


def work() -> Vector:
    definition = tasks.TaskDefinition(
        name="tile-0-1",
        executor=tasks.ExecutorStep(
            runtime="wasm",
            program="blob:" + bulk.format_blob_id(digest("program")),
            command=("hillshade", "in", "out"),
        ),
        inputs=(tasks.Input(path="in", url="blob:" + bulk.format_blob_id(digest("tile"))),),
        outputs=(tasks.Output(path="out"),),
        resources=tasks.Resources(cores=0.5, memory_mib=64),
        constraints=tasks.Constraints(allow=("cn.r3301",), rtt_ms_max=20.0),
        limits=tasks.Limits(wall_seconds=60, fuel=10**9),
        labels={"row": "0", "column": "1"},
    )
    data, nonce = tasks.definition_bytes(definition), digest("nonce")[:16]
    task_id = tasks.task_id_of(data, public("carol"), nonce)
    lease = market.Lease(
        digest("lease"), CID, public("carol"), task_id, 1, 500, 64, 256, (), 36_000, NOW, NOW + 30
    )  # fmt: skip
    usage = metering.UsageRecord(
        task=task_id, attempt=1, lease=digest("lease"), provider=public("bob"), consumer=public("carol"), cid=CID,
        started_ms=NOW * 1000, ended_ms=NOW * 1000 + 2000, wall_ms=2000, core_ms=990, mib_ms=128_000,
        bytes_in=4096, bytes_out=1024, price_micro=36_000, cost_micro=metering.cost_of(990, 36_000), state="COMPLETE",
    )  # fmt: skip
    usage_signed, usage_vector = signed_vector("bob", usage, name="usage")
    receipt, receipt_vector = signed_vector(
        "carol", metering.Receipt(usage_signed, NOW * 1000 + 2500), name="receipt"
    )
    order = tasks.TaskOrder(task_id, 1, digest("lease"), data, nonce)
    return {
        "definition": struct_vector(definition),
        "owner": "carol",
        "nonce": nonce.hex(),
        "task_id": task_id.hex(),
        "task_id_text": tasks.format_task_id(task_id),
        "receipt_id": metering.receipt_id(receipt).hex(),
        "receipt_id_text": metering.format_receipt_id(metering.receipt_id(receipt)),
        "signed": [
            signed_vector("carol", order, name="order")[1],
            signed_vector("bob", lease, name="lease")[1],
            usage_vector,
            receipt_vector,
        ],
    }


def blobs() -> Vector:
    def blob(name: str, size: int) -> Vector:
        data = hashlib.shake_128(name.encode()).digest(size)
        step = 1 << 20
        chunks = [bulk.chunk_hash(data[at : at + step]) for at in range(0, size, step)]
        blob_id = bulk.blob_id_of(size, chunks)
        return {
            "name": name,
            "size": size,
            "content": f"the first {size} bytes of SHAKE128 of the name",
            "chunks": [chunk.hex() for chunk in chunks],
            "blob_id": blob_id.hex(),
            "blob_id_text": bulk.format_blob_id(blob_id),
        }

    secret, nonce = digest("secret"), digest("nonce")
    ticket = bulk.ticket_digest(secret)
    claimed = bulk.claim_bytes(public("bob"), nonce, ticket)
    probe_nonce = nonce[: pathprobe.NONCE_BYTES]
    probe = pathprobe.encode_probe(probe_nonce, 32)
    echo = pathprobe.echo_of(probe)
    assert echo is not None
    messages: list[bulk.BulkMessage] = [
        bulk.Hello(bulk.BULK_VERSION, ticket),
        bulk.Challenge(nonce),
        bulk.Claim(secret, public("carol"), key_of("carol").sign(claimed)),
        bulk.Accept(3 << 20, 3),
        bulk.Refusal(42, "it has expired"),
        bulk.WantHashes(),
        bulk.Hashes(0, (digest("a"), digest("b"), digest("c"))),
        bulk.Want((bulk.ChunkRange(0, 2),), 2),
        bulk.Credit(1),
        bulk.WantSmall((secret, digest("another secret"))),
        bulk.Missed(1, 24, "it was removed"),
    ]
    return {
        "blobs": [
            blob("empty", 0),
            blob("one byte", 1),
            blob("one chunk", 1 << 20),
            blob("two chunks", (1 << 20) + 1),
        ],
        "ticket": {"secret": secret.hex(), "digest": ticket.hex()},
        "claim": {"holder": "bob", "reader": "carol", "nonce": nonce.hex(), "signed_bytes": claimed.hex()},
        "frames": [struct_vector(message, frame=bulk.encode_frame(message).hex()) for message in messages],
        "chunk_header": {"index": 7, "length": 1000, "bytes": bulk.encode_chunk_header(7, 1000).hex()},
        "path_probe": {"nonce": probe_nonce.hex(), "size": 32, "probe": probe.hex(), "echo": echo.hex()},
    }


def dataset_lists() -> Vector:
    """A version of a dataset with its page, and paths that are refused."""
    entries = [
        datasets.FileEntry("README", digest("readme"), 12),
        datasets.FileEntry("tiles/0/a.bin", digest("tile"), 3 << 20),
        datasets.FileEntry("tools/run.sh", digest("program"), 99, True),
    ]
    page = datasets.encode_page(entries)
    page_id = bulk.blob_id_of(len(page), (bulk.chunk_hash(page),))
    version = datasets.DatasetVersion(
        name="terrain",
        version=2,
        made=NOW,
        files=len(entries),
        size=sum(entry.size for entry in entries),
        pages=(datasets.Page(entries[0].path, page_id, len(entries)),),
        previous=digest("previous"),
    )
    signed, vector = signed_vector("bob", version, name="version")
    data = encode(signed)
    owner = identity.node_id_of(public("bob"))
    refused = [
        "/a",
        "",
        "a//b",
        "a/../b",
        ".",
        "a\\b",
        "c:",
        "nul",
        "com1.txt",
        "a.",
        "a ",
        "a\x00b",
        "e\u0301",
        "a\u202eb",
    ]
    return {
        "signed": [vector],
        "page": {"bytes": page.hex(), "blob": page_id.hex()},
        "version_blob": bulk.blob_id_of(len(data), (bulk.chunk_hash(data),)).hex(),
        "point": {"owner": "bob", "name": "terrain", "point": datasets.dataset_point(owner, "terrain").hex()},
        "paths_refused": refused,
        "paths_taken": [entry.path for entry in entries] + [".hidden", "\u00e9t\u00e9/b c"],
    }


def link_frames() -> Vector:
    proof = links.ClientProof(
        digest("network"), digest("nonce"), public("bob"), ("consumer",), links.Listen("", 4001)
    )
    signed, vector = signed_vector("carol", proof, name="proof")
    handshake = [
        links.ServerHello(1, digest("network"), public("bob"), digest("nonce"), ("provider",)),
        links.ClientHello(1, signed),
        links.Welcome(),
        links.Refusal(9, "peer belongs to another network"),
    ]
    body = encode(market.MeasureRtt())
    frames = [
        links.OpenStream(1, 32, body),
        links.Item(1, encode(market.RttMeasured(250))),
        links.EndStream(1),
        links.FailStream(1, 41, "busy"),
        links.CancelStream(1),
        links.Credit(1, 16),
        links.Notify(body),
        links.Heartbeat(),
        links.HeartbeatAck(),
    ]
    return {"signed": [vector], "structs": [struct_vector(value) for value in (*handshake, *frames)]}


def every_struct() -> Vector:
    return {
        "structs": [
            struct_vector(sample(cls)) for module in modules().values() for cls in structs_of(module)
        ],
    }


FILES: Final[dict[str, tuple[Callable[[], Vector], str]]] = {
    "identities": (
        identities,
        "Ed25519 keys, node IDs and self-certified prefixes of the people in all files",
    ),
    "identifiers": (
        identifiers,
        "Identifiers that parse, with their DHT keys; some that do not; which prefix covers which",
    ),
    "authority": (chains, "Delegation chains, root first, and the error code each is refused with at `now`"),
    "catalogue": (
        catalogue,
        "Record, head, status batch, catalogue entries with their Merkle root, and Merkle roots",
    ),
    "work": (work, "Task definition, its ID, order, lease, usage record and receipt"),
    "bulk": (blobs, "Blob IDs, a ticket's claim, and the frames of a bulk stream"),
    "datasets": (
        dataset_lists,
        "A version of a dataset, its page, blob and point; paths that are refused and taken",
    ),
    "links": (link_frames, "Handshake and frames of a link"),
    "dht": (dht_messages.messages, "Every message of the DHT, and the envelopes inside them"),
    "dht_session": (
        dht_session.dht_session,
        "Whole handshakes with fixed keys, packets of every message type, and all that is derived on the way",
    ),
    "structs": (every_struct, "One sample of every struct, all fields given; the values mean nothing"),
}


def outputs() -> dict[Path, str]:
    """What every generated file should contain."""
    found = {}
    for name, (make, about) in FILES.items():
        text = json.dumps({"about": about, **make()}, indent=1, ensure_ascii=False)
        found[HERE / f"{name}.json"] = text + "\n"
    if SPEC.exists():
        found[SPEC] = spec_tables.fill(SPEC.read_text("utf-8"))
    return found


def main(arguments: list[str]) -> int:
    stale = [
        (path, text)
        for path, text in outputs().items()
        if not path.exists() or path.read_text("utf-8") != text
    ]
    for path, text in stale:
        print(f"{'stale' if arguments == ['--check'] else 'written'}: {path.relative_to(HERE.parents[1])}")
        if arguments != ["--check"]:
            path.write_text(text, "utf-8")
    return 1 if stale and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
