"""Turns a PBX's ``[pbx.events]`` or ``[pbx.history]`` into one login to its web API.

The rule that must stay true: a login of ours announces nothing, so that a PBX which posts to the
daemon goes on doing so.
"""

from pathlib import Path

from cdrd.config import Events, History
from cdrd.history_api import open_history
from cdrd.login_guard import LoginGuard
from cdrd.pbx_api import Family, account_of, base_of, trust_of
from cdrd.s_series import SSeriesApi


async def try_login(
    settings: Events | History, family: Family, path: Path, guard: LoginGuard
) -> str:
    """Log in, and say so. Raises Unreachable, LoginRefused, NotOffered, OSError and ValueError."""
    base = settings.url if isinstance(settings, History) else base_of(settings)
    account, trust = account_of(settings, path), trust_of(settings, path)
    api = await open_history(base, account, trust, guard, family)
    try:
        await api.login()
    finally:
        await api.close()
    version = f"API {api.version}" if isinstance(api, SSeriesApi) else "the P-Series API"
    return f"logged in to {version}"
