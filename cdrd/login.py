"""Turns a PBX's answer to our login into a verdict, and earlier tries into when we may try again.

The rule that must stay true: a refused password is tried at most 4 times in 10 minutes, counting
the tries of earlier runs; the PBX locks the account at the fifth.
"""

import random
import re
from collections.abc import Iterable
from enum import Enum
from typing import Final

from cdrd.sizes import KIB

MINUTES: Final = 60.0
COUNTED_SECONDS: Final = 11 * MINUTES
"""The PBX counts a refusal for 10 minutes, and may take some of a minute to answer a login."""

MAX_REFUSALS: Final = 4
MAX_ANSWER_BYTES: Final = 16 * KIB

_RESPONSE = re.compile(rb"^Response:[ \t]*(Success|[^\n]+\n)", re.IGNORECASE | re.MULTILINE)
_SAID = re.compile(
    rb'"(?:response|result|status)"\s*:\s*"(?:(success)|fail|err)|"errno"\s*:\s*"?2000[23]',
    re.IGNORECASE,
)
_EVENT = re.compile(rb'"(?:action|event)"\s*:\s*"(?!login|auth|err)[^"]+"', re.IGNORECASE)


def login_block(username: str, password: str) -> bytes:
    """Spell the login of API 2.0.0, the password in clear text. Source: public client code."""
    return (
        f"Action: login\r\nUsername: {username}\r\nSecret: {password}\r\nVersion: 2.0.0\r\n\r\n"
    ).encode()


class Verdict(Enum):
    """What a PBX has said of our login so far."""

    UNDECIDED = "undecided"
    ACCEPTED = "accepted"
    REFUSED = "refused"


class LoginAnswer:
    """The text that a PBX answers a login with, read as it comes.

    Documented only by public client code: a block of lines with ``Response: Success`` among them.
    So an answer in JSON counts too, and an event before any answer is taken for a success. JSON
    that is neither decides nothing: a refusal may be spelt in any way.
    """

    def __init__(self) -> None:
        self._text = b""

    def receive(self, chunk: bytes | memoryview) -> Verdict:
        """Take bytes of the answer and tell what has been said."""
        self._text += chunk
        response = _RESPONSE.search(self._text)
        if response is not None:
            success = response[1].lower() == b"success"
            return Verdict.ACCEPTED if success else Verdict.REFUSED
        if _EVENT.search(self._text):
            # Before the next question: a call report's status may be FAILED too.
            return Verdict.ACCEPTED
        said = _SAID.search(self._text)
        if said is not None:
            return Verdict.ACCEPTED if said[1] else Verdict.REFUSED
        if len(self._text) > MAX_ANSWER_BYTES:
            return Verdict.ACCEPTED
        return Verdict.UNDECIDED


def seconds_to_wait(tried_at: Iterable[float], now: float) -> float:
    """Return the seconds until another refusal could not be the fifth in 10 minutes.

    ``tried_at``: when logins were tried that were refused, or may have been (monotonic seconds).
    """
    latest = sorted(tried_at)[-MAX_REFUSALS:]
    if len(latest) < MAX_REFUSALS:
        return 0.0
    return max(0.0, latest[0] + COUNTED_SECONDS - now)


class BackOff:
    """Growing, jittered waits between attempts, so that 50 PBXs do not come back as one."""

    def __init__(self, first: float = 0.5, longest: float = 60.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def wait(self) -> float:
        """Return the next wait in seconds: half of it fixed, half of it random."""
        delay, self._next = self._next, min(2 * self._next, self._longest)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """Begin anew after a success."""
        self._next = self._first
