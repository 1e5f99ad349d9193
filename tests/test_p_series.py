"""A P-Series PBX's token is used while it lasts, and its history comes whole, page by page."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cdrd.fetch import DISPLAY_FORMATS
from cdrd.p_series import PSeriesApi, display_formats
from cdrd.pbx_api import LoginRefused, Trust, Unreachable
from tests.fake_pbx import (
    ACCOUNT,
    NOWHERE,
    SECRET,
    Answer,
    FakePbx,
    Json,
    Suspended,
    a_guard,
    fake_pbx,
)
from tests.running import counted_logins

API = "/openapi/v1.0"
LIST, SEARCH, GET_TOKEN = f"{API}/cdr/list", f"{API}/cdr/search", f"{API}/get_token"
EXPIRED: Json = {"errcode": 10004, "errmsg": "TOKEN EXPIRED"}
DONE: Json = {"errcode": 0, "errmsg": "SUCCESS"}
DAY = (datetime.fromisoformat("2022-05-19"), datetime.fromisoformat("2022-05-19 23:59:59"))
ROW = {"call_id": "1", "time": "2022-05-19 12:00:00", "timestamp": 1652961600}

Answers = dict[str, Answer | list[Answer]]


def token(name: str) -> Json:
    return {**DONE, "access_token": name, "refresh_token": f"refresh-{name}"}


def page(*rows: dict[str, Any], total: int | None = None) -> Json:
    return {**DONE, "total_number": len(rows) if total is None else total, "data": list(rows)}


def api(pbx: FakePbx, database: Path = NOWHERE, page_rows: int = 2) -> PSeriesApi:
    return PSeriesApi(pbx.base, ACCOUNT, Trust(), a_guard(database), page_rows=page_rows)


async def searched(answers: Answers) -> tuple[FakePbx, list[list[Any]]]:
    async with fake_pbx({GET_TOKEN: token("a"), **answers}) as pbx:
        p_series = api(pbx)
        try:
            pages = [rows async for rows in p_series.search(*DAY)]
        finally:
            await p_series.close()
    return pbx, pages


@pytest.mark.asyncio
async def test_history_comes_in_pages_until_all_rows_have_come() -> None:
    rows = [{**ROW, "call_id": str(number)} for number in range(3)]
    pbx, pages = await searched(
        {LIST: page(ROW), SEARCH: [page(*rows[:2], total=3), page(rows[2], total=3)]}
    )
    assert pages == [rows[:2], rows[2:]]
    assert [asked.query for asked in pbx.asked_for(SEARCH)] == [
        {
            "start_time": "2022-05-19 00:00:00",
            "end_time": "2022-05-19 23:59:59",
            "page": number,
            "page_size": "2",
            "access_token": "a",
        }
        for number in ("1", "2")
    ]
    assert {asked.agent for asked in pbx.asked} == {"OpenAPI"}


def listed(*call_ids: str) -> Json:
    return {**DONE, "cdr_list": [{**ROW, "call_id": call_id} for call_id in call_ids]}


@pytest.mark.asyncio
@pytest.mark.parametrize("last", [listed(), listed("3", "4"), listed("1", "4")])
async def test_pages_end_where_one_brings_nothing_new(last: Json) -> None:
    """A PBX may answer with its last page, or any other, to whichever is asked for."""
    two = [listed("1", "2"), listed("3", "4")]
    pbx, pages = await searched({LIST: page(ROW), SEARCH: [*two, last]})
    assert [[row["call_id"] for row in rows] for rows in pages] == [["1", "2"], ["3", "4"]]
    assert len(pbx.asked_for(SEARCH)) == 3


@pytest.mark.asyncio
async def test_pages_of_what_json_cannot_spell_end_too() -> None:
    deep = b'{"data":[{"call_id":' + b"[" * 300 + b"]" * 300 + b"}]}"
    pbx, pages = await searched({LIST: page(ROW), SEARCH: deep})
    assert len(pages) == 1
    assert len(pbx.asked_for(SEARCH)) == 2


@pytest.mark.asyncio
async def test_a_page_that_moved_on_while_it_was_read_is_no_end() -> None:
    pages_of_three = [page(ROW, {**ROW, "call_id": "2"}, total=3)]
    pages_of_three += [page({**ROW, "call_id": "2"}, {**ROW, "call_id": "3"}, total=4), page()]
    _, pages = await searched({LIST: page(ROW), SEARCH: [*pages_of_three]})
    assert [[row["call_id"] for row in rows] for rows in pages] == [["1", "2"], ["2", "3"]]


@pytest.mark.asyncio
async def test_pages_that_repeat_before_all_rows_have_come_are_told() -> None:
    with pytest.raises(Unreachable, match="repeats its history after 1 of 3 rows"):
        await searched({LIST: page(ROW), SEARCH: page(ROW, total=3)})


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "last", [page(total=9), page(), {**DONE, "total_number": 9, "data": None}, {**DONE, "data": []}]
)
async def test_pages_that_end_before_all_rows_have_come_are_told(last: Json) -> None:
    rows = [{**ROW, "call_id": str(number)} for number in range(4)]
    with pytest.raises(Unreachable, match="ends its history after 4 of 9 rows"):
        await searched(
            {LIST: page(ROW), SEARCH: [page(*rows[:2], total=9), page(*rows[2:], total=9), last]}
        )


@pytest.mark.asyncio
@pytest.mark.parametrize("none", [{**DONE, "total_number": 9, "data": None}, page(total=9)])
async def test_a_search_that_tells_of_rows_and_hands_out_none_is_told(none: Json) -> None:
    with pytest.raises(Unreachable, match="ends its history after 0 of 9 rows"):
        await searched({LIST: page(ROW), SEARCH: none})
    with pytest.raises(Unreachable, match="hands out no row"):
        await searched({LIST: none})


@pytest.mark.asyncio
async def test_an_answer_without_a_history_is_told() -> None:
    for answers in ({LIST: DONE}, {LIST: page(ROW), SEARCH: DONE}):
        with pytest.raises(Unreachable, match="answers without its history"):
            await searched({**answers})


@pytest.mark.asyncio
async def test_a_search_that_finds_nothing_has_no_pages() -> None:
    for nothing in (page(), {**DONE, "total_number": 0}, {**DONE, "data": []}):
        _, pages = await searched({LIST: page(ROW), SEARCH: nothing})
        assert pages == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "call_ids", [("1", "1", "2"), ("1", "2", "2"), ("1", "2", "3", "3"), ("1", "2", "1")]
)
async def test_rows_that_are_alike_count_each(call_ids: tuple[str, ...]) -> None:
    """Else a PBX that goes on with its last page would be asked for ever."""
    rows = [{**ROW, "call_id": call_id} for call_id in call_ids]
    total = len(rows)
    _, pages = await searched(
        {LIST: page(ROW), SEARCH: [page(*rows[:2], total=total), page(*rows[2:], total=total)]}
    )
    assert {row["call_id"] for rows in pages for row in rows} == set(call_ids)


@pytest.mark.asyncio
async def test_a_page_that_comes_again_does_not_count_again() -> None:
    """Here in place of the second half, so that the number of rows alone looks right."""
    rows = [ROW, {**ROW, "call_id": "2"}]
    with pytest.raises(Unreachable, match="repeats its history after 2 of 4 rows"):
        await searched({LIST: page(ROW), SEARCH: page(*rows, total=4)})


@pytest.mark.asyncio
@pytest.mark.parametrize("odd", [7, None, "text", [[7]]])
async def test_what_is_no_row_is_handed_on_with_the_rows(odd: object) -> None:
    _, pages = await searched(
        {
            LIST: {**DONE, "data": [odd, ROW]},
            SEARCH: {**DONE, "total_number": 2, "data": [ROW, odd]},
        }
    )
    assert pages == [[ROW, odd]]


@pytest.mark.asyncio
async def test_a_pbx_without_a_call_is_not_searched() -> None:
    pbx, pages = await searched({LIST: page()})
    assert pages == []
    assert not pbx.asked_for(SEARCH)


@pytest.mark.asyncio
async def test_times_are_asked_for_as_the_pbx_shows_them() -> None:
    pbx, pages = await searched(
        {LIST: page({"time": "05/19/2022 01:00:00 PM", "timestamp": 1652961600}), SEARCH: page(ROW)}
    )
    assert pages == [[ROW]]
    (asked,) = pbx.asked_for(SEARCH)
    assert asked.query["start_time"] == "05/19/2022 12:00:00 AM"


@pytest.mark.parametrize("display_format", DISPLAY_FORMATS)
def test_each_display_format_is_told_from_the_others_by_the_timestamp(display_format: str) -> None:
    began = datetime(2022, 5, 9, 15, 0, 0, tzinfo=UTC)
    local = began + timedelta(hours=8)
    row = {"time": local.strftime(display_format), "timestamp": int(began.timestamp())}
    assert display_formats([row]) == [display_format]


@pytest.mark.asyncio
async def test_where_two_formats_fit_both_are_asked_for() -> None:
    row = {"time": "05/05/2022 12:00:00", "timestamp": 1651752000}
    pbx, pages = await searched({LIST: page(row), SEARCH: [page(), page(ROW)]})
    assert pages == [[ROW]]
    asked = [asked.query["start_time"] for asked in pbx.asked_for(SEARCH)]
    assert asked == ["05/19/2022 00:00:00", "19/05/2022 00:00:00"]


def test_a_format_that_nobody_knows_is_told() -> None:
    with pytest.raises(Unreachable, match="shows a time as '19 May 2022', a format"):
        display_formats([{"time": "19 May 2022", "timestamp": 1652961600}])
    with pytest.raises(Unreachable) as raised:
        display_formats([{"time": 9999 * "x"}])
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("bad", [{}, {"time": ""}, {"time": None, "timestamp": 9e99}, {"time": 7}])
def test_a_row_whose_time_is_none_hides_no_history(bad: dict[str, Any]) -> None:
    assert display_formats([bad, ROW, bad]) == ["%Y-%m-%d %H:%M:%S"]


@pytest.mark.parametrize("timestamp", ["9" * 400, 10**18, None, "soon"])
def test_a_timestamp_that_is_none_leaves_the_time_to_tell(timestamp: object) -> None:
    assert display_formats([{**ROW, "timestamp": timestamp}]) == ["%Y-%m-%d %H:%M:%S"]


@pytest.mark.asyncio
async def test_an_expired_token_is_refreshed() -> None:
    pbx, pages = await searched(
        {LIST: [EXPIRED, page(ROW)], SEARCH: page(ROW), f"{API}/refresh_token": token("b")}
    )
    assert pages == [[ROW]]
    assert pbx.times[GET_TOKEN] == 1
    assert pbx.asked_for(f"{API}/refresh_token")[0].body == {"refresh_token": "refresh-a"}
    assert pbx.asked_for(SEARCH)[0].query["access_token"] == "b"


@pytest.mark.asyncio
async def test_where_refreshing_fails_the_password_gets_a_new_token() -> None:
    pbx, pages = await searched(
        {
            GET_TOKEN: [token("a"), token("b")],
            LIST: [EXPIRED, page(ROW)],
            SEARCH: page(ROW),
            f"{API}/refresh_token": {"errcode": 10004},
        }
    )
    assert pages == [[ROW]]
    assert pbx.times[GET_TOKEN] == 2


@pytest.mark.asyncio
async def test_a_token_that_never_holds_is_given_up() -> None:
    with pytest.raises(Unreachable, match=r"with errcode 10004 \(TOKEN EXPIRED\)"):
        await searched({LIST: EXPIRED, f"{API}/refresh_token": token("b")})


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"errcode": 70004, "errmsg": "BLOCKED"}, "has blocked our address"),
        ({"errcode": 40002, "errmsg": "PARAMETER ERROR"}, r"errcode 40002 \(PARAMETER ERROR\)"),
        ({"errcode": "odd"}, "with errcode -1"),
        (web.Response(status=403), "HTTP status 403: .* username and password_file"),
    ],
)
async def test_a_refused_login_counts_and_never_a_fifth_is_tried(
    answer: Answer, sentence: str, tmp_path: Path
) -> None:
    async with fake_pbx({GET_TOKEN: answer}) as pbx:
        p_series = api(pbx, tmp_path / "cdr.sqlite3")
        for _ in range(4):
            with pytest.raises(LoginRefused, match=sentence) as raised:
                await p_series.login()
            assert SECRET not in str(raised.value)
        with pytest.raises(Suspended):
            await p_series.login()
        await p_series.close()
    assert counted_logins(tmp_path / "cdr.sqlite3") == len(pbx.asked) == 4


@pytest.mark.asyncio
async def test_all_who_need_a_token_share_one_login() -> None:
    async with fake_pbx({GET_TOKEN: token("a"), f"{API}/refresh_token": token("b")}) as pbx:
        p_series = api(pbx)
        assert await asyncio.gather(*(p_series.login() for _ in range(5))) == ["a"] * 5
        await asyncio.gather(*(p_series.renew() for _ in range(5)))
        assert await p_series.login() == "b"
        await p_series.close()
    assert pbx.times[GET_TOKEN] == 1
    assert pbx.times[f"{API}/refresh_token"] == 1


@pytest.mark.asyncio
async def test_a_token_is_given_back_in_the_end() -> None:
    async with fake_pbx({GET_TOKEN: token("a"), f"{API}/del_token": DONE}) as pbx:
        p_series = api(pbx)
        await p_series.login()
        await p_series.close()
        await p_series.close()
    (given_back,) = pbx.asked_for(f"{API}/del_token")
    assert given_back.query == {"access_token": "a"}


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [10005, 40002])
async def test_a_search_that_is_refused_is_told(code: int) -> None:
    with pytest.raises(Unreachable, match=f"refused a request with errcode {code}: check that"):
        await searched({LIST: page(ROW), SEARCH: {"errcode": code}})
