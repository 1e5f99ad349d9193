"""The S-Series web API lets in, expires and refuses as the vendor's pages say."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import md5
from typing import Any

import aiohttp
import pytest

from cdrd.simulate.account import FAILURES_TO_LOCK, LOCK_SECONDS, Account
from cdrd.simulate.history import History
from cdrd.simulate.posting import PostingPBX, Target
from cdrd.simulate.s_series import SSeriesApi
from cdrd.simulate.web_api import Limits, WebServer

STARTED = 1571897930
PASSWORD = md5(b"s3cret").hexdigest()
EVER = {"starttime": "2000-01-01 00:00:00", "endtime": "2030-01-01 00:00:00"}
PARTIES = [("v1.1.0", "extid"), ("v2.0.0", "number")]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Api:
    """The API with a client of it."""

    client: aiohttp.ClientSession
    url: str
    pbx: PostingPBX
    clock: Clock
    said: list[str]
    version: str = "v2.0.0"

    async def post(self, call: str, token: str = "", **fields: Any) -> dict[str, Any]:
        url = f"{self.url}/api/{self.version}/{call}"
        async with self.client.post(url, params={"token": token}, json=fields) as answered:
            assert answered.status == 200
            told: dict[str, Any] = await answered.json()
            return told

    async def get(self, call: str, **query: str) -> str:
        url = f"{self.url}/api/{self.version}/{call}"
        async with self.client.get(url, params=query) as answered:
            assert answered.status == 200
            return await answered.text()

    async def login(self, password: str = PASSWORD, **fields: Any) -> dict[str, Any]:
        return await self.post("login", username="api", password=password, **fields)

    async def token(self, **fields: Any) -> str:
        return f"{(await self.login(**fields))['token']}"

    async def random(self, token: str, party: str = "number") -> dict[str, str]:
        told = await self.post("cdr/get_random", token, **{party: "all"}, **EVER)
        assert told.pop("status") == "Success"
        assert told.keys() == {party, "starttime", "endtime", "random"}
        return {key: f"{value}" for key, value in told.items()}


def failed(errno: int) -> dict[str, str]:
    return {"status": "Failed", "errno": f"{errno}"}


def refusal(errno: int) -> str:
    return f'{{"status":"Failed","errno":"{errno}"}}'


@contextlib.asynccontextmanager
async def serving(*, is_posting: bool = True, is_cloud: bool = False) -> AsyncIterator[Api]:
    clock, said, history, pbx = Clock(), list[str](), History(120), PostingPBX()
    for number in range(3):
        history.add(number, STARTED + 60 * number)
    api = SSeriesApi(
        Account("api", "s3cret"),
        history,
        pbx,
        posts=pbx if is_posting else None,
        is_cloud=is_cloud,
        limits=Limits(clock=clock),
        note=said.append,
    )
    server = WebServer(api.app())
    await server.start()
    try:
        async with aiohttp.ClientSession() as client:
            yield Api(client, server.url, pbx, clock, said)
    finally:
        await server.close()
        await pbx.close()


@pytest.mark.asyncio
async def test_a_login_gets_a_token_and_its_posts_where_it_came_from() -> None:
    async with serving() as api:
        told = await api.login(port="9000", version="2.0.0", url="cdr", urltag="0")
        assert told.keys() == {"status", "token"}
        assert told["status"] == "Success"
        assert api.pbx.registration is not None
        assert api.pbx.registration.target == Target("127.0.0.1", 9000, "/cdr")
        assert api.said == ["127.0.0.1 logged in"]
        assert (api.pbx.logins, api.pbx.refusals) == (1, 0)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fields", "target", "dialect"),
    [
        ({}, ("127.0.0.1", 8260, "/"), "1.0.0"),
        ({"port": 9000, "version": "1.0.2"}, ("127.0.0.1", 9000, "/"), "1.0.2"),
        (
            {"port": "1", "url": "http://127.0.0.2:7/x", "urltag": "1"},
            ("127.0.0.2", 7, "/x"),
            "1.0.0",
        ),
        ({"version": "3.0"}, ("127.0.0.1", 8260, "/"), "1.0.0"),
    ],
)
async def test_what_a_login_leaves_out_has_the_vendors_default(
    fields: dict[str, Any], target: tuple[str, int, str], dialect: str
) -> None:
    async with serving() as api:
        await api.login(**fields)
        assert api.pbx.registration is not None
        assert api.pbx.registration.target == Target(*target)
        assert api.pbx.dialect == dialect


@pytest.mark.asyncio
async def test_a_login_for_the_history_takes_no_posts_away() -> None:
    async with serving() as api:
        await api.login(port=9000, version="2.0.0")
        await api.login()
        assert api.pbx.registration is not None
        assert api.pbx.registration.target.port == 9000
        await api.login(port=9001)
        assert api.pbx.registration.target.port == 9001


@pytest.mark.asyncio
async def test_without_posts_a_login_registers_nobody() -> None:
    async with serving(is_posting=False) as api:
        token = await api.token(port=9000)
        assert await api.post("heartbeat", token, port=9000) == {"status": "Success"}
        assert api.pbx.registration is None


@pytest.mark.asyncio
@pytest.mark.parametrize("password", ["s3cret", PASSWORD.upper(), md5(b"api").hexdigest()])
async def test_a_wrong_password_is_20003_with_status_200(password: str) -> None:
    async with serving() as api:
        assert await api.login(password) == failed(20003)
        assert api.pbx.registration is None
        assert (api.pbx.logins, api.pbx.refusals) == (0, 1)
        assert api.said == ["127.0.0.1 was refused login: errno 20003"]


@pytest.mark.asyncio
async def test_five_failures_lock_even_the_right_password_out_for_ten_minutes() -> None:
    async with serving() as api:
        for _ in range(FAILURES_TO_LOCK):
            assert await api.login("wrong") == failed(20003)
        assert await api.login() == failed(20002)
        api.clock.now += LOCK_SECONDS - 1
        assert await api.login() == failed(20002)
        api.clock.now += 1
        assert (await api.login())["status"] == "Success"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "fields",
    [
        {"username": "", "password": PASSWORD},
        {"username": "api"},
        {"username": "api", "password": " "},
        {"username": "api", "password": PASSWORD, "port": "0"},
        {"username": "api", "password": PASSWORD, "port": "65536"},
        {"username": "api", "password": PASSWORD, "port": "https"},
        {"username": "api", "password": PASSWORD, "url": "no url", "urltag": "1"},
    ],
)
async def test_a_blank_or_senseless_parameter_is_10004(fields: dict[str, str]) -> None:
    async with serving() as api:
        assert await api.post("login", **fields) == failed(10004)


@pytest.mark.asyncio
async def test_only_json_by_post_to_what_exists_is_served() -> None:
    async with serving() as api:
        for call in ("login", "heartbeat", "cdr/get_random"):
            assert await api.get(call) == refusal(20001)
            url = f"{api.url}/api/v2.0.0/{call}"
            for how in ({"data": b"username=api"}, {"data": b"{}"}, {"json": ["api"]}):
                async with api.client.post(url, **how) as answered:
                    assert await answered.json() == failed(20000)
        assert await api.get("cdr/none") == refusal(10003)
        assert await api.post("cdr/none") == failed(10003)
        assert await api.post("cdr/download") == failed(10003)
        api.version = "v3.0.0"
        assert await api.login() == failed(10003)


@pytest.mark.asyncio
async def test_a_cloud_pbx_has_one_version_and_no_heartbeat_and_no_other_refreshes() -> None:
    async with serving(is_cloud=True) as api:
        assert await api.post("heartbeat", await api.token()) == failed(10003)
        api.version = "v1.1.0"
        assert await api.login() == failed(10003)
    async with serving() as api:
        assert await api.post("token/refresh", await api.token()) == failed(10003)


@pytest.mark.asyncio
async def test_nothing_but_the_login_goes_without_a_token() -> None:
    async with serving() as api:
        for call in ("heartbeat", "cdr/get_random"):
            assert await api.post(call) == failed(20005)
            assert await api.post(call, "0" * 32) == failed(20004)
        assert await api.get("cdr/download") == refusal(20005)
        assert await api.get("cdr/download", token="0" * 32) == refusal(20004)


@pytest.mark.asyncio
async def test_a_cloud_pbx_gives_a_new_pair_for_the_last_refresh_token_alone() -> None:
    async with serving(is_cloud=True) as api:
        first = await api.login(port=9000, version="2.0.0", url="x")
        assert await api.post("token/refresh", f"{first['token']}") == failed(10004)
        assert await api.post("token/refresh", refreshtoken=first["token"]) == failed(20004)
        api.clock.now += 1799
        second = await api.post("token/refresh", refreshtoken=first["refreshtoken"])
        assert second.keys() == first.keys() == {"status", "token", "refreshtoken"}
        again = await api.post("token/refresh", refreshtoken=first["refreshtoken"])
        assert again == failed(20004)
        assert await api.post("cdr/get_random", f"{first['token']}") == failed(20004)
        await api.random(f"{second['token']}")
        api.clock.now += 1799
        assert api.pbx.registration is not None
        assert api.pbx.registration.target == Target("127.0.0.1", 9000, "/x")
        assert (api.pbx.dialect, api.pbx.heartbeats) == ("2.0.0", 1)
        api.clock.now += 1
        assert api.pbx.registration is None
        late = await api.post("token/refresh", refreshtoken=second["refreshtoken"])
        assert late == failed(20004)


@pytest.mark.asyncio
async def test_a_token_dies_without_interaction_and_the_posts_with_it() -> None:
    async with serving() as api:
        token = await api.token(port=9000, version="2.0.0")
        for _ in range(3):
            api.clock.now += 1799
            kept = await api.post("heartbeat", token, port=9000, version="2.0.0")
            assert kept == {"status": "Success"}
        assert api.pbx.heartbeats == 3
        api.clock.now += 1799
        assert api.pbx.registration is not None
        api.clock.now += 1
        assert api.pbx.registration is None
        assert await api.post("heartbeat", token) == failed(20004)


@pytest.mark.asyncio
async def test_a_heartbeat_without_a_version_falls_back_to_1_0_0() -> None:
    async with serving() as api:
        token = await api.token(port=9000, version="2.0.0", url="x")
        for fields, dialect in (
            ({"port": 9000, "version": "2.0.0", "url": "x"}, "2.0.0"),
            ({"port": 9000, "url": "x"}, "1.0.0"),
            ({"version": "1.0.2"}, "1.0.2"),
            ({}, "1.0.0"),
        ):
            assert await api.post("heartbeat", token, **fields) == {"status": "Success"}
            assert api.pbx.dialect == dialect
            assert api.pbx.registration is not None
            assert api.pbx.registration.target == Target("127.0.0.1", 9000, "/x")


@pytest.mark.asyncio
async def test_a_heartbeat_moves_the_posts_of_its_own_token_alone() -> None:
    async with serving() as api:
        old = await api.token(port=9000)
        token = await api.token(port=9001, version="2.0.0")
        await api.post("heartbeat", old, port=9002)
        assert api.pbx.registration is not None
        assert api.pbx.registration.target.port == 9001
        await api.post("heartbeat", token, ipaddr="127.0.0.2", port=9003, urlflag="0")
        assert api.pbx.registration.target == Target("127.0.0.2", 9003)


@pytest.mark.asyncio
@pytest.mark.parametrize(("version", "party"), PARTIES)
async def test_a_random_downloads_the_history_once(version: str, party: str) -> None:
    async with serving() as api:
        api.version = version
        token = await api.token()
        asked = await api.random(token, party)
        table = await api.get("cdr/download", token=token, **asked)
        header, *rows = table.splitlines()
        assert header.startswith("callid,timestart,callfrom,")
        assert [row.split(",")[0] for row in rows] == [
            f"{STARTED + 60 * number}.{number}" for number in range(3)
        ]
        assert rows[0].split(",")[1] == "2019-10-24 08:18:50"
        assert await api.get("cdr/download", token=token, **asked) == refusal(10003)
        assert (api.pbx.fetches, api.pbx.refusals) == (1, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize(("version", "party"), PARTIES)
async def test_the_other_apis_word_for_the_extension_is_a_blank_one(
    version: str, party: str
) -> None:
    async with serving() as api:
        api.version = version
        token = await api.token()
        wrong = {"number": "extid", "extid": "number"}[party]
        assert await api.post("cdr/get_random", token, **{wrong: "all"}, **EVER) == failed(10004)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "wrong",
    [{"number": ""}, {"starttime": ""}, {"endtime": "2019-01-01"}, {"endtime": "01/02/2019"}],
)
async def test_a_range_needs_its_parameters(wrong: dict[str, str]) -> None:
    async with serving() as api:
        token = await api.token()
        asked = {"number": "all"} | EVER | wrong
        assert await api.post("cdr/get_random", token, **asked) == failed(10004)


@pytest.mark.asyncio
async def test_a_random_dies_after_its_time() -> None:
    async with serving() as api:
        token = await api.token()
        for seconds, is_good in ((29.9, True), (30.0, False)):
            asked = await api.random(token)
            api.clock.now += seconds
            told = await api.get("cdr/download", token=token, **asked)
            assert (told != refusal(10003)) == is_good


@pytest.mark.asyncio
async def test_a_random_is_good_for_its_token_and_range_alone() -> None:
    async with serving() as api:
        token, other = await api.token(), await api.token()
        for change in (
            {"token": other},
            {"starttime": "2001-01-01 00:00:00"},
            {"number": "1000"},
            {"random": "0" * 32},
        ):
            asked = await api.random(token) | {"token": token} | change
            assert await api.get("cdr/download", **asked) == refusal(10003)
        blank = await api.random(token) | {"token": token, "random": ""}
        assert await api.get("cdr/download", **blank) == refusal(10004)


@pytest.mark.asyncio
async def test_a_download_keeps_the_token_alive() -> None:
    async with serving() as api:
        token = await api.token()
        api.clock.now += 1799
        asked = await api.random(token)
        api.clock.now += 10
        assert "callid" in await api.get("cdr/download", token=token, **asked)
        api.clock.now += 1799
        await api.random(token)


@pytest.mark.asyncio
async def test_only_rows_of_the_range_come_by_the_pbxs_own_clock() -> None:
    async with serving() as api:
        token = await api.token()
        between = {
            "number": "all",
            "starttime": "2019-10-24 08:19:00",
            "endtime": "2019-10-24 08:19:59",
        }
        told = await api.post("cdr/get_random", token, **between)
        table = await api.get("cdr/download", token=token, random=told["random"], **between)
        assert [row.split(",")[0] for row in table.splitlines()[1:]] == [f"{STARTED + 60}.1"]
