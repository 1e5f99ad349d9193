"""Turns a POST's path and signature into the PBXs that it may be of.

The rule that must stay true: what a PBX with a key has not signed is no report of that PBX; and a
PBX with a path is posted to at that path alone. Source: the vendor's page on P-Series webhooks
(``X-Signature`` is Base64 of HMAC-SHA256 over the raw body).
"""

import hmac
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from cdrd.sender import Origin, Sender, certified
from cdrd.source import HTTP, WEBHOOK

_PATH = re.compile(r"(?:https?://[^/?]*)?/*([^?]*)", re.IGNORECASE)


class Door(NamedTuple):
    """Where a PBX posts to, and what it signs with."""

    sender: Sender
    path: str = ""  # any
    key: bytes = b""  # it does not sign


class Admitted(NamedTuple):
    """Whose report a request brings, and by which way."""

    origin: Origin
    source: str


class NotAdmitted(NamedTuple):
    """Why a request is refused."""

    reason: str


class Entrance:
    """The doors that one address may come through."""

    def __init__(self, doors: Sequence[Door]) -> None:
        self.origin = Origin([door.sender for door in doors])
        self._doors = tuple(doors)
        self._open_to_all = not any(door.path or door.key for door in doors)
        self._admitted = Admitted(self.origin, HTTP)
        self._origins: dict[tuple[Sender, ...], Origin] = {}

    def admit(self, target: str, signature: str, body: bytes) -> Admitted | NotAdmitted:
        """Tell which PBXs a request may be of; those whose path it names come before the others."""
        if self._open_to_all:
            return self._admitted
        path = _path_of(target)
        named = [door for door in self._doors if door.path and _path_of(door.path) == path]
        found = named or [door for door in self._doors if not door.path]
        if not found:
            return NotAdmitted("no PBX of this address posts to this path")
        for door in found:
            if door.key and is_signed(signature, door.key, body):
                return Admitted(self._origin_of(door.sender), WEBHOOK)
        unsigned = tuple(door.sender for door in found if not door.key)
        if not unsigned:
            return NotAdmitted("X-Signature is not what the key in secret_file makes of the body")
        return Admitted(self._origin_of(*unsigned), HTTP)

    def _origin_of(self, *senders: Sender) -> Origin:
        """Return the same origin for the same PBXs: what is of one is taken together."""
        return self._origins.setdefault(senders, Origin(senders))


def _path_of(target: str) -> str:
    """Return the path that a target asks for, without the slashes it begins with.

    A PBX may set one in front of what it was told, and a relay names the host with it.
    """
    found = _PATH.match(target)
    assert found is not None
    return found[1]


def is_signed(signature: str, key: bytes, body: bytes) -> bool:
    """Tell, in a time that does not depend on how wrong it is, if a signature is the body's."""
    digest = hmac.digest(key, body, "sha256")
    return hmac.compare_digest(signature.strip().encode("utf-8", "replace"), b64encode(digest))


Entrances = Callable[[str, frozenset[str]], Entrance | None]
"""By address, and by the names in the peer's certificate."""


def entrances(doors: Sequence[Door]) -> Entrances:
    """Make what tells the entrance of an address; there is none for a stranger's."""

    @lru_cache(maxsize=1024)  # a PBX that posts connects for each report
    def entrance_of(address: str, names: frozenset[str]) -> Entrance | None:
        allowed = certified([door.sender for door in doors], names)
        found = [each for each in doors if each.sender in allowed]
        found = [door for door in found if door.sender.may_be_at(address)]
        return Entrance(found) if found else None

    return entrance_of
