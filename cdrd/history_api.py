"""Turns where a PBX's history is fetched from into the API of its family.

The rule that must stay true: of an unknown family each API is asked in turn, and one that is not
offered counts as nothing; where a login refuses us, no other is tried.
"""

from cdrd.login_guard import LoginGuard
from cdrd.p_series import PSeriesApi
from cdrd.pbx_api import Account, Family, NotOffered, Trust
from cdrd.s_series import SSeriesApi


async def open_history(
    base: str,
    account: Account,
    trust: Trust,
    guard: LoginGuard,
    family: Family = "",
    *,
    held: SSeriesApi | PSeriesApi | None = None,
) -> SSeriesApi | PSeriesApi:
    """Return the API that a PBX's history is fetched from; close it in the end.

    Of an unknown family it is asked, newest first, which takes a login; of a known one nothing is
    sent yet. ``held``: what its events come through; it is returned where the account is the same
    one, since another login might end its registration.

    Raises Unreachable, LoginRefused, NotOffered; for the password's file OSError and ValueError.
    """
    s_series = SSeriesApi(base, account, trust, guard)
    p_series = PSeriesApi(base, account, trust, guard)
    for api in (s_series, p_series):
        if held is not None and (api.base, account.username) == (held.base, held.account.username):
            return held
    if family == "P-Series":
        return p_series
    if family == "S-Series":
        return s_series
    try:
        await s_series.login()
    except NotOffered:
        await s_series.close()
    except BaseException:
        await s_series.close()
        raise
    else:
        return s_series
    try:
        await p_series.login()
    except BaseException:
        await p_series.close()
        raise
    return p_series
