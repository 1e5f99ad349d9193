"""Turns a P-Series PBX's web API (``openapi/v1.0``) into pages of its history and a WebSocket.

The rule that must stay true: a token is used while the PBX takes it, renewed by its refresh token,
and got anew with the password only where that fails. Source: the vendor's pages; every request
names a ``User-Agent``, and a failure is an ``errcode`` in the answer.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import aiohttp
import orjson

from cdrd.fetch import readings
from cdrd.login_guard import LoginGuard
from cdrd.pbx_api import (
    Account,
    LoginRefused,
    NotOffered,
    Trust,
    Unreachable,
)
from cdrd.report import spelt
from cdrd.sizes import MIB
from cdrd.web_session import CLOSE_SECONDS, WebSession, WebSocket

API: Final = "/openapi/v1.0"
PAGE_ROWS: Final = 1000
SAMPLE_ROWS: Final = 100
MESSAGE_BYTES: Final = 16 * MIB

MAX_QUOTED: Final = 200
"""So many characters of what a PBX says are quoted."""

_EXPIRED: Final = 10004
_BLOCKED: Final = 70004


class PSeriesApi:
    """One login to a P-Series PBX, for whoever needs it."""

    def __init__(
        self,
        base: str,
        account: Account,
        trust: Trust,
        guard: LoginGuard,
        *,
        page_rows: int = PAGE_ROWS,
    ) -> None:
        self.base = base.rstrip("/").removesuffix(API)
        self.account = account
        self._guard = guard
        self._page_rows = page_rows
        self._web = WebSession(self.base, trust, headers={"User-Agent": "OpenAPI"})
        self._token = ""
        self._refresh_token = ""
        self._turn = asyncio.Lock()

    async def login(self) -> str:
        """Return a token, and get one where there is none.

        Raises Unreachable, LoginRefused, NotOffered, and for the password's file OSError and
        ValueError; so does all that needs one.
        """
        return self._token or await self._other_token("")

    async def renew(self) -> None:
        """Get a new token before the PBX takes the one at hand no more."""
        await self._other_token(self._token)

    async def search(self, start: datetime, end: datetime) -> AsyncIterator[list[Any]]:
        """Return the history of a time, naive and the PBX's own, in pages of REST rows.

        Times have to be in the format that the PBX shows times in, or it finds nothing: the format
        is read off rows. Where more than one fits them, a row may come twice, or from other times.
        """
        listed, total = await self._page("cdr/list", {}, 1, SAMPLE_ROWS)
        sample = [row for row in listed if isinstance(row, dict)]
        if not sample:
            if listed or total:
                raise Unreachable(f"{self.base} tells of a history and hands out no row of it")
            return  # it has no history at all
        for display_format in display_formats(sample):
            span = {
                "start_time": start.strftime(display_format),
                "end_time": end.strftime(display_format),
            }
            async for page in self._pages("cdr/search", span):
                yield page

    async def subscribe(self) -> WebSocket:
        """Open the WebSocket of events; a token that it is refused with is tried once."""
        token = await self.login()
        for is_last in (False, True):
            try:
                return await self._web.web_socket(
                    f"{API}/subscribe", {"access_token": token}, MESSAGE_BYTES
                )
            except aiohttp.WSServerHandshakeError as error:
                if is_last:
                    raise Unreachable(
                        f"{self.base} answers a WebSocket with HTTP status {error.status}: check"
                        " that its API may send events"
                    ) from error
                token = await self._other_token(token)
        raise AssertionError

    def distrust_token(self) -> None:
        """Use the token at hand no more: the PBX has refused it."""
        self._token = ""

    async def close(self) -> None:
        """Give the token back, of which a PBX grants 8, and close the connections."""
        token, self._token = self._token, ""
        if token:
            # Where that fails it dies by itself, after 30 minutes.
            with contextlib.suppress(Unreachable, NotOffered, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._web.exchange("GET", f"{API}/del_token", {"access_token": token})
        await self._web.close()

    async def _other_token(self, spent: str) -> str:
        """Return another token than the one that is spent."""
        async with self._turn:
            if self._token == spent:
                self._token = ""
                if not await self._refresh():
                    await self._log_in()
            return self._token

    async def _refresh(self) -> bool:
        refresh_token, self._refresh_token = self._refresh_token, ""
        if not refresh_token:
            return False
        answer = await self._web.exchange(
            "POST", f"{API}/refresh_token", None, {"refresh_token": refresh_token}
        )
        return self._keep(answer)

    async def _log_in(self) -> None:
        async with self._guard.attempt():
            answer = await self._web.exchange(
                "POST",
                f"{API}/get_token",
                None,
                {"username": self.account.username, "password": self.account.read_password()},
            )
            if self._keep(answer):
                return
            code = errcode_of(answer)
            if code == _BLOCKED:
                raise LoginRefused(
                    f"{self.base} has blocked our address: mend username (the client id) or"
                    " password_file (the client secret), and unblock us on the PBX"
                )
            # No page lists what a wrong secret gives, so any error is taken for that.
            raise LoginRefused(
                f"{self.base} refused the login with {spell_error(answer)}: check username (the"
                " client id) and password_file (the client secret); the PBX blocks us at the fifth"
                " refusal"
            )

    def _keep(self, answer: Mapping[str, Any]) -> bool:
        token, refresh_token = answer.get("access_token"), answer.get("refresh_token")
        if errcode_of(answer) or not (isinstance(token, str) and token):
            return False
        self._token = token
        self._refresh_token = refresh_token if isinstance(refresh_token, str) else ""
        return True

    async def _pages(self, path: str, query: Mapping[str, str]) -> AsyncIterator[list[Any]]:
        """Hand out pages until as many rows have come as the PBX tells of.

        Each stands for one place in the history: two may be alike, and one that moved on to the
        next page while the pages were read comes twice. A page that came before stands for none:
        some PBXs repeat one. Where that, or an empty one, comes before all rows have: Unreachable.
        A PBX that tells no number is asked until a page brings no row that was not there yet.
        """
        known: set[int] = set()
        pages: set[int] = set()
        received = total = 0
        for number in itertools.count(1):
            page, told = await self._page(path, query, number, self._page_rows)
            total = told or total
            marks = [_mark(row) for row in page]
            brought, mark = set(marks) - known, hash(tuple(marks))
            if mark not in pages:
                received += len(page)
            known |= brought
            pages.add(mark)
            if brought:
                yield page
            if received == total or (received > total and not brought):
                return
            if not brought:
                what = "repeats" if page else "ends"
                raise Unreachable(
                    f"{self.base} {what} its history after {received} of {total} rows: ask for less"
                    " time"
                )

    async def _page(
        self, path: str, query: Mapping[str, str], number: int, rows: int
    ) -> tuple[list[Any], int]:
        """Return a page, and how many rows the PBX tells of in all, 0 where it does not."""
        answer = await self._get(path, {**query, "page": f"{number}", "page_size": f"{rows}"})
        page, total = _rows(answer), answer.get("total_number")
        if page is None and total is None:
            raise Unreachable(f"{self.base} answers without its history")
        return page or [], total if isinstance(total, int) else 0

    async def _get(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        token = await self.login()
        answer = await self._web.exchange("GET", f"{API}/{path}", {**query, "access_token": token})
        if errcode_of(answer) == _EXPIRED:
            token = await self._other_token(token)
            answer = await self._web.exchange(
                "GET", f"{API}/{path}", {**query, "access_token": token}
            )
        if errcode_of(answer):
            raise Unreachable(
                f"{self.base} refused a request with {spell_error(answer)}: check that the PBX's"
                " API may read its call records"
            )
        return answer


def display_formats(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the formats that the times of most rows can be in; a bad row hides no history.

    Raises Unreachable where none fits any.
    """
    fits = Counter(known for row in rows for known, _ in readings(row))
    if not fits:
        shown = spelt(rows[0].get("time"))[:MAX_QUOTED]
        raise Unreachable(
            f"the PBX shows a time as {shown!r}, a format that is not known here: set another one"
            " on the PBX, such as Year-Month-Day with 24 hours"
        )
    most = max(fits.values())
    return [known for known, rows_fitted in fits.items() if rows_fitted == most]


def _rows(answer: Mapping[str, Any]) -> list[Any] | None:
    """Return the list in an answer; the vendor's pages call it data."""
    lists = (rows for rows in (answer.get("data"), *answer.values()) if isinstance(rows, list))
    return next(lists, None)


def _mark(row: object) -> int:
    """Tell a row from others; what JSON cannot spell is no record, and told by its keys."""
    try:
        return hash(orjson.dumps(row))
    except orjson.JSONEncodeError:
        return hash(tuple(row) if isinstance(row, dict) else None)


def errcode_of(answer: Mapping[str, Any]) -> int:
    """Return the error that an answer tells, 0 for a success."""
    try:
        return int(answer.get("errcode", 0))
    except (TypeError, ValueError):
        return -1


def spell_error(answer: Mapping[str, Any]) -> str:
    """Spell the error that an answer tells, in the PBX's words too."""
    said = spelt(answer.get("errmsg"))[:MAX_QUOTED]
    return f"errcode {errcode_of(answer)}{f' ({said})' if said else ''}"
