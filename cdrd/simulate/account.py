"""Turns logins into verdicts, as a PBX does: five failures in a row lock the account."""

from hashlib import md5

FAILURES_TO_LOCK = 5
LOCK_SECONDS = 10 * 60


class Account:
    """The PBX's API account: after five failed logins in a row it is locked for ten minutes.

    While it is locked the right password is refused too, and no attempt lengthens the lock.
    """

    def __init__(self, username: str, password: str) -> None:
        # The vendor's HTTP login sends the MD5, the one over TCP the password itself.
        digest = md5(password.encode(), usedforsecurity=False).hexdigest()
        self._username, self._password, self._digest = username, password, digest
        self._failures = 0
        self._locked_until = float("-inf")

    def is_locked(self, now: float) -> bool:
        """Whether no login can succeed at `now` (seconds)."""
        return now < self._locked_until

    def admits(self, username: str, password: str, now: float, *, hashed: bool = False) -> bool:
        """Whether a login at `now` (seconds) succeeds; a failure counts towards the lock.

        `hashed` says that `password` is its MD5, 32 lower-case hexadecimal digits.
        """
        if self.is_locked(now):
            return False
        expected = self._digest if hashed else self._password
        if (username, password) == (self._username, expected):
            self._failures = 0
            return True
        self._fail(now)
        return False

    def _fail(self, now: float) -> None:
        self._failures += 1
        if self._failures == FAILURES_TO_LOCK:
            self._failures, self._locked_until = 0, now + LOCK_SECONDS
