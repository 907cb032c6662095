"""Addresses as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioc_bootstrap.addresses import Address, BadAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:4600", Address("127.0.0.1", 4600)),
        ("[2001:DB8::1]:1", Address("2001:db8::1", 1)),
        ("Core1.Example.net:65535", Address("core1.example.net", 65535)),
        (" localhost:80 ", Address("localhost", 80)),
    ],
)
def test_good_address(text: str, address: Address):
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "has no port"),
        ("host", "has no port"),
        (":80", "has no host"),
        ("host:", "does not read host:port"),
        ("host:0", "port 0 is not between"),
        ("host:65536", "port 65536 is not between"),
        ("host:٣", "does not read"),
        ("2001:db8::1:80", "in brackets"),
        ("[2001:db8::g]:80", "not an IPv6 address"),
        ("[127.0.0.1]:80", "not an IPv6 address"),
        ("300.1.1.1:80", "not an IPv4 address"),
        ("-bad.net:80", "not a host name"),
        ("a b:80", "not a host name"),
        ("a" * 300 + ":80", "not a host name"),
    ],
)
def test_bad_address_says_what_is_wrong(text: str, line: str):
    with pytest.raises(BadAddress, match=line):
        parse_address(text)


@given(st.text(max_size=60))
def test_any_text_parses_to_what_it_prints_or_is_refused(text: str):
    try:
        address = parse_address(text)
    except BadAddress:
        return
    assert parse_address(str(address)) == address
