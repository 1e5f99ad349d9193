"""Turns a PBX's ``[pbx.events]`` or ``[pbx.history]`` into one login to its web API.

The rule that must stay true: a login of ours announces what the daemon's does, so that a PBX which
posts to the daemon goes on doing so.
"""

from pathlib import Path

from cdrd.address import parse_address
from cdrd.config import Config, Events, History, Pbx
from cdrd.p_series import PSeriesApi
from cdrd.pbx_api import LoginGuard, account_of, base_of, family_of, open_history, trust_of
from cdrd.s_series import Announced, SSeriesApi


async def try_login(
    pbx: Pbx, settings: Events | History, config: Config, path: Path, guard: LoginGuard
) -> str:
    """Log in, and say so. Raises Unreachable, LoginRefused, NotOffered, OSError and ValueError."""
    api = _events_api(pbx.events, config, path, guard)
    if isinstance(settings, History):
        api = await open_history(
            settings.url,
            account_of(settings, path),
            trust_of(settings, path),
            guard,
            family_of(pbx.events),
            held=api,
        )
    assert api is not None
    try:
        await api.login()
    finally:
        await api.close()
    version = f"API {api.version}" if isinstance(api, SSeriesApi) else "the P-Series API"
    return f"logged in to {version}"


def _events_api(
    events: Events | None, config: Config, path: Path, guard: LoginGuard
) -> SSeriesApi | PSeriesApi | None:
    """Return the API that events come through, where they come through one."""
    if events is None or events.kind not in ("http", "websocket"):
        return None
    base, account, trust = base_of(events), account_of(events, path), trust_of(events, path)
    if events.kind == "websocket":
        return PSeriesApi(base, account, trust, guard)
    _, port = parse_address(config.http.listen[0])
    announced = Announced(port, events.path or "/") if port else None
    return SSeriesApi(base, account, trust, guard, announced=announced)
