"""Network files: made, signed, verified; and every file that must not be trusted."""

import contextlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_bootstrap.network import NetworkFileError, create_network, load_network, parse_network, sign_network
from ioc_wire.signed import public_bytes

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 5)]


def made(
    *signers: int, threshold: int = 2, bootstrap: tuple[str, ...] = ("192.0.2.1:4600", "[2001:db8::1]:1")
) -> str:
    roots = [public_bytes(key) for key in KEYS[:3]]
    text = create_network(
        "harbour", root_keys=roots, threshold=threshold, bootstrap=bootstrap, nonce=b"n" * 16
    )
    for signer in signers:
        text = sign_network(text, KEYS[signer])
    return text


def test_signed_file_gives_the_network(tmp_path: Path):
    path = tmp_path / "network.toml"
    path.write_text(made(0, 2))
    network = load_network(path)
    assert network.name == "harbour"
    assert network.certified
    assert network.threshold == 2
    assert network.root_keys == {public_bytes(key) for key in KEYS[:3]}
    assert [str(address) for address in network.bootstrap] == ["192.0.2.1:4600", "[2001:db8::1]:1"]


def test_identity_survives_other_peers_but_not_another_rule_or_nonce():
    same = parse_network(made(0, 1, bootstrap=("10.0.0.1:1",)).encode())
    first = parse_network(made(1, 2, 0).encode())
    assert same.network_id == first.network_id
    looser = parse_network(made(0, threshold=1).encode())
    assert looser.network_id != first.network_id
    roots = [public_bytes(KEYS[0])]
    fresh = [
        parse_network(sign_network(create_network("n", root_keys=roots, threshold=1), KEYS[0]).encode())
        for _ in range(2)
    ]
    assert fresh[0].network_id != fresh[1].network_id


def test_threshold_counts_distinct_root_keys():
    for signers in [(), (0,)]:
        with pytest.raises(
            NetworkFileError, match=f"signed by {len(signers)} of its root keys, 2 are needed"
        ):
            parse_network(made(*signers).encode())
    once = made(0)
    doubled = once + once[once.index("[[signatures]]") :]
    with pytest.raises(NetworkFileError, match="signed by 1 of its root keys"):
        parse_network(doubled.encode())
    assert parse_network(made(0, 1, 2).encode()).threshold == 2


def test_changing_any_signed_byte_is_found():
    data = made(0, 1).encode()
    signed = data.index(b"[[signatures]]")
    for position in range(signed):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(NetworkFileError):
            parse_network(bytes(changed))
    for position in range(signed, len(data), 3):
        changed = bytearray(data)
        changed[position] ^= 1
        try:
            parse_network(bytes(changed))
        except NetworkFileError:
            continue
        assert bytes([data[position]]) in b"\n "  # white space between the signatures is nobody's statement


def test_nothing_below_the_signatures_becomes_part_of_the_statement():
    text = made(0, 1)
    for extra in ("[parameters]\nreplication = 1\n", 'bootstrap = ["6.6.6.6:6"]\n', "[extra]\n"):
        with pytest.raises(NetworkFileError, match="unknown field"):
            parse_network((text + extra).encode())
    head, tail = text.split("[[signatures]]", 1)
    with pytest.raises(NetworkFileError, match="2 do not verify: was the file edited"):
        parse_network((head + "# edited\n[[signatures]]" + tail).encode())


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('name = "harbour"', 'name = ""', "name has 1 to 64"),
        ('admission = "certified"', 'admission = "closed"', "Invalid enum value"),
        ("threshold = 2", "threshold = 4", "threshold 4 is not between 1 and the 3"),
        ("threshold = 2", "threshold = 0", "threshold 0"),
        ("threshold = 2", 'threshold = "2"', "Expected `int`"),
        ("threshold = 2", "threshold = 2\nsecret = 1", "unknown field `secret`"),
        ("threshold = 2\n", "", "missing required field `threshold`"),
        ('nonce = "6e', 'nonce = "', "nonce has 32 hexadecimal digits"),
        (public_bytes(KEYS[0]).hex(), public_bytes(KEYS[0]).hex().upper(), "root key has 64 hexadecimal"),
        (public_bytes(KEYS[0]).hex(), public_bytes(KEYS[1]).hex(), "a root key is listed twice"),
        ("192.0.2.1:4600", "192.0.2.1", "has no port"),
        ("[parameters]", "[parameters]\nreplication = 21", "replication is 1 to 20"),
        ("name = ", "name ", "not TOML"),
    ],
)
def test_bad_file_is_one_clear_line(tmp_path: Path, old: str, new: str, line: str):
    text = create_network(
        "harbour",
        root_keys=[public_bytes(key) for key in KEYS[:3]],
        threshold=2,
        bootstrap=["192.0.2.1:4600"],
        nonce=b"n" * 16,
    )
    assert old in text
    path = tmp_path / "network.toml"
    path.write_text(text.replace(old, new, 1))
    with contextlib.suppress(NetworkFileError):  # some are so bad that they cannot even be signed
        path.write_text(sign_network(sign_network(path.read_text(), KEYS[1]), KEYS[2]))
    with pytest.raises(NetworkFileError, match=line) as error:
        load_network(path)
    assert str(error.value).startswith(f"network file {path}")
    assert "\n" not in str(error.value)


def test_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path):
    with pytest.raises(NetworkFileError, match="cannot be read: No such file"):
        load_network(tmp_path / "none.toml")
    with pytest.raises(NetworkFileError, match="cannot be read: Is a directory"):
        load_network(tmp_path)
    path = tmp_path / "network.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(NetworkFileError, match="not UTF-8"):
        load_network(path)
    path.write_bytes(b"#" * (257 << 10))
    with pytest.raises(NetworkFileError, match="larger than 256 KiB"):
        load_network(path)
    path.write_bytes(b"a = " + b"[" * 20_000)
    with pytest.raises(NetworkFileError, match=r"nested too deeply|not TOML"):
        load_network(path)


def test_signing_refuses_strangers_and_seconds():
    with pytest.raises(NetworkFileError, match="does not list"):
        sign_network(made(), KEYS[3])
    with pytest.raises(NetworkFileError, match="already"):
        sign_network(made(0), KEYS[0])
