"""The P-Series API gives tokens, ends them, and opens the history to who has one."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from cdrd.simulate.account import FAILURES_TO_LOCK, LOCK_SECONDS
from cdrd.simulate.history import History
from cdrd.simulate.p_series import MOST_TOKENS, PSeriesApi
from cdrd.simulate.play import PlayingPBX
from cdrd.simulate.posting import WebhookPBX
from cdrd.simulate.reports import rest_row
from cdrd.simulate.subscribed import SubscribedPBX
from cdrd.simulate.web_api import Limits, WebServer

STARTED = 1571897930
SUCCESS = {"errcode": 0, "errmsg": "SUCCESS"}
EXPIRED = {"errcode": 10004, "errmsg": "TOKEN EXPIRED"}
DENIED = {"errcode": 10005, "errmsg": "ACCESS DENIED"}
BAD_PARAMETER = {"errcode": 40002, "errmsg": "PARAMETER ERROR"}
BLOCKED = {"errcode": 70004, "errmsg": "ADDRESS BLOCKED"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Api:
    """The API with a client of it."""

    client: aiohttp.ClientSession
    url: str
    pbx: PlayingPBX
    clock: Clock
    said: list[str]

    async def post(self, call: str, **fields: str) -> dict[str, Any]:
        async with self.client.post(f"{self.url}/{call}", json=fields) as answered:
            assert answered.status == 200
            told: dict[str, Any] = await answered.json()
            return told

    async def get(self, call: str, token: str = "", **query: str) -> dict[str, Any]:
        parameters = ({"access_token": token} if token else {}) | query
        async with self.client.get(f"{self.url}/{call}", params=parameters) as answered:
            assert answered.status == 200
            told: dict[str, Any] = await answered.json()
            return told

    async def get_token(self, password: str = "s3cret") -> dict[str, Any]:
        return await self.post("get_token", username="api", password=password)

    async def token(self) -> str:
        return f"{(await self.get_token())['access_token']}"


@contextlib.asynccontextmanager
async def serving(pbx: PlayingPBX | None = None, calls: int = 3) -> AsyncIterator[Api]:
    clock, said, history, pbx = Clock(), list[str](), History(120), pbx or WebhookPBX()
    for number in range(calls):
        history.add(number, STARTED + 60 * number)
    api = PSeriesApi(("api", "s3cret"), history, pbx, limits=Limits(clock=clock), note=said.append)
    server = WebServer(api.app())
    await server.start()
    try:
        async with aiohttp.ClientSession(headers={"User-Agent": "OpenAPI"}) as client:
            yield Api(client, f"{server.url}/openapi/v1.0", pbx, clock, said)
    finally:
        await pbx.close()
        await server.close()


@pytest.mark.asyncio
async def test_client_id_and_secret_get_two_tokens() -> None:
    async with serving() as api:
        told = await api.get_token()
        assert told.keys() == {"errcode", "errmsg", "access_token", "refresh_token"}
        assert told.items() >= SUCCESS.items()
        assert api.said == ["127.0.0.1 logged in"]
        assert (api.pbx.logins, api.pbx.refusals) == (1, 0)


@pytest.mark.asyncio
@pytest.mark.parametrize("user_agent", ["", "Python/3.11 aiohttp", None])
async def test_without_its_user_agent_nothing_is_served(user_agent: str | None) -> None:
    skipped = ["User-Agent"] if user_agent is None else []
    headers = {} if user_agent is None else {"User-Agent": user_agent}
    async with (
        serving(SubscribedPBX()) as api,
        aiohttp.ClientSession(headers=headers, skip_auto_headers=skipped) as client,
    ):
        query = {"access_token": await api.token()}
        login = {"username": "api", "password": "s3cret"}
        async with client.post(f"{api.url}/get_token", json=login) as answered:
            assert await answered.json() == DENIED
        for call in ("cdr/list", "cdr/search", "del_token", "subscribe"):
            async with client.get(f"{api.url}/{call}", params=query) as answered:
                assert await answered.json() == DENIED
        assert api.pbx.refusals == 5


@pytest.mark.asyncio
async def test_five_failures_block_the_address_for_ten_minutes() -> None:
    async with serving() as api:
        token = await api.token()
        for _ in range(FAILURES_TO_LOCK):
            assert await api.get_token("wrong") == DENIED
        assert await api.get_token() == BLOCKED
        assert await api.get("cdr/list", token) == BLOCKED
        api.clock.now += LOCK_SECONDS - 1
        assert await api.get_token() == BLOCKED
        api.clock.now += 1
        assert (await api.get_token())["errcode"] == 0
        assert (await api.get("cdr/list", token))["errcode"] == 0


@pytest.mark.asyncio
async def test_a_login_without_its_fields_is_a_parameter_error() -> None:
    async with serving() as api:
        assert await api.post("get_token", username="api") == BAD_PARAMETER
        assert await api.post("refresh_token") == BAD_PARAMETER
        async with api.client.post(f"{api.url}/get_token", data=b"username=api") as answered:
            assert await answered.json() == BAD_PARAMETER


@pytest.mark.asyncio
async def test_an_access_token_lives_for_half_an_hour_however_busy() -> None:
    async with serving() as api:
        token = await api.token()
        api.clock.now += 1799
        assert (await api.get("cdr/list", token))["errcode"] == 0
        api.clock.now += 1
        assert await api.get("cdr/list", token) == EXPIRED
        assert await api.get("cdr/list") == DENIED
        assert await api.get("cdr/list", "0" * 32) == EXPIRED


@pytest.mark.asyncio
async def test_a_refresh_token_gets_new_tokens_once_within_a_day() -> None:
    async with serving() as api:
        first = await api.get_token()
        api.clock.now += 24 * 3600 - 1
        second = await api.post("refresh_token", refresh_token=first["refresh_token"])
        assert (await api.get("cdr/list", second["access_token"]))["errcode"] == 0
        assert await api.post("refresh_token", refresh_token=first["refresh_token"]) == EXPIRED
        api.clock.now += 24 * 3600
        assert await api.post("refresh_token", refresh_token=second["refresh_token"]) == EXPIRED


@pytest.mark.asyncio
async def test_a_refresh_ends_the_access_token_before() -> None:
    async with serving() as api:
        first = await api.get_token()
        await api.post("refresh_token", refresh_token=first["refresh_token"])
        assert await api.get("cdr/list", first["access_token"]) == EXPIRED


@pytest.mark.asyncio
async def test_a_deleted_token_is_ended_with_its_refresh_token() -> None:
    async with serving() as api:
        told = await api.get_token()
        assert await api.get("del_token", told["access_token"]) == SUCCESS
        assert await api.get("cdr/list", told["access_token"]) == EXPIRED
        assert await api.post("refresh_token", refresh_token=told["refresh_token"]) == EXPIRED


@pytest.mark.asyncio
async def test_with_the_ninth_token_the_oldest_dies() -> None:
    async with serving() as api:
        tokens = [await api.token() for _ in range(MOST_TOKENS + 1)]
        errors = [(await api.get("cdr/list", token))["errcode"] for token in tokens]
        assert errors == [10004] + [0] * MOST_TOKENS


@pytest.mark.asyncio
async def test_a_list_is_the_history_page_by_page() -> None:
    async with serving(calls=25) as api:
        token = await api.token()
        rows = []
        for page in ("1", "2", "3"):
            told = await api.get("cdr/list", token, page=page, page_size="10")
            assert told.keys() == {"errcode", "errmsg", "total_number", "data"}
            assert told["total_number"] == 25
            rows += told["data"]
        assert rows == [
            rest_row(number, started=STARTED + 60 * number, utc_offset=120) for number in range(25)
        ]
        assert len((await api.get("cdr/list", token))["data"]) == 20
        assert len((await api.get("cdr/list", token, page_size="10000"))["data"]) == 25
        assert api.pbx.fetches == 5


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "query",
    [{"page": "0"}, {"page": "one"}, {"page_size": "0"}, {"page_size": "10001"}, {"page": ""}],
)
@pytest.mark.parametrize("call", ["cdr/list", "cdr/search"])
async def test_a_senseless_page_is_a_parameter_error(call: str, query: dict[str, str]) -> None:
    async with serving() as api:
        assert await api.get(call, await api.token(), **query) == BAD_PARAMETER


@pytest.mark.asyncio
async def test_a_search_finds_by_the_pbxs_clock_in_its_format_alone() -> None:
    async with serving() as api:
        token = await api.token()
        found = await api.get(
            "cdr/search",
            token,
            start_time="2019-10-24 08:19:50",
            end_time="2019-10-24 08:19:50",
        )
        assert [row["call_id"] for row in found["data"]] == [f"{STARTED + 60}.1"]
        assert found["total_number"] == 1
        for query in (
            {"start_time": "24/10/2019 00:00:00", "end_time": "25/10/2019 00:00:00"},
            {"start_time": "2019-10-24 00:00:00"},
            {},
        ):
            nothing = SUCCESS | {"total_number": 0, "data": []}
            assert await api.get("cdr/search", token, **query) == nothing


@pytest.mark.asyncio
async def test_a_subscription_needs_a_token_that_lives() -> None:
    async with serving(SubscribedPBX()) as api:
        token = await api.token()
        url = f"{api.url}/subscribe"
        async with api.client.ws_connect(url, params={"access_token": token}) as socket:
            await socket.send_str("heartbeat")
            assert await socket.receive_str() == "heartbeat response"
        api.clock.now += 1800
        for query, body in (({"access_token": token}, EXPIRED), ({}, DENIED)):
            async with api.client.get(url, params=query) as answered:
                assert (answered.status, await answered.json()) == (401, body)
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await api.client.ws_connect(url, params=query)


@pytest.mark.asyncio
async def test_a_pbx_with_a_webhook_has_no_subscriptions() -> None:
    async with serving() as api:
        query = {"access_token": await api.token()}
        async with api.client.get(f"{api.url}/subscribe", params=query) as answered:
            assert answered.status == 404
