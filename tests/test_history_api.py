"""A PBX is asked for its history by the API that it has, and with one login for all."""

from pathlib import Path

import pytest

from cdrd.history_api import open_history
from cdrd.p_series import PSeriesApi
from cdrd.pbx_api import LoginRefused, Trust
from cdrd.s_series import SSeriesApi
from tests.fake_pbx import ACCOUNT, Answer, a_guard, fake_pbx
from tests.running import counted_logins

V1, V2, P = "/api/v1.1.0/login", "/api/v2.0.0/login", "/openapi/v1.0/get_token"
YES: Answer = {"status": "Success", "token": "t"}
P_YES: Answer = {"errcode": 0, "errmsg": "SUCCESS", "access_token": "a", "refresh_token": "r"}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answers", "asked", "found"),
    [
        ({V2: YES}, [V2], SSeriesApi),
        ({V1: YES}, [V2, V1], SSeriesApi),
        ({V2: {"status": "Failed", "errno": "10003"}, V1: YES}, [V2, V1], SSeriesApi),
        ({P: P_YES}, [V2, V1, P], PSeriesApi),
        ({V2: {"errcode": 10001, "errmsg": "?"}, P: P_YES}, [V2, V1, P], PSeriesApi),
    ],
)
async def test_an_unknown_pbx_is_asked_what_it_has(
    answers: dict[str, Answer | list[Answer]], asked: list[str], found: type, tmp_path: Path
) -> None:
    async with fake_pbx(answers) as pbx:
        api = await open_history(pbx.base, ACCOUNT, Trust(), a_guard(tmp_path / "cdr.sqlite3"))
        assert pbx.paths == asked
        await api.close()
    assert type(api) is found
    assert not counted_logins(tmp_path / "cdr.sqlite3")


@pytest.mark.asyncio
async def test_an_unknown_pbx_that_refuses_is_asked_no_further(tmp_path: Path) -> None:
    async with fake_pbx({V2: {"status": "Failed", "errno": "20003"}, P: P_YES}) as pbx:
        with pytest.raises(LoginRefused):
            await open_history(pbx.base, ACCOUNT, Trust(), a_guard(tmp_path / "cdr.sqlite3"))
    assert pbx.paths == [V2]
    assert counted_logins(tmp_path / "cdr.sqlite3") == 1


@pytest.mark.asyncio
async def test_a_known_pbx_is_not_asked_before_there_is_need() -> None:
    guard = a_guard()
    s_series = await open_history("http://h", ACCOUNT, Trust(), guard, "S-Series")
    p_series = await open_history("http://h", ACCOUNT, Trust(), guard, "P-Series")
    assert (type(s_series), type(p_series)) == (SSeriesApi, PSeriesApi)


@pytest.mark.asyncio
async def test_the_account_that_events_come_through_has_one_login() -> None:
    guard = a_guard()
    held = SSeriesApi("http://h:8088", ACCOUNT, Trust(), guard)

    async def opened(base: str, username: str) -> object:
        account = type(ACCOUNT)(username, ACCOUNT.read_password)
        return await open_history(base, account, Trust(), guard, "S-Series", held=held)

    assert await opened("http://h:8088", "api") is held
    assert await opened("http://h:8088/api/v2.0.0", "api") is held
    assert await opened("http://h:8088", "history") is not held
    assert await opened("http://other:8088", "api") is not held
