"""There is one token to an S-Series PBX; who finds it gone gets one new one for all."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from cdrd.pbx_api import LoginRefused, NotOffered, Trust, Unreachable
from cdrd.s_series import Announced, SSeriesApi, TokenGone
from cdrd.sizes import PAYLOAD_BYTES
from cdrd.web_session import PIECE_BYTES
from tests.fake_pbx import (
    ACCOUNT,
    NOWHERE,
    SECRET,
    Answer,
    FakePbx,
    Suspended,
    a_guard,
    fake_pbx,
    hang,
)
from tests.running import counted_logins

V1, V2 = "/api/v1.1.0", "/api/v2.0.0"
YES: Answer = {"status": "Success", "token": "t1"}
AGAIN: Answer = {"status": "Success", "token": "t2"}
GONE: Answer = {"status": "Failed", "errno": "20004"}
RANDOM: Answer = {"status": "Success", "random": "0cbc"}
DAY = (datetime.fromisoformat("2018-11-07"), datetime.fromisoformat("2018-11-07 23:59:59"))
TABLE = b"callid,timestart\n1,2018-11-07 00:00:00\n"
LONG = b"2,2018-11-07 00:00:00\n" * 9000


def failed(errno: str) -> Answer:
    return {"status": "Failed", "errno": errno}


def pair(token: str, refresh: str) -> Answer:
    return {"status": "Success", "token": token, "refreshtoken": refresh}


def api(
    pbx: FakePbx,
    path: str = "",
    announced: Announced | None = None,
    database: Path = NOWHERE,
) -> SSeriesApi:
    return SSeriesApi(pbx.base + path, ACCOUNT, Trust(), a_guard(database), announced=announced)


async def downloaded(s_series: SSeriesApi) -> bytes:
    return b"".join([piece async for piece in s_series.download(*DAY)])


def dripping(said: bytes) -> Answer:
    """An answer of which each byte comes by itself."""

    async def drip(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for byte in said:
            await response.write(bytes([byte]))
            await asyncio.sleep(0)
        await response.write_eof()
        return response

    return drip


@pytest.mark.asyncio
async def test_the_newest_version_that_there_is_is_used() -> None:
    async with fake_pbx({f"{V1}/login": YES}) as pbx:
        s_series = api(pbx)
        await s_series.login()
        await s_series.close()
    assert s_series.version == "1.1.0"
    assert pbx.paths == [f"{V2}/login", f"{V1}/login"]


@pytest.mark.asyncio
async def test_a_version_in_the_address_settles_it() -> None:
    async with fake_pbx({f"{V1}/login": YES, f"{V2}/login": YES}) as pbx:
        s_series = api(pbx, V1)
        await s_series.login()
        await s_series.close()
    assert pbx.paths == [f"{V1}/login"]


@pytest.mark.asyncio
@pytest.mark.parametrize(("path", "version"), [(V1, "1.0.2"), (V2, "2.0.0")])
async def test_a_login_announces_where_and_in_which_format_to_post(path: str, version: str) -> None:
    async with fake_pbx({f"{path}/login": YES}) as pbx:
        s_series = api(pbx, path, Announced(8260, "/hq"))
        await s_series.login()
        await s_series.close()
    assert pbx.asked[0].body == {
        "username": "api",
        "password": hashlib.md5(SECRET.encode()).hexdigest(),
        "port": "8260",
        "url": "hq",
        "urltag": "0",
        "version": version,
    }


@pytest.mark.asyncio
async def test_without_any_api_it_is_told_what_was_asked_for(tmp_path: Path) -> None:
    async with fake_pbx({}) as pbx:
        s_series = api(pbx, database=tmp_path / "cdr.sqlite3")
        with pytest.raises(NotOffered, match=r"has no API of version 2\.0\.0 or 1\.1\.0"):
            await s_series.login()
        await s_series.close()
    assert not counted_logins(tmp_path / "cdr.sqlite3")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (failed("20003"), "refused the login: check username and password_file"),
        (failed("20002"), "has locked the account for 10 minutes"),
        (failed("10032"), "refused the login with errno 10032: check"),
        (web.Response(status=401), "HTTP status 401: .* username and password_file"),
    ],
)
async def test_a_refused_login_counts_and_never_a_fifth_is_tried(
    answer: Answer, sentence: str, tmp_path: Path
) -> None:
    async with fake_pbx({f"{V2}/login": answer}) as pbx:
        s_series = api(pbx, database=tmp_path / "cdr.sqlite3")
        for _ in range(4):
            with pytest.raises(LoginRefused, match=sentence) as raised:
                await s_series.login()
            assert SECRET not in str(raised.value)
        with pytest.raises(Suspended):
            await s_series.login()
        await s_series.close()
    assert counted_logins(tmp_path / "cdr.sqlite3") == len(pbx.asked) == 4


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", [failed("20000"), failed("10004"), {"status": "Success"}, b"?"])
async def test_a_login_that_fails_in_its_form_is_no_refusal(answer: Answer, tmp_path: Path) -> None:
    async with fake_pbx({f"{V2}/login": answer}) as pbx:
        s_series = api(pbx, database=tmp_path / "cdr.sqlite3")
        with pytest.raises(Unreachable):
            await s_series.login()
        await s_series.close()
    assert not counted_logins(tmp_path / "cdr.sqlite3")


@pytest.mark.asyncio
async def test_all_who_need_a_token_share_one_login() -> None:
    async with fake_pbx({f"{V2}/login": YES}) as pbx:
        s_series = api(pbx)
        await asyncio.gather(*(s_series.login() for _ in range(5)))
        await s_series.close()
    assert len(pbx.asked) == 1


@pytest.mark.asyncio
async def test_a_heartbeat_says_again_all_that_the_login_announced() -> None:
    async with fake_pbx({f"{V1}/login": YES, f"{V1}/heartbeat": {"status": "Success"}}) as pbx:
        s_series = api(pbx, V1, Announced(8260, "/hq"))
        await s_series.login()
        await s_series.heartbeat()
        await s_series.close()
    assert pbx.asked[1].query == {"token": "t1"}
    assert pbx.asked[1].body == {
        "ipaddr": "127.0.0.1",
        "port": "8260",
        "url": "hq",
        "urltag": "0",
        "urlflag": "0",
        "version": "1.0.2",
    }


@pytest.mark.asyncio
@pytest.mark.parametrize("errno", ["20004", "20005"])
async def test_a_token_that_is_gone_is_told_and_the_next_login_gets_another(errno: str) -> None:
    answers: dict[str, Answer | list[Answer]] = {
        f"{V2}/login": [YES, AGAIN],
        f"{V2}/heartbeat": [failed(errno), {"status": "Success"}],
    }
    async with fake_pbx(answers) as pbx:
        s_series = api(pbx, V2, Announced(8260))
        await s_series.login()
        with pytest.raises(TokenGone, match=errno):
            await s_series.heartbeat()
        await s_series.login()
        await s_series.heartbeat()
        await s_series.close()
    assert [asked.query["token"] for asked in pbx.asked_for(f"{V2}/heartbeat")] == ["t1", "t2"]
    assert s_series.logins == 2


@pytest.mark.asyncio
async def test_a_cloud_pbx_has_its_token_refreshed_instead() -> None:
    answers: dict[str, Answer | list[Answer]] = {
        f"{V2}/login": YES,
        f"{V2}/heartbeat": failed("10003"),
        f"{V2}/token/refresh": [AGAIN, {"status": "Success"}],
    }
    async with fake_pbx(answers) as pbx:
        s_series = api(pbx, V2, Announced(8260))
        await s_series.login()
        await s_series.heartbeat()
        await s_series.heartbeat()
        await s_series.close()
    refreshes = pbx.asked_for(f"{V2}/token/refresh")
    assert [asked.query["token"] for asked in refreshes] == ["t1", "t2"]


@pytest.mark.asyncio
async def test_a_token_is_refreshed_with_what_was_given_last() -> None:
    answers: dict[str, Answer | list[Answer]] = {
        f"{V2}/login": [pair("t1", "r1"), YES],
        f"{V2}/heartbeat": failed("10003"),
        f"{V2}/token/refresh": [pair("t2", "r2"), pair("t3", ""), GONE, AGAIN],
    }
    async with fake_pbx(answers) as pbx:
        s_series = api(pbx, V2, Announced(8260))
        await s_series.login()
        await s_series.heartbeat()
        await s_series.heartbeat()
        with pytest.raises(TokenGone):
            await s_series.heartbeat()
        await s_series.login()
        await s_series.heartbeat()
        await s_series.close()
    told = [asked.body for asked in pbx.asked_for(f"{V2}/token/refresh")]
    assert told == [{"refreshtoken": "r1"}, {"refreshtoken": "r2"}, {"refreshtoken": "r2"}, {}]


@pytest.mark.asyncio
@pytest.mark.parametrize(("path", "parties"), [(V1, "extid"), (V2, "number")])
async def test_history_is_downloaded_with_a_key_of_its_own(path: str, parties: str) -> None:
    answers: dict[str, Answer | list[Answer]] = {
        f"{path}/login": YES,
        f"{path}/cdr/get_random": RANDOM,
        f"{path}/cdr/download": TABLE,
    }
    async with fake_pbx(answers) as pbx:
        s_series = api(pbx, path)
        assert await downloaded(s_series) == TABLE
        await s_series.close()
    span = {
        parties: "all",
        "starttime": "2018-11-07 00:00:00",
        "endtime": "2018-11-07 23:59:59",
    }
    assert pbx.asked[1].body == span
    assert pbx.asked[2].query == span | {"token": "t1", "random": "0cbc"}


@asynccontextmanager
async def handing_out(*tables: Answer) -> AsyncIterator[SSeriesApi]:
    """Make an API whose PBX answers with these histories, one after the other."""
    answers: dict[str, Answer | list[Answer]] = {
        f"{V2}/login": YES,
        f"{V2}/cdr/get_random": RANDOM,
        f"{V2}/cdr/download": list(tables),
    }
    async with fake_pbx(answers) as pbx:
        s_series = api(pbx)
        try:
            yield s_series
        finally:
            await s_series.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("said", [TABLE, TABLE[:7], TABLE + LONG])
@pytest.mark.parametrize("blanks", [b"", b"\r\n", b" \n" * PAYLOAD_BYTES])
async def test_history_is_handed_out_without_blanks_in_front_and_with_a_whole_first_line(
    blanks: bytes, said: bytes
) -> None:
    async with handing_out(blanks + said, dripping(blanks[:9] + said[:1000])) as s_series:
        came = [piece async for piece in s_series.download(*DAY)]
        assert b"".join(came) == said
        assert len(came[0]) >= min(len(said), PAYLOAD_BYTES)
        assert [piece async for piece in s_series.download(*DAY)] == [said[:1000]]


@pytest.mark.asyncio
async def test_no_blank_within_a_history_is_taken_for_one_in_front_of_it() -> None:
    """A piece ends within the first line's, and the next one begins with a line break."""
    blanks, header = b" " * 100, b"callid,timestart"
    said = header + b" " * (PIECE_BYTES - len(blanks) - len(header)) + b"\n1,2\n"
    async with handing_out(blanks + said) as s_series:
        assert await downloaded(s_series) == said


@pytest.mark.asyncio
@pytest.mark.parametrize("said", [b"", b"\r\n", b" \n" * PAYLOAD_BYTES])
async def test_a_history_of_blanks_alone_has_no_piece(said: bytes) -> None:
    async with handing_out(said) as s_series:
        assert [piece async for piece in s_series.download(*DAY)] == []


@pytest.mark.asyncio
async def test_history_that_only_begins_as_json_is_handed_out() -> None:
    async with handing_out(b"{" + TABLE) as s_series:
        assert await downloaded(s_series) == b"{" + TABLE


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("gone_at", "gone"),
    [
        ("cdr/get_random", GONE),
        ("cdr/download", GONE),
        ("cdr/download", dripping(b"\r\n" + orjson.dumps(GONE))),
    ],
)
async def test_history_logs_in_again_once_when_the_token_is_gone(
    gone_at: str, gone: Answer
) -> None:
    answers: dict[str, Answer | list[Answer]] = {
        f"{V2}/login": [YES, AGAIN],
        f"{V2}/cdr/get_random": RANDOM,
        f"{V2}/cdr/download": TABLE,
    }
    usual = answers[f"{V2}/{gone_at}"]
    assert not isinstance(usual, list)
    answers[f"{V2}/{gone_at}"] = [gone, usual]
    async with fake_pbx(answers) as pbx:
        s_series = api(pbx)
        assert await downloaded(s_series) == TABLE
        await s_series.close()
    assert pbx.times[f"{V2}/login"] == 2


@pytest.mark.asyncio
async def test_a_pbx_that_knows_none_of_its_tokens_is_given_up() -> None:
    async with fake_pbx({f"{V2}/login": YES, f"{V2}/cdr/get_random": GONE}) as pbx:
        s_series = api(pbx)
        with pytest.raises(Unreachable, match="does not know the token it has just given"):
            await downloaded(s_series)
        await s_series.close()
    assert pbx.times[f"{V2}/login"] == 2


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("random", "table", "error", "sentence"),
    [
        (failed("10004"), TABLE, Unreachable, "refused a request with errno 10004"),
        ({"status": "Success"}, TABLE, Unreachable, "gave no key to its history"),
        (RANDOM, failed("10001"), Unreachable, "refused a request with errno 10001"),
        (RANDOM, web.Response(status=500), Unreachable, "HTTP status 500"),
        (failed("10003"), TABLE, NotOffered, "does not offer this"),
    ],
)
async def test_history_that_fails_is_told(
    random: Answer, table: Answer, error: type[Exception], sentence: str
) -> None:
    answers: dict[str, Answer | list[Answer]] = {
        f"{V2}/login": YES,
        f"{V2}/cdr/get_random": random,
        f"{V2}/cdr/download": table,
    }
    async with fake_pbx(answers) as pbx:
        s_series = api(pbx)
        with pytest.raises(error, match=sentence):
            await downloaded(s_series)
        await s_series.close()


@pytest.mark.asyncio
async def test_a_login_that_is_given_up_leaves_the_turn_to_the_next() -> None:
    asked = asyncio.Event()

    async def never(request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        return await hang(request)

    async with fake_pbx({f"{V2}/login": [never, YES]}) as pbx:
        s_series = api(pbx)
        first = asyncio.create_task(s_series.login())
        await asked.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await s_series.login()
        await s_series.close()
    assert s_series.logins == 1
