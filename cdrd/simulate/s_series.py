"""Turns requests into the answers of the S-Series web API, 1.1.0 and 2.0.0: login, history.

What it refuses is HTTP 200 with an errno, as the vendor says. Where the facts are silent: whether a
token lives is asked before the parameters are; a `random` holds for the range that it was asked
for, with its token; one that is wrong, used or dead is 10003, a time in another form is 10004;
a refresh token is good once, while its token lives, which ends with it; events go to one
application, the last that has logged in with a port, URL or version; a login with none of these
asks for posts to port 8260 only while nobody else is registered.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any, Final

from aiohttp import web

from cdrd.simulate.account import Account
from cdrd.simulate.history import History
from cdrd.simulate.play import PlayingPBX
from cdrd.simulate.posting import PostingPBX, Registration, Target
from cdrd.simulate.web_api import (
    Limits,
    Refused,
    Tokens,
    answer,
    json_object,
    local_seconds,
)

UNSUPPORTED: Final = 10003
BLANK: Final = 10004
NO_JSON: Final = 20000
NO_POST: Final = 20001
LOCKED: Final = 20002
BAD_LOGIN: Final = 20003
NO_TOKEN: Final = 20004
BLANK_TOKEN: Final = 20005

_PARTY = {"v1.1.0": "extid", "v2.0.0": "number"}
_OF_CLOUD = "v2.0.0"
_WITHOUT_TOKEN = ("login", "token/refresh")
_DIALECTS = ("1.0.0", "1.0.1", "1.0.2", "2.0.0")
_DEFAULT_PORT = 8260
_ABSOLUTE = "1"


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request that has passed for one: which API, who, and what it says."""

    version: str
    peer: str
    token: str
    fields: dict[str, Any]

    def text(self, key: str) -> str:
        """Read a field that may be a number or a text, or missing."""
        value = self.fields.get(key)
        return f"{value}".strip() if isinstance(value, str | int) else ""


@dataclass(frozen=True, slots=True)
class _Range:
    """What a `random` was given for."""

    token: str
    parties: str
    begin: str
    end: str


class SSeriesApi:
    """The web API of an S-Series PBX: who is logged in, and what they may download."""

    def __init__(
        self,
        account: Account,
        history: History,
        pbx: PlayingPBX,
        *,
        posts: PostingPBX | None = None,
        is_cloud: bool = False,
        limits: Limits | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Count on `pbx`; register who logs in for the `posts`, where there are such.

        A Cloud PBX has version 2.0.0 alone, and refreshes tokens in place of the heartbeat.
        `note` is told of logins and refusals.
        """
        self._is_cloud = is_cloud
        self._account, self._history, self._pbx, self._note = account, history, pbx, note
        self._posts = posts
        limits = limits or Limits()
        self._clock = limits.clock
        self._tokens = Tokens(limits.token, limits.clock)
        self._randoms = Tokens(limits.random, limits.clock)
        self._ranges: dict[str, _Range] = {}
        self._registrant = ""
        self._token_of: dict[str, str] = {}  # by its refresh token

    def app(self) -> web.Application:
        """Make the routes."""
        app = web.Application()
        app.router.add_route("*", "/api/{version}/{call:.*}", self._take)
        return app

    async def _take(self, request: web.Request) -> web.Response:
        try:
            return await self._serve(request)
        except Refused as refused:
            self._pbx.refusals += 1
            what = f"{request.match_info['call']}: errno {refused.number}"
            self._note(f"{request.remote} was refused {what}")
            return answer({"status": "Failed", "errno": f"{refused.number}"})

    async def _serve(self, request: web.Request) -> web.Response:
        version, call = request.match_info["version"], request.match_info["call"]
        if version not in _PARTY or (self._is_cloud and version != _OF_CLOUD):
            raise Refused(UNSUPPORTED)
        if call == "cdr/download" and request.method == "GET":
            return self._download(self._ask(request, dict(request.query)))
        calls: dict[str, Callable[[_Ask], dict[str, Any]]] = {
            "login": self._login,
            **self._keeping_alive(),
            "cdr/get_random": self._get_random,
        }
        if call not in calls:
            raise Refused(UNSUPPORTED)
        if request.method != "POST":
            raise Refused(NO_POST)
        fields = await json_object(request)
        if fields is None:
            raise Refused(NO_JSON)
        ask = self._ask(request, fields, needs_token=call not in _WITHOUT_TOKEN)
        return answer({"status": "Success"} | calls[call](ask))

    def _keeping_alive(self) -> dict[str, Callable[[_Ask], dict[str, Any]]]:
        return (
            {"token/refresh": self._refresh} if self._is_cloud else {"heartbeat": self._heartbeat}
        )

    def _ask(
        self, request: web.Request, fields: dict[str, Any], *, needs_token: bool = True
    ) -> _Ask:
        token = request.query.get("token", "").strip()
        if needs_token:
            if not token:
                raise Refused(BLANK_TOKEN)
            if not self._tokens.is_alive(token):
                raise Refused(NO_TOKEN)
            self._tokens.prolong(token)
        return _Ask(request.match_info["version"], request.remote or "", token, fields)

    def _login(self, ask: _Ask) -> dict[str, Any]:
        username, password = ask.text("username"), ask.text("password")
        if not username or not password:
            raise Refused(BLANK)
        now = self._clock()
        if self._account.is_locked(now):
            raise Refused(LOCKED)
        registration = _registration(ask, ask.peer)
        if not self._account.admits(username, password, now, hashed=True):
            raise Refused(BAD_LOGIN)
        issued = self._issue()
        self._pbx.logins += 1
        self._note(f"{ask.peer} logged in")
        if self._posts is not None and (_asks_for_posts(ask) or self._posts.registration is None):
            self._register(issued["token"], registration)
        return issued

    def _issue(self) -> dict[str, str]:
        token = self._tokens.issue()
        if not self._is_cloud:
            return {"token": token}
        refresh = token_hex(16)
        alive = {known: of for known, of in self._token_of.items() if self._tokens.is_alive(of)}
        self._token_of = alive | {refresh: token}
        return {"token": token, "refreshtoken": refresh}

    def _register(self, token: str, registration: Registration) -> None:
        assert self._posts is not None
        self._registrant = token
        self._posts.register(registration, lambda: self._tokens.is_alive(token))

    def _heartbeat(self, ask: _Ask) -> dict[str, Any]:
        """Keep the registration, with what it says anew; without a version it falls to 1.0.0."""
        self._pbx.heartbeats += 1
        current = self._posts.registration if self._posts is not None else None
        if current is not None and ask.token == self._registrant:
            moved = any(ask.text(key) for key in ("ipaddr", "port", "url"))
            told = _registration(ask, ask.text("ipaddr") or ask.peer)
            self._register(ask.token, told if moved else replace(current, dialect=told.dialect))
        return {}

    def _refresh(self, ask: _Ask) -> dict[str, Any]:
        """Put a new token in the place of the one whose refresh token is shown."""
        refresh = ask.text("refreshtoken")
        if not refresh:
            raise Refused(BLANK)
        old = self._token_of.get(refresh, "")
        if not self._tokens.is_alive(old):
            raise Refused(NO_TOKEN)
        self._pbx.heartbeats += 1
        issued = self._issue()
        current = self._posts.registration if self._posts is not None else None
        if current is not None and old == self._registrant:
            self._register(issued["token"], current)
        self._tokens.end(old)
        return issued

    def _get_random(self, ask: _Ask) -> dict[str, Any]:
        party = _PARTY[ask.version]
        asked = _range(ask)
        random = self._randoms.issue()
        self._ranges = {known: it for known, it in self._ranges.items() if self._is_good(known)}
        self._ranges[random] = asked
        told = {party: asked.parties, "starttime": asked.begin, "endtime": asked.end}
        return {**told, "random": random}

    def _is_good(self, random: str) -> bool:
        return self._randoms.is_alive(random)

    def _download(self, ask: _Ask) -> web.Response:
        asked, random = _range(ask), ask.text("random")
        if not random:
            raise Refused(BLANK)
        is_good = self._is_good(random)
        self._randoms.end(random)
        if not is_good or self._ranges.pop(random) != asked:
            raise Refused(UNSUPPORTED)
        begin, end = local_seconds(asked.begin), local_seconds(asked.end)
        assert begin is not None
        assert end is not None
        self._pbx.fetches += 1
        table = self._history.csv(asked.parties, begin, end)
        return web.Response(text=table, content_type="text/csv")


def _range(ask: _Ask) -> _Range:
    parties, begin, end = (ask.text(key) for key in (_PARTY[ask.version], "starttime", "endtime"))
    if not parties or local_seconds(begin) is None or local_seconds(end) is None:
        raise Refused(BLANK)
    return _Range(ask.token, parties, begin, end)


def _asks_for_posts(ask: _Ask) -> bool:
    return any(ask.text(key) for key in ("port", "url", "version"))


def _registration(ask: _Ask, host: str) -> Registration:
    """Read where on that host posts shall go, or to which absolute URL, and in which dialect."""
    version, url = ask.text("version"), ask.text("url")
    dialect = version if version in _DIALECTS else "1.0.0"
    if _ABSOLUTE in (ask.text("urltag"), ask.text("urlflag")) and url:
        try:
            return Registration(Target.of_url(url), dialect)
        except ValueError:
            raise Refused(BLANK) from None
    return Registration(Target.of_path(host, _port(ask.text("port")), url), dialect)


def _port(text: str) -> int:
    if not text:
        return _DEFAULT_PORT
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 1 << 16):
        raise Refused(BLANK)
    return int(text)
