"""Turns the arguments of `cdrd simulate pbx` into one PBX, its web API, and a play to its end.

What it says on stderr and stdout is what other programs rely on: the addresses, each on a line of
its own, and at the end the counters.
"""

import argparse
import asyncio
import contextlib
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
import uvloop

from cdrd.address import format_address
from cdrd.simulate.account import Account
from cdrd.simulate.arguments import reason, remark
from cdrd.simulate.history import History
from cdrd.simulate.pbx import SimulatedPBX
from cdrd.simulate.play import PlayingPBX
from cdrd.simulate.posting import TEST_MESSAGE, PostingPBX, Registration, Target, WebhookPBX

# Loading aiohttp takes 0.3 s, which a PBX without a web API need not pay: imports stand inside.
if TYPE_CHECKING:
    from cdrd.simulate.web_api import WebServer

_EVENT_ADDRESS = ("127.0.0.1", 8333)
_API_ADDRESS = ("127.0.0.1", 8088)
_DIALECT_BY_HAND = "2.0.0"
"""Spoken to who is posted to and has not registered."""

_BEGINS = {
    "tcp": "with the first login",
    "http": "with the first registration",
    "cloud": "with the first registration",
    "websocket": "with the first subscription",
}


class _CannotStart(Exception):
    """An address or a certificate that cannot be had."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """A PBX and, where it has one, its web API."""

    pbx: PlayingPBX
    api: "WebServer | None" = None


def run(arguments: argparse.Namespace) -> int:
    """Play the role that the arguments name; the exit status."""
    target = _target(arguments)
    _refuse_what_does_not_fit(arguments)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(arguments, target))


def _target(arguments: argparse.Namespace) -> Target | None:
    try:
        return Target.of_url(arguments.post_to) if arguments.post_to else None
    except ValueError as error:
        arguments.usage_error(str(error))
        raise


def _refuse_what_does_not_fit(arguments: argparse.Namespace) -> None:
    kind, refuse = arguments.kind, arguments.usage_error
    if arguments.api and kind != "tcp":
        refuse(f"--api is for --kind tcp: the web API of {kind} is at --listen")
    if kind == "webhook" and not arguments.post_to:
        refuse("--kind webhook needs --post-to URL")
    if arguments.post_to and kind not in ("http", "webhook"):
        refuse(f"--post-to is for --kind http and webhook: {kind} posts nothing")
    if arguments.secret and kind != "webhook":
        refuse("--secret-file is for --kind webhook: nothing else is signed")
    if bool(arguments.certificate) != bool(arguments.key):
        refuse("--certificate and --key belong together: give both")
    if kind in ("websocket", "webhook") and arguments.dialect not in ("", "p-series"):
        refuse(f"--kind {kind} speaks p-series alone: take --dialect {arguments.dialect} out")


async def _run(arguments: argparse.Namespace, target: Target | None) -> int:
    try:
        stage = await _open(arguments, target)
    except _CannotStart as failure:
        remark(str(failure))
        return 1
    password = "as in the file" if arguments.password else "api (the default)"
    begins = "at once" if target else _BEGINS[arguments.kind]
    remark(f"username {arguments.username}, password {password}; play begins {begins}")
    await _play_until_stopped(stage, arguments)
    await stage.pbx.close()
    if stage.api is not None:
        await stage.api.close()
    sys.stdout.write(orjson.dumps(stage.pbx.counters, option=orjson.OPT_APPEND_NEWLINE).decode())
    return 0


async def _open(arguments: argparse.Namespace, target: Target | None) -> _Stage:
    """Open the addresses of the role, and tell them."""
    api_address = _api_address(arguments)
    history = History(arguments.utc_offset) if api_address else None
    account = Account(arguments.username, arguments.password or "api")
    pbx = _pbx(arguments, target, account, history)
    if isinstance(pbx, SimulatedPBX):
        await _listen(pbx.start, arguments.listen or _EVENT_ADDRESS)
        remark(f"listening on {format_address(*pbx.address)}")
    if api_address is None or history is None:
        return _Stage(pbx)
    api = _api(arguments, pbx, account, history)
    await _listen(api.start, api_address)
    if not isinstance(pbx, SimulatedPBX):
        remark(f"listening on {format_address(*api.address)}")
    remark(f"API on {api.url}")
    return _Stage(pbx, api)


def _api_address(arguments: argparse.Namespace) -> tuple[str, int] | None:
    match arguments.kind:
        case "tcp":
            address: tuple[str, int] | None = arguments.api
        case "webhook":
            address = arguments.listen
        case _:
            address = arguments.listen or _API_ADDRESS
    return address


def _pbx(
    arguments: argparse.Namespace,
    target: Target | None,
    account: Account,
    history: History | None,
) -> PlayingPBX:
    match arguments.kind:
        case "tcp":
            return SimulatedPBX(
                account=account, history=history, delimiter=arguments.delimiter, note=remark
            )
        case "websocket":
            from cdrd.simulate.subscribed import SubscribedPBX  # noqa: PLC0415 - aiohttp, see above

            return SubscribedPBX(
                history=history, silence_seconds=arguments.silence_seconds, note=remark
            )
        case "http" | "cloud":
            posting = PostingPBX(arguments.dialect, history=history, note=remark)
        case _:
            posting = WebhookPBX(arguments.secret or "", history=history, note=remark)
    if target is not None:
        posting.register(Registration(target, _DIALECT_BY_HAND))
    return posting


def _api(
    arguments: argparse.Namespace, pbx: PlayingPBX, account: Account, history: History
) -> "WebServer":
    from cdrd.simulate.web_api import Limits, WebServer  # noqa: PLC0415 - aiohttp, see above

    limits = Limits(token=arguments.token_seconds, random=arguments.random_seconds)
    if arguments.kind in ("tcp", "http", "cloud"):
        from cdrd.simulate.s_series import SSeriesApi  # noqa: PLC0415 - aiohttp, see above

        # Who has been named by hand is posted to, whoever registers.
        posts = pbx if isinstance(pbx, PostingPBX) and not arguments.post_to else None
        s_series = SSeriesApi(
            account,
            history,
            pbx,
            posts=posts,
            is_cloud=arguments.kind == "cloud",
            limits=limits,
            note=remark,
        )
        return WebServer(s_series.app(), _tls(arguments))
    from cdrd.simulate.p_series import PSeriesApi  # noqa: PLC0415 - aiohttp, see above

    credentials = arguments.username, arguments.password or "api"
    p_series = PSeriesApi(credentials, history, pbx, limits=limits, note=remark)
    return WebServer(p_series.app(), _tls(arguments))


def _tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    if not arguments.certificate:
        return None
    from cdrd.simulate.web_api import server_tls  # noqa: PLC0415 - aiohttp, see above

    files = f'"{arguments.certificate}" with the key "{arguments.key}"'
    try:
        return server_tls(arguments.certificate, arguments.key)
    except ssl.SSLError as error:
        why = error.reason or "it is no PEM file, or the key is encrypted"
        raise _CannotStart(f"cannot serve the certificate {files}: {why}") from error
    except OSError as error:
        raise _CannotStart(f"cannot serve the certificate {files}: {reason(error)}") from error


async def _listen(start: Callable[[str, int], Awaitable[None]], address: tuple[str, int]) -> None:
    try:
        await start(*address)
    except OSError as error:
        where = format_address(*address)
        raise _CannotStart(f"cannot listen on {where}: {reason(error)}") from error


async def _play_until_stopped(stage: _Stage, arguments: argparse.Namespace) -> None:
    playing = asyncio.create_task(_play(stage, arguments))
    for stop in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(stop, playing.cancel)
    await asyncio.wait({playing})
    if not playing.cancelled():
        playing.result()


async def _play(stage: _Stage, arguments: argparse.Namespace) -> None:
    """Play; then let the history be fetched, until the time is over where there is a bound."""
    pbx = stage.pbx
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(arguments.seconds or None):
            if isinstance(pbx, WebhookPBX):
                await pbx.send_event(TEST_MESSAGE)
            await pbx.logged_in()
            await pbx.stream(
                count=arguments.count,
                rate=arguments.rate,
                events=arguments.events,
                dialect=arguments.dialect,
                utc_offset=arguments.utc_offset,
                unpushed_every=arguments.unpushed_every,
                reset_every=arguments.reset_every,
                chunk=arguments.chunk,
            )
            await pbx.settle()
            if stage.api is not None:
                await asyncio.Event().wait()
