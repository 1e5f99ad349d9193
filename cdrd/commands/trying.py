"""Turns a PBX into the guard of a command's login to it.

The rule that must stay true: a command waits for nothing. What may not be tried now is said.
"""

import math
import time
from pathlib import Path
from typing import NoReturn

from cdrd.config import Pbx
from cdrd.login_guard import LoginFile, LoginGuard, accounts_of


class NotTried(Exception):
    """A PBX must not be logged in to now; the text says why, and what to do."""


def command_guard(database: Path, pbx: Pbx) -> LoginGuard:
    """Guard a command's logins to a PBX. Its ``attempt`` raises NotTried."""
    return LoginGuard(
        LoginFile(database), accounts_of(pbx), suspended=_never_wait, uncounted=_never_uncounted
    )


def _never_wait(seconds: float) -> NoReturn:
    at = time.strftime("%H:%M:%S", time.localtime(time.time() + math.ceil(seconds)))
    raise NotTried(
        "not tried, since 4 logins in the last 10 minutes were refused or cut off, and the PBX"
        f" locks the account at the fifth: mend username or password_file, try again at {at}"
    )


def _never_uncounted(error: OSError) -> NoReturn:
    raise NotTried(
        f"not tried, since logins are counted in {error.filename}: {error.strerror}: make its"
        " directory where it is missing, and run this as the daemon's user or as root"
    ) from error
