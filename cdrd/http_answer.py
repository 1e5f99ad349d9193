"""Turns a status into the bytes of an HTTP answer.

The rule that must stay true: an answer tells its length and whether the connection stays, so that
the peer never has to guess where it ends.
"""

from functools import lru_cache
from http import HTTPStatus
from typing import Final

METHODS: Final = ("POST", "GET", "HEAD")

RETRY_SECONDS: Final = 5
"""What a peer is told to wait after a 503; a commit that fails is tried again as often."""


@lru_cache(maxsize=64)  # the same for all within a second
def make_answer(
    status: int, date: str, sentence: str, keep_alive: bool, without_body: bool
) -> bytes:
    """Make an answer whose body is the sentence, where there is one; ``date`` as HTTP spells it.

    ``without_body`` is for the answer to a HEAD, which tells the length and ends there.
    """
    body = f"{sentence}\n".encode() if sentence else b""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Date: {date}",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
        *_further_headers(status),
    ]
    if body:
        lines.append("Content-Type: text/plain; charset=utf-8")
    head = "\r\n".join((*lines, "\r\n")).encode("ascii")
    return head if without_body else head + body


def _further_headers(status: int) -> tuple[str, ...]:
    match status:
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return (f"Allow: {', '.join(METHODS)}",)
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return (f"Retry-After: {RETRY_SECONDS}",)
        case _:
            return ()
