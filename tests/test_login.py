"""An answer to a login gives one verdict, and a password is never refused a fifth time in a row."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdrd.login import (
    COUNTED_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_REFUSALS,
    BackOff,
    LoginAnswer,
    Verdict,
    login_block,
    seconds_to_wait,
)

ACCEPTED = [
    b"Response: Success\r\nMessage: Authentication accepted\r\n\r\n",
    b"Asterisk Call Manager/1.1\r\nResponse: Success\r\n\r\n",
    b"response:success\n",
    b"Action: login\r\nRESPONSE: \tSUCCESS\r\n\r\n",
    b'{"status":"Success","token":"x"}',
    b'{"Response":"Success","Message":"Authentication accepted"}\r\n',
    b'{"event":"login","response":"Success"}',
    b'{"event":"BootUp","sn":"369351034049"}',
]
REFUSED = [
    b"Response: Error\r\nMessage: Authentication failed\r\n\r\n",
    b"Asterisk Call Manager/1.1\r\nResponse: Error\r\n\r\n",
    b"Response: Failed\n",
    b'{"status":"Failed","errno":"20003"}',
    b'{ "status" : "Failed" }',
    b'{"errno":20002}',
    b'{"response":"error","message":"Authentication failed"}\r\n',
    b'{"Response":"Error","Message":"Authentication failed"}',
    b'{"event":"login","response":"Failed"}',
    b'{"event":"LoginFailed","result":"failure"}',
    b'{"status":"Error","errno":"30003"}',
    b'{"action":"login","result":"fail"}',
]
UNKNOWN = [
    b'{"message":"wrong password"}\r\n',
    b'{"code":401}',
    b'{"errno":"30003"}',
    b'{"action":"login","result":"no"}',
    b'{"event":"AuthenticationRefused"}',
]
CALL = (
    b'{"event":"NewCdr","callid":"1571897930.5","timestart":"2019-10-23 22:18:50",'
    b'"callfrom":"1023","callto":"2023","callduraction":"19","talkduraction":"0",'
    b'"status":"%s","type":"Internal","sn":"369451090405"}\r\n'
)


def verdicts(answer: bytes, size: int) -> list[Verdict]:
    login = LoginAnswer()
    return [login.receive(answer[start : start + size]) for start in range(0, len(answer), size)]


def decision(answer: bytes, size: int) -> Verdict:
    """Return what is known first: nobody asks again once there is a verdict."""
    for verdict in verdicts(answer, size):
        if verdict is not Verdict.UNDECIDED:
            return verdict
    return Verdict.UNDECIDED


def test_the_login_is_spelled_as_public_clients_do() -> None:
    assert login_block("api", "pässword") == (
        "Action: login\r\nUsername: api\r\nSecret: pässword\r\nVersion: 2.0.0\r\n\r\n".encode()
    )


@pytest.mark.parametrize("answer", ACCEPTED)
def test_a_success_is_one_in_any_chunking(answer: bytes) -> None:
    for size in range(1, len(answer) + 1):
        assert decision(answer, size) is Verdict.ACCEPTED


@pytest.mark.parametrize("answer", REFUSED)
def test_a_refusal_is_one_in_any_chunking(answer: bytes) -> None:
    for size in range(1, len(answer) + 1):
        assert decision(answer, size) is Verdict.REFUSED


@pytest.mark.parametrize("answer", UNKNOWN)
def test_json_that_is_no_answer_we_know_decides_nothing_until_an_event(answer: bytes) -> None:
    for size in range(1, len(answer) + 1):
        assert decision(answer, size) is Verdict.UNDECIDED
    assert decision(answer + CALL % b"ANSWERED", 1) is Verdict.ACCEPTED


@pytest.mark.parametrize("status", [b"ANSWERED", b"FAILED", b"Failed", b"NO ANSWER"])
def test_a_call_before_any_answer_is_a_success_whatever_became_of_the_call(status: bytes) -> None:
    call = CALL % status
    for size in range(1, len(call) + 1):
        assert decision(call, size) is Verdict.ACCEPTED


@pytest.mark.parametrize("status", [b"ANSWERED", b"FAILED"])
def test_a_success_with_calls_behind_it_is_one(status: bytes) -> None:
    answer = ACCEPTED[0] + CALL % status * 2
    for size in range(1, len(answer) + 1):
        assert decision(answer, size) is Verdict.ACCEPTED


def test_half_an_answer_decides_nothing() -> None:
    for part in (b"", b"Resp", b"Response: ", b"Response: Succes", b"Response: Err", b"Hello\r\n"):
        assert LoginAnswer().receive(part) is Verdict.UNDECIDED


def test_endless_text_without_a_refusal_is_taken_for_a_stream() -> None:
    text = b"x" * 100 + b"\r\n"
    login = LoginAnswer()
    received = 0
    while login.receive(text) is Verdict.UNDECIDED:
        received += len(text)
        assert received <= MAX_ANSWER_BYTES
    assert received + len(text) > MAX_ANSWER_BYTES


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_no_bytes_of_a_peer_are_an_exception(answer: bytes, size: int) -> None:
    assert all(isinstance(verdict, Verdict) for verdict in verdicts(answer, size))


def test_four_refusals_may_come_at_once_and_the_fifth_try_waits() -> None:
    tried = [1000.0] * MAX_REFUSALS
    assert seconds_to_wait(tried[1:], 1000.0) == 0
    assert seconds_to_wait(tried, 1000.0) == COUNTED_SECONDS
    assert seconds_to_wait(tried, 1300.0) == COUNTED_SECONDS - 300
    assert seconds_to_wait(tried, 1000.0 + COUNTED_SECONDS) == 0


def test_the_latest_four_count_in_whatever_order_they_are_known() -> None:
    assert seconds_to_wait([400.0, 300.0, 1.0, 200.0, 2.0, 100.0], 500.0) == COUNTED_SECONDS - 400


pauses = st.lists(st.floats(0, 700) | st.sampled_from([0.0, 1.0, 200.0, 599.9]), max_size=60)


@settings(max_examples=300)
@given(pauses, st.floats(0, 2e9))
def test_no_ten_minutes_ever_hold_five_refusals(waits: list[float], start: float) -> None:
    """Each try comes as early as it may, a pause apart."""
    now = start
    tried: list[float] = []
    for pause in waits:
        now += pause
        now += seconds_to_wait(tried, now)
        while seconds_to_wait(tried, now) > 0:  # a sum of floats may fall short by its last bit
            now += 1e-3
        tried.append(now)
    for first, fifth in zip(tried, tried[MAX_REFUSALS:], strict=False):
        assert fifth - first >= COUNTED_SECONDS - 1e-3


@settings(max_examples=50)
@given(st.floats(0.001, 10), st.floats(10, 1000))
def test_waits_double_up_to_the_longest_and_are_spread_over_half(
    first: float, longest: float
) -> None:
    back_off = BackOff(first, longest)
    ceiling = first
    for _ in range(25):
        assert ceiling / 2 <= back_off.wait() <= ceiling
        ceiling = min(2 * ceiling, longest)
    back_off.reset()
    assert first / 2 <= back_off.wait() <= first


def test_two_that_lost_their_connection_at_once_do_not_come_back_as_one() -> None:
    waits = sorted(BackOff(60.0).wait() for _ in range(50))
    assert sum(one != other for one, other in pairwise(waits)) > 40
