"""A report is given to the PBX that the configuration tells, and to nobody by guess."""

import dataclasses
from ipaddress import ip_network
from zoneinfo import ZoneInfo

import pytest

from cdrd.sender import Origin, Sender, origin_of

UTC = ZoneInfo("UTC")


def sender(name: str, *networks: str, serial: str = "") -> Sender:
    return Sender(name, UTC, tuple(ip_network(network) for network in networks), serial)


HQ = sender("hq", "192.0.2.10/32", "2001:db8::/64")
BRANCH = sender("branch", "192.0.2.0/24", serial="369362089179")
SHOP = sender("shop", "192.0.2.0/24", serial="369451090405")


@pytest.mark.parametrize(
    "address", ["192.0.2.10", "::ffff:192.0.2.10", "2001:db8::1", "2001:db8::1%eth0"]
)
def test_a_pbx_may_be_at_its_addresses(address: str) -> None:
    assert HQ.may_be_at(address)


@pytest.mark.parametrize("address", ["192.0.2.11", "::ffff:192.0.2.11", "2001:db8:1::1", "::1"])
def test_a_pbx_is_at_no_other_address(address: str) -> None:
    assert not HQ.may_be_at(address)
    assert not sender("nowhere").may_be_at(address)


def test_a_stranger_has_no_origin() -> None:
    assert origin_of("198.51.100.1", [HQ, BRANCH, SHOP]) is None
    assert origin_of("192.0.2.10", []) is None


@pytest.mark.parametrize("names", [frozenset[str](), frozenset({"cloud"})])
def test_what_is_not_signed_is_of_no_pbx_that_signs(names: frozenset[str]) -> None:
    cloud = dataclasses.replace(SHOP, name="cloud", signs=True)
    signed = origin_of("192.0.2.11", [cloud], names)
    assert signed is not None
    assert signed.name == "cloud"
    assert origin_of("192.0.2.11", [cloud], names, unsigned=True) is None
    beside = origin_of("192.0.2.11", [BRANCH, cloud], names, unsigned=True)
    assert (beside.name if beside else "") == ("" if names else "branch")


def test_an_origin_is_named_by_all_that_it_may_be() -> None:
    origin = origin_of("192.0.2.11", [HQ, BRANCH, SHOP])
    assert origin is not None
    assert origin.name == "branch/shop"


def test_the_only_pbx_at_an_address_takes_every_serial() -> None:
    serials: tuple[object, ...] = ("", "369362089179", 5, None, [], True)
    for serial in serials:
        assert Origin([HQ]).sender(serial) is HQ


def test_the_serial_tells_pbxs_at_one_address_apart() -> None:
    origin = Origin([BRANCH, SHOP])
    assert origin.sender("369362089179") is BRANCH
    assert origin.sender("369451090405") is SHOP
    assert origin.sender(369451090405) is SHOP
    assert origin.sender(" 369451090405 ") is SHOP


@pytest.mark.parametrize("serial", ["", " ", None, [], {}, 1.5, "another"])
def test_without_a_serial_that_fits_it_is_nobody(serial: object) -> None:
    assert Origin([BRANCH, SHOP]).sender(serial) is None


@pytest.mark.parametrize("serial", ["", " ", None])
def test_a_report_without_a_serial_is_of_the_only_pbx_there(serial: object) -> None:
    assert Origin([BRANCH]).sender(serial) is BRANCH


def test_another_serial_is_not_of_the_only_pbx_there() -> None:
    assert Origin([BRANCH]).sender("369451090405") is None


def test_the_first_that_fits_is_the_one() -> None:
    assert Origin([BRANCH, HQ]).sender("369362089179") is BRANCH
    assert Origin([BRANCH, HQ]).sender("another") is HQ
    assert Origin([BRANCH, HQ]).sender("") is HQ
    assert Origin([HQ, BRANCH]).sender("369362089179") is HQ
