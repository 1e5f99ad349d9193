"""A strict client can read each answer, and knows what becomes of the connection."""

import http.client
import io
from http import HTTPStatus
from typing import Any

import pytest

from cdrd.http_answer import make_answer

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


class Carrier:
    """What the standard library's client reads an answer from."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._answer)


def read(answer: bytes, method: str = "POST") -> tuple[http.client.HTTPResponse, bytes]:
    carrier: Any = Carrier(answer)
    response = http.client.HTTPResponse(carrier, method=method)
    response.begin()
    return response, response.read()


@pytest.mark.parametrize("status", [200, 400, 403, 405, 408, 413, 415, 431, 501, 503, 505])
@pytest.mark.parametrize("keep_alive", [True, False])
def test_an_answer_tells_its_status_its_length_and_whether_the_connection_stays(
    status: int, *, keep_alive: bool
) -> None:
    answer = make_answer(status, DATE, "why, and what to do", keep_alive, without_body=False)
    response, body = read(answer)
    assert (response.status, response.reason) == (status, HTTPStatus(status).phrase)
    assert (response.version, response.getheader("Date")) == (11, DATE)
    assert response.getheader("Connection") == ("keep-alive" if keep_alive else "close")
    assert body == b"why, and what to do\n"
    assert response.getheader("Content-Length") == str(len(body))
    assert response.getheader("Content-Type") == "text/plain; charset=utf-8"


def test_an_answer_without_a_sentence_has_no_body() -> None:
    answer = make_answer(200, DATE, "", keep_alive=True, without_body=False)
    response, body = read(answer)
    assert (body, response.getheader("Content-Length")) == (b"", "0")
    assert response.getheader("Content-Type") is None
    assert answer.endswith(b"\r\n\r\n")


def test_the_answer_to_head_is_that_to_get_without_the_body() -> None:
    answers = [make_answer(503, DATE, "why", True, without) for without in (True, False)]
    assert answers[1] == answers[0] + b"why\n"
    response, body = read(answers[0], "HEAD")
    assert (body, response.getheader("Content-Length")) == (b"", "4")


def test_which_methods_are_allowed_and_when_to_come_again_is_told() -> None:
    response, _ = read(make_answer(405, DATE, "", keep_alive=False, without_body=False))
    assert response.getheader("Allow") == "POST, GET, HEAD"
    response, _ = read(make_answer(503, DATE, "", keep_alive=False, without_body=False))
    assert int(response.getheader("Retry-After") or 0) > 0
