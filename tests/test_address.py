"""HOST:PORT text is read and written without loss, and a slip in it is explained."""

import pytest

from cdrd.address import format_address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8333", ("127.0.0.1", 8333)),
        ("[::1]:8333", ("::1", 8333)),
        ("[fe80::1%eth0]:8333", ("fe80::1%eth0", 8333)),
        ("pbx.example.com:8333", ("pbx.example.com", 8333)),
        ("localhost:0", ("localhost", 0)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_an_address_is_read_and_written_back(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert format_address(*address) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it needs a host and a port"),
        ("127.0.0.1", "it needs a host and a port"),
        (":8333", "it needs a host and a port"),
        ("8333", "it needs a host and a port"),
        ("::1:8333", "an IPv6 address stands in brackets"),
        ("[::1]", "an IPv6 address stands in brackets"),
        ("[pbx]:8333", '"pbx" in brackets is no IPv6 address'),
        ("[]:8333", '"" in brackets is no IPv6 address'),
        ("tcp://pbx:8333", '"tcp://pbx" is no host name'),
        ("a host:8333", '"a host" is no host name'),
        ("user@pbx:8333", '"user@pbx" is no host name'),
        ("a..b:80", '"a..b" is no host name'),
        (f"{'a' * 64}:80", f'"{"a" * 64}" is no host name'),
        ("a\0b:80", '"a\0b" is no host name'),
        ("pbx:", "the port is a number from 0 to 65535"),
        ("pbx:65536", "the port is a number from 0 to 65535"),
        ("pbx:-1", "the port is a number from 0 to 65535"),
        ("pbx:+1", "the port is a number from 0 to 65535"),
        ("pbx: 1", "the port is a number from 0 to 65535"),
        ("pbx:٣", "the port is a number from 0 to 65535"),
        ("pbx:" + "9" * 5000, "the port is a number from 0 to 65535"),
    ],
)
def test_a_slip_is_quoted_and_explained(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="is no address") as refusal:
        parse_address(text)
    sentence = str(refusal.value)
    assert sentence.startswith(f'"{text}" is no address: {why};')
    assert '"[::1]:8333"' in sentence
