"""The golden vectors, read without `ioc_wire`: msgpack, cryptography, blake3 and the standard library only.

The last test alone turns to `ioc_wire`, which must read every vector and write the same bytes again.
"""

import base64
import hashlib
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import pytest
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ROOT: Final = Path(__file__).resolve().parents[2]
VECTORS: Final = ROOT / "wire" / "vectors"
NAMES: Final = sorted(path.stem for path in VECTORS.glob("*.json"))


@cache
def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text("utf-8"))


def nested(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON value, outermost first."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from nested(item)
    elif isinstance(value, list):
        for item in value:
            yield from nested(item)


def structs(name: str) -> list[dict[str, Any]]:
    return [item for item in nested(load(name)) if {"type", "fields", "bytes"} <= set(item)]


def envelopes(name: str) -> list[dict[str, Any]]:
    return [item for item in nested(load(name)) if {"signer", "payload", "envelope"} <= set(item)]


def jsonable(value: Any) -> Any:
    """What msgpack read, with bytes as the vectors write them."""
    if isinstance(value, bytes):
        return "hex:" + value.hex()
    if isinstance(value, list):
        return [jsonable(item) for item in value]
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    return value


def same(read: Any, written: Any) -> bool:
    """Whether an array (or map) that was read holds the fields that the vector names, in their order."""
    if isinstance(written, dict) and isinstance(read, list):
        return len(read) == len(written) and all(
            same(r, w) for r, w in zip(read, written.values(), strict=True)
        )
    if isinstance(written, dict) and isinstance(read, dict):
        return list(read) == list(written) and all(same(read[key], written[key]) for key in read)
    if isinstance(written, list) and isinstance(read, list):
        return len(read) == len(written) and all(same(r, w) for r, w in zip(read, written, strict=True))
    return type(read) is type(written) and bool(read == written)


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def person(name: str) -> dict[str, bytes]:
    found = load("identities")["people"][name]
    return {"private": bytes.fromhex(found["private_key"]), "public": bytes.fromhex(found["public_key"])}


def length_prefixed(domain: str, kind: str, payload: bytes) -> bytes:
    return bytes((len(domain),)) + domain.encode() + bytes((len(kind),)) + kind.encode() + payload


# -- they are what the script makes


def test_generated_files_are_fresh() -> None:
    """Regenerating the vectors and SPEC.md's tables changes nothing (else: make vectors, and say why)."""
    run = subprocess.run(
        [sys.executable, str(VECTORS / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_vectors_are_there() -> None:
    wanted = {
        "identities",
        "identifiers",
        "authority",
        "catalogue",
        "work",
        "bulk",
        "datasets",
        "links",
        "dht",
        "dht_session",
        "structs",
    }
    assert set(NAMES) == wanted


# -- encodings


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("identities", "identifiers")])
def test_struct_bytes_are_the_fields(name: str) -> None:
    found = structs(name)
    assert found
    for vector in found:
        read = jsonable(msgpack.unpackb(bytes.fromhex(vector["bytes"]), raw=False))
        if "tag" in vector:
            assert read.pop(0) == vector["tag"], vector["type"]
        assert same(read, vector["fields"]), vector["type"]


def test_reader_tells_values_apart() -> None:
    """The comparison above can fail."""
    assert not same([1], {"a": 2})
    assert not same([1, 2], {"a": 1})
    assert not same([True], {"a": 1})
    assert not same(["00"], {"a": "hex:00"})
    assert not same({"b": 1}, {"a": 1})


# -- identities and identifiers


def test_keys_and_node_ids() -> None:
    for name, found in load("identities")["people"].items():
        private = Ed25519PrivateKey.from_private_bytes(sha256(name.encode()))
        public = private.public_key().public_bytes_raw()
        assert found["private_key"] == private.private_bytes_raw().hex()
        assert found["public_key"] == public.hex()
        assert found["node_id"] == sha256(public).hex()
        assert found["node_id_text"] == "n" + base32(sha256(public))
        assert found["self_certified_prefix"] == "p2p.n0.k" + base32(sha256(public))


def test_network_ids() -> None:
    for found in load("identities")["networks"]:
        keys = [bytes.fromhex(key) for key in found["root_keys"]]
        assert keys == sorted(keys)
        array = ["ioc/1", "network", found["name"], found["admission"], found["threshold"], keys]
        data = msgpack.packb([*array, bytes.fromhex(found["nonce"])])
        assert found["bytes"] == data.hex()
        assert found["network_id"] == sha256(data).hex()


def test_identifiers() -> None:
    found = load("identifiers")
    shape = re.compile(r"ioc:[a-z0-9]+\.[a-z0-9]+\.[a-z0-9]+(/[a-z0-9][a-z0-9_-]{0,31}){3,5}")
    for vector in found["good"]:
        assert shape.fullmatch(vector["text"])
        assert vector["text"] == f"ioc:{vector['prefix']}/{'/'.join(vector['path'])}"
        assert vector["key"] == sha256(vector["text"].encode()).hex()
    for pair in found["covers"]:
        outer, inner = (pair[side].split(".") if pair[side] else [] for side in ("outer", "inner"))
        assert pair["covers"] is (inner[: len(outer)] == outer)


# -- signatures


@pytest.mark.parametrize("name", ["authority", "catalogue", "work", "links", "dht"])
def test_signatures(name: str) -> None:
    found = envelopes(name)
    assert found
    for vector in found:
        domain, kind, payload, key, signature = msgpack.unpackb(
            bytes.fromhex(vector["envelope"]["bytes"]), raw=False
        )
        covered = length_prefixed(domain, kind, payload)
        signer = person(vector["signer"])
        assert domain == "ioc/1"
        assert payload.hex() == vector["payload"]["bytes"]
        assert covered.hex() == vector["signed_bytes"]
        assert key == signer["public"]
        assert signature == Ed25519PrivateKey.from_private_bytes(signer["private"]).sign(covered)
        public = Ed25519PublicKey.from_public_bytes(key)
        public.verify(signature, covered)
        with pytest.raises(InvalidSignature):
            public.verify(signature, covered + b"\0")


def test_chains() -> None:
    """Each chain's hash, and that those which break in their structure do so where the vector says."""
    found = load("authority")
    for vector in found["chains"]:
        data = bytes.fromhex(vector["bytes"])
        links = msgpack.unpackb(data, raw=False)
        assert [msgpack.packb(link).hex() for link in links] == [
            link["envelope"]["bytes"] for link in vector["links"]
        ]
        assert vector["chain_hash"] == sha256(data).hex()
        subjects = [msgpack.unpackb(link[2], raw=False)[0] for link in links]
        linked = [found["root"]] + [subject.hex() for subject in subjects[:-1]] == [
            link[3].hex() for link in links
        ]
        assert linked or vector["error"] == 4


# -- catalogue


def merkle_root(leaves: list[bytes]) -> bytes:
    if len(leaves) < 2:
        return sha256(b"\x00", leaves[0]) if leaves else sha256()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\x01", merkle_root(leaves[:split]), merkle_root(leaves[split:]))


def test_merkle_roots() -> None:
    found = load("catalogue")
    for vector in found["merkle"]:
        assert vector["root"] == merkle_root([bytes.fromhex(leaf) for leaf in vector["leaves"]]).hex()
    entries = [bytes.fromhex(entry["bytes"]) for entry in found["entries"]]
    assert found["entries_root"] == merkle_root(entries).hex()
    (head,) = (vector for vector in found["signed"] if vector["name"] == "head")
    assert head["payload"]["fields"]["root"] == "hex:" + found["entries_root"]


# -- work


def test_task_and_receipt_ids() -> None:
    found = load("work")
    definition, nonce = bytes.fromhex(found["definition"]["bytes"]), bytes.fromhex(found["nonce"])
    task_id = sha256(struct.pack(">Q", len(definition)), definition, person(found["owner"])["public"], nonce)
    assert found["task_id"] == task_id.hex()
    assert found["task_id_text"] == "t" + base32(task_id)
    by_name = {vector["name"]: vector for vector in found["signed"]}
    assert by_name["order"]["payload"]["fields"]["definition"] == "hex:" + definition.hex()
    usage, receipt = by_name["usage"]["envelope"]["bytes"], by_name["receipt"]["payload"]["bytes"]
    assert usage in receipt
    assert found["receipt_id"] == sha256(bytes.fromhex(usage)).hex()
    assert found["receipt_id_text"] == "r" + base32(bytes.fromhex(found["receipt_id"]))


# -- bulk


def test_blob_ids() -> None:
    for vector in load("bulk")["blobs"]:
        data = hashlib.shake_128(vector["name"].encode()).digest(vector["size"])
        chunks = [blake3(data[at : at + 2**20]).digest() for at in range(0, len(data), 2**20)]
        blob_id = blake3(b"ioc/1 blob" + struct.pack(">QI", len(data), 2**20) + b"".join(chunks)).digest()
        assert vector["chunks"] == [chunk.hex() for chunk in chunks]
        assert vector["blob_id"] == blob_id.hex()
        assert vector["blob_id_text"] == "b" + base32(blob_id)


def test_tickets_claims_and_frames() -> None:
    found = load("bulk")
    digest = blake3(b"ioc/1 ticket" + bytes.fromhex(found["ticket"]["secret"])).digest()
    assert found["ticket"]["digest"] == digest.hex()
    claim = found["claim"]
    said = person(claim["holder"])["public"] + bytes.fromhex(claim["nonce"]) + digest
    assert claim["signed_bytes"] == length_prefixed("ioc/1", "bulk-claim", said).hex()
    by_type = {vector["type"]: vector for vector in found["frames"]}
    signature = bytes.fromhex(by_type["bulk.Claim"]["fields"]["signature"].removeprefix("hex:"))
    reader = Ed25519PublicKey.from_public_bytes(person(claim["reader"])["public"])
    reader.verify(signature, bytes.fromhex(claim["signed_bytes"]))
    for number, vector in enumerate(found["frames"], 1):
        payload = bytes.fromhex(vector["bytes"])
        assert vector["frame"] == (struct.pack(">BI", number, len(payload)) + payload).hex()
    header = found["chunk_header"]
    assert header["bytes"] == struct.pack(">BII", 0, header["length"] + 4, header["index"]).hex()
    probe = found["path_probe"]
    for kind, name in ((8, "probe"), (9, "echo")):
        said = bytes((kind,)) + b"ioc-mtu" + bytes.fromhex(probe["nonce"])
        assert probe[name] == said.ljust(probe["size"], b"\0").hex()


# -- datasets


def test_a_dataset_is_named_by_what_is_in_it() -> None:
    found = load("datasets")
    for data, blob in (
        (found["page"]["bytes"], found["page"]["blob"]),
        (found["signed"][0]["envelope"]["bytes"], found["version_blob"]),
    ):
        chunk = bytes.fromhex(data)
        root = b"ioc/1 blob" + struct.pack(">QI", len(chunk), 2**20) + blake3(chunk).digest()
        assert blake3(root).hexdigest() == blob
    point = found["point"]
    said = b"ioc/1 dataset" + sha256(person(point["owner"])["public"]) + point["name"].encode()
    assert blake3(said).hexdigest() == point["point"]
    paths = [entry[0] for entry in msgpack.unpackb(bytes.fromhex(found["page"]["bytes"]))]
    assert paths == sorted(paths, key=str.encode)


def test_ioc_wire_tells_harmless_paths() -> None:
    from ioc_wire.datasets import check_path
    from ioc_wire.errors import Malformed

    for path in load("datasets")["paths_taken"]:
        assert check_path(path) == path
    for path in load("datasets")["paths_refused"]:
        with pytest.raises(Malformed):
            check_path(path)


# -- and ioc_wire reads them all


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("identities", "identifiers")])
def test_ioc_wire_reads_every_vector(name: str) -> None:
    from ioc_wire.codec import decode, encode
    from tests.wire.structs import all_structs

    kinds = all_structs()
    for vector in structs(name):
        data = bytes.fromhex(vector["bytes"])
        assert encode(decode(data, kinds[vector["type"]])) == data


def test_ioc_wire_agrees_on_identifiers_and_chains() -> None:
    from ioc_wire.authority import verify_chain
    from ioc_wire.cid import cid_key, parse_cid
    from ioc_wire.codec import decode
    from ioc_wire.errors import BadIdentifier, WireError
    from ioc_wire.signed import Signed

    for vector in load("identifiers")["good"]:
        assert cid_key(vector["text"]).hex() == vector["key"]
    for text in load("identifiers")["bad"]:
        with pytest.raises(BadIdentifier):
            parse_cid(text)
    roots = [bytes.fromhex(load("authority")["root"])]
    for vector in load("authority")["chains"]:
        chain = decode(bytes.fromhex(vector["bytes"]), tuple[Signed, ...])
        try:
            verify_chain(chain, roots=roots, now=vector["now"])
            code = None
        except WireError as error:
            code = error.code
        assert code == vector["error"], vector["name"]


def test_ioc_wire_agrees_on_revocations() -> None:
    from ioc_wire.authority import RevocationNews, revocation_name, verify_chain, verify_revocation
    from ioc_wire.codec import decode
    from ioc_wire.errors import BrokenChain, WireError
    from ioc_wire.signed import Signed

    found = load("authority")
    roots = [bytes.fromhex(found["root"])]
    for vector in found["revocations"]:
        news = decode(bytes.fromhex(vector["bytes"]), RevocationNews)
        assert revocation_name(news.revocation).hex() == vector["revocation_name"]
        assert (
            sha256(bytes.fromhex(vector["revocation"]["envelope"]["bytes"])).hex()
            == vector["revocation_name"]
        )
        try:
            verify_revocation(news, roots=roots, now=vector["now"], certified=True)
            code = None
        except WireError as error:
            code = error.code
        assert code == vector["error"], vector["name"]
    chain = decode(bytes.fromhex(found["endorsement"]["bytes"]), tuple[Signed, ...])
    assert verify_chain(chain, roots=roots, now=found["chains"][0]["now"], self_certified=True).roles == (
        "provider",
    )
    with pytest.raises(BrokenChain):
        verify_chain(chain, roots=roots, now=found["chains"][0]["now"])


def test_there_is_a_sample_of_every_struct() -> None:
    from tests.wire.structs import all_structs

    assert {vector["type"] for vector in load("structs")["structs"]} == set(all_structs())
