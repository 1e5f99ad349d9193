"""Turns a PBX's answer to our login into a verdict, and refusals into when we may try again.

The rule that must stay true: a refused password is tried at most 4 times in 10 minutes, counting
the tries of earlier runs; the PBX locks the account at the fifth.
"""

import random
import re
from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Final

from cdrd.frame import KIB

MINUTES: Final = 60.0
LOCK_OUT_SECONDS: Final = 10 * MINUTES
MAX_REFUSALS: Final = 4
MAX_ANSWER_BYTES: Final = 16 * KIB

_RESPONSE = re.compile(rb"^Response:[ \t]*(Success|[^\n]+\n)", re.IGNORECASE | re.MULTILINE)
_REFUSED_JSON = re.compile(rb'"status"\s*:\s*"Failed"|"errno"\s*:\s*"?2000[23]', re.IGNORECASE)
_EVENT = re.compile(rb'"(?:action|event)"\s*:\s*"(?!login")[^"]+"', re.IGNORECASE)


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
    So an answer in JSON counts too, and an event before any answer is taken for a success.
    """

    def __init__(self) -> None:
        self._text = b""

    def receive(self, chunk: bytes) -> Verdict:
        """Take bytes of the answer and tell what has been said."""
        self._text += chunk
        response = _RESPONSE.search(self._text)
        if response is not None:
            success = response[1].lower() == b"success"
            return Verdict.ACCEPTED if success else Verdict.REFUSED
        if _EVENT.search(self._text):
            # Before the next question: a call report's status may be FAILED too.
            return Verdict.ACCEPTED
        if _REFUSED_JSON.search(self._text):
            return Verdict.REFUSED
        if b"}" in self._text or len(self._text) > MAX_ANSWER_BYTES:
            return Verdict.ACCEPTED
        return Verdict.UNDECIDED


class RefusalGuard:
    """When a login may be tried, given the refusals of the last 10 minutes (Unix seconds)."""

    def __init__(self, refused_at: Iterable[float] = ()) -> None:
        self._refused_at = deque(sorted(refused_at)[-MAX_REFUSALS:], maxlen=MAX_REFUSALS)

    def refused(self, now: float) -> None:
        """Remember a refusal."""
        self._refused_at.append(now)

    def wait(self, now: float) -> float:
        """Return the seconds until another refusal would not be the fifth in 10 minutes."""
        if len(self._refused_at) < MAX_REFUSALS:
            return 0.0
        if self._refused_at[-1] > now:
            # The clock was set back: how long ago they were is not known, so they count as of now.
            self._refused_at = deque((min(at, now) for at in self._refused_at), MAX_REFUSALS)
        wait = self._refused_at[0] + LOCK_OUT_SECONDS - now
        return min(max(0.0, wait), LOCK_OUT_SECONDS)  # however far a clock was set back


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
