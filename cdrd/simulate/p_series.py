"""Turns requests into the answers of the P-Series API: tokens, subscriptions and the history.

Where the facts are silent: a refusal is HTTP 200 with errcode and errmsg, only the WebSocket's is
401 with the same body; a wrong client id or secret, no token, or a User-Agent other than `OpenAPI`
is 10005; a token that is unknown, ended or too old is 10004; an address is blocked for ten minutes
and then refused whatever it asks. A refresh token is good once, and dies with a `del_token` of its
access token, not with that token's time. A list of rows is
`{"errcode":0,"errmsg":"SUCCESS","total_number":N,"data":[...]}`, 20 rows a page unless told, in the
order played; a search without a time in the right format finds none.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from cdrd.simulate.account import Account
from cdrd.simulate.history import History
from cdrd.simulate.play import PlayingPBX
from cdrd.simulate.subscribed import PARAMETER_ERROR, SubscribedPBX
from cdrd.simulate.web_api import (
    Limits,
    Refused,
    Tokens,
    answer,
    json_object,
    local_seconds,
)

TOKEN_EXPIRED: Final = 10004
ACCESS_DENIED: Final = 10005
BLOCKED: Final = 70004
MOST_TOKENS: Final = 8
MOST_ROWS: Final = 10_000

_REFRESH_SECONDS = 24 * 3600
_SENTENCES = {
    TOKEN_EXPIRED: "TOKEN EXPIRED",
    ACCESS_DENIED: "ACCESS DENIED",
    PARAMETER_ERROR: "PARAMETER ERROR",
    BLOCKED: "ADDRESS BLOCKED",
}
_SUCCESS = {"errcode": 0, "errmsg": "SUCCESS"}
_BASE = "/openapi/v1.0"


class PSeriesApi:
    """The API of a P-Series PBX: who has a token, and what it opens."""

    def __init__(
        self,
        credentials: tuple[str, str],
        history: History,
        pbx: PlayingPBX,
        *,
        limits: Limits | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Let in who knows the client id and the client secret, and count on `pbx`.

        Subscriptions are taken when that PBX sends them. `note` is told of logins and refusals.
        """
        self._credentials, self._history, self._pbx, self._note = credentials, history, pbx, note
        limits = limits or Limits()
        self._clock = limits.clock
        self._tokens = Tokens(limits.token, limits.clock, MOST_TOKENS)
        self._refreshes = Tokens(_REFRESH_SECONDS, limits.clock, MOST_TOKENS)
        self._access_of: dict[str, str] = {}
        self._accounts: dict[str, Account] = {}

    def app(self) -> web.Application:
        """Make the routes."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_post(f"{_BASE}/get_token", self._get_token)
        app.router.add_post(f"{_BASE}/refresh_token", self._refresh_token)
        app.router.add_get(f"{_BASE}/del_token", self._with_token(self._del_token))
        app.router.add_get(f"{_BASE}/cdr/list", self._with_token(self._list))
        app.router.add_get(f"{_BASE}/cdr/search", self._with_token(self._search))
        if isinstance(self._pbx, SubscribedPBX):
            app.router.add_get(f"{_BASE}/subscribe", self._with_token(self._pbx.serve))
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._refuse_strangers(request)
            return await handler(request)
        except Refused as refused:
            self._pbx.refusals += 1
            call = request.path.removeprefix(f"{_BASE}/")
            self._note(f"{request.remote} was refused {call}: errcode {refused.number}")
            told = answer({"errcode": refused.number, "errmsg": _SENTENCES[refused.number]})
            if call == "subscribe":
                told.set_status(401)
            return told

    def _refuse_strangers(self, request: web.Request) -> None:
        if request.headers.get("User-Agent") != "OpenAPI":
            raise Refused(ACCESS_DENIED)
        if self._account(request).is_locked(self._clock()):
            raise Refused(BLOCKED)

    def _account(self, request: web.Request) -> Account:
        """Count failures by address: it is the address that is blocked."""
        return self._accounts.setdefault(request.remote or "", Account(*self._credentials))

    def _with_token(
        self, serve: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def served(request: web.Request) -> web.StreamResponse:
            token = request.query.get("access_token", "")
            if not token:
                raise Refused(ACCESS_DENIED)
            if not self._tokens.is_alive(token):
                raise Refused(TOKEN_EXPIRED)
            return await serve(request)

        return served

    async def _get_token(self, request: web.Request) -> web.Response:
        username, password = await _texts(request, "username", "password")
        if not self._account(request).admits(username, password, self._clock()):
            raise Refused(ACCESS_DENIED)
        self._pbx.logins += 1
        self._note(f"{request.remote} logged in")
        return self._issue()

    async def _refresh_token(self, request: web.Request) -> web.Response:
        (refresh,) = await _texts(request, "refresh_token")
        if not self._refreshes.is_alive(refresh):
            raise Refused(TOKEN_EXPIRED)
        self._end(self._access_of[refresh])
        return self._issue()

    async def _del_token(self, request: web.Request) -> web.Response:
        self._end(request.query["access_token"])
        return answer(_SUCCESS)

    def _issue(self) -> web.Response:
        access, refresh = self._tokens.issue(), self._refreshes.issue()
        self._access_of[refresh] = access
        return answer(_SUCCESS | {"access_token": access, "refresh_token": refresh})

    def _end(self, access: str) -> None:
        self._tokens.end(access)
        for refresh in [known for known, of in self._access_of.items() if of == access]:
            self._refreshes.end(refresh)
            del self._access_of[refresh]

    async def _list(self, request: web.Request) -> web.Response:
        return self._page(request, None)

    async def _search(self, request: web.Request) -> web.Response:
        begin, end = (
            local_seconds(request.query.get(key, "")) for key in ("start_time", "end_time")
        )
        if begin is None or end is None:
            return self._page(request, (1, 0))
        return self._page(request, (begin, end))

    def _page(self, request: web.Request, between: tuple[int, int] | None) -> web.Response:
        page = _whole(request, "page", 1, 10**9)
        size = _whole(request, "page_size", 20, MOST_ROWS)
        total, rows = self._history.rows(page, size, between)
        self._pbx.fetches += 1
        return answer(_SUCCESS | {"total_number": total, "data": rows})


async def _texts(request: web.Request, *keys: str) -> list[str]:
    told: dict[str, Any] = await json_object(request) or {}
    texts = [told.get(key) for key in keys]
    if not all(isinstance(text, str) and text for text in texts):
        raise Refused(PARAMETER_ERROR)
    return [f"{text}" for text in texts]


def _whole(request: web.Request, key: str, default: int, most: int) -> int:
    text = request.query.get(key, f"{default}")
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 0 < int(text) <= most):
        raise Refused(PARAMETER_ERROR)
    return int(text)
