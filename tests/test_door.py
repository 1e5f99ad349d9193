"""What is not signed with a PBX's key is no report of it, and a path leads to its PBX."""

import hashlib
import hmac
from base64 import b64encode
from ipaddress import ip_network
from zoneinfo import ZoneInfo

import pytest

from cdrd.door import Admitted, Door, Entrance, NotAdmitted, entrances, is_signed
from cdrd.sender import Sender
from cdrd.source import HTTP, WEBHOOK

KEY = b"3G7XDQ6mEWBV5sbV"
BODY = b'{"type":30012,"sn":"369369369369","msg":"{}"}'


def sender(name: str, network: str = "192.0.2.10/32") -> Sender:
    return Sender(name, ZoneInfo("UTC"), (ip_network(network),))


HQ, SHOP = sender("hq"), sender("shop")


def signature(body: bytes = BODY, key: bytes = KEY) -> str:
    """Sign as the vendor's page says it."""
    return b64encode(hmac.new(key, body, hashlib.sha256).digest()).decode()


def admitted(entrance: Entrance, target: str = "/", signed: str = "", body: bytes = BODY) -> object:
    """The PBXs and the way, or the reason."""
    found = entrance.admit(target, signed, body)
    return (found.origin.name, found.source) if isinstance(found, Admitted) else found.reason


def test_a_signature_is_the_base64_of_the_hmac_over_the_raw_body() -> None:
    # Worked out with: printf %s "$BODY" | openssl dgst -sha256 -hmac "$KEY" -binary | base64
    assert is_signed("jFF4FSVYXE3439sR1YLrj5CUe5Dzf+UOPMGuqC7R1eI=", KEY, BODY)
    assert is_signed(signature(), KEY, BODY)
    assert is_signed(f" {signature()} ", KEY, BODY)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        signature(BODY + b" "),
        signature(key=b"another"),
        signature().lower(),
        signature()[:-1],
        hmac.new(KEY, BODY, hashlib.sha256).hexdigest(),
        "\udcff",
        "\N{SNOWMAN}" * 44,
    ],
)
def test_what_is_wrongly_signed_is_refused(wrong: str) -> None:
    reason = admitted(Entrance([Door(HQ, key=KEY)]), signed=wrong)
    assert reason == "X-Signature is not what the key in secret_file makes of the body"


def test_what_is_signed_is_a_webhook_of_whose_key_it_is() -> None:
    entrance = Entrance([Door(HQ, key=KEY), Door(SHOP, key=b"another")])
    assert admitted(entrance, signed=signature()) == ("hq", WEBHOOK)
    assert admitted(entrance, signed=signature(key=b"another")) == ("shop", WEBHOOK)


def test_a_pbx_without_a_key_need_not_sign() -> None:
    entrance = Entrance([Door(HQ, key=KEY), Door(SHOP)])
    assert admitted(entrance, signed=signature()) == ("hq", WEBHOOK)
    assert admitted(entrance) == ("shop", HTTP)


@pytest.mark.parametrize("target", ["/", "/hq", "http://192.0.2.1:8260/?a=b", "*"])
def test_without_paths_and_keys_any_path_is_anybodys(target: str) -> None:
    assert admitted(Entrance([Door(HQ), Door(SHOP)]), target) == ("hq/shop", HTTP)


def test_a_path_leads_to_its_pbx_and_every_other_to_those_without() -> None:
    entrance = Entrance([Door(HQ, "/hq"), Door(SHOP)])
    assert admitted(entrance, "/hq?token=1") == ("hq", HTTP)
    assert admitted(entrance, "/hq/") == ("shop", HTTP)
    assert admitted(entrance, "/") == ("shop", HTTP)


@pytest.mark.parametrize(
    "target", ["//hq", "hq", "http://192.0.2.1:8260/hq", "HTTPS://cdrd//hq?token=1"]
)
@pytest.mark.parametrize("path", ["/hq", "//hq"])
def test_a_path_is_the_same_with_its_slash_doubled_and_behind_a_host(
    target: str, path: str
) -> None:
    entrance = Entrance([Door(HQ, path), Door(SHOP, "/shop")])
    assert admitted(entrance, target) == ("hq", HTTP)


@pytest.mark.parametrize("target", ["http://192.0.2.1:8260", "//", "?a=b", "http://hq/"])
def test_the_shortest_path_is_one_too(target: str) -> None:
    entrance = Entrance([Door(HQ, "/"), Door(SHOP, "/hq")])
    assert admitted(entrance, target) == ("hq", HTTP)
    assert admitted(Entrance([Door(HQ), Door(SHOP, "/hq")]), target) == ("hq", HTTP)


def test_a_path_that_is_nobodys_is_refused() -> None:
    entrance = Entrance([Door(HQ, "/hq"), Door(SHOP, "/shop")])
    assert admitted(entrance, "/") == "no PBX of this address posts to this path"


def test_a_path_does_not_stand_in_for_a_signature() -> None:
    entrance = Entrance([Door(HQ, "/hq", KEY), Door(SHOP)])
    assert "X-Signature" in str(admitted(entrance, "/hq"))
    assert admitted(entrance, "/hq", signature()) == ("hq", WEBHOOK)


def test_reports_of_the_same_pbxs_have_the_same_origin() -> None:
    entrance = Entrance([Door(HQ, "/hq"), Door(SHOP)])
    first, second = entrance.admit("/hq", "", BODY), entrance.admit("/hq", "", b"{}")
    assert first == second
    assert not isinstance(first, NotAdmitted)


def test_a_stranger_has_no_entrance() -> None:
    entrance_of = entrances([Door(HQ), Door(sender("shop", "198.51.100.0/24"))])
    assert entrance_of("203.0.113.1", frozenset()) is None
    found = entrance_of("198.51.100.9", frozenset())
    assert found is not None
    assert found.origin.name == "shop"
    assert entrance_of("198.51.100.9", frozenset()) is found
