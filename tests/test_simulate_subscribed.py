"""Who has subscribed to a topic gets its events, as long as it is heard from."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest
from aiohttp import WSMsgType, web

from cdrd.simulate.reports import new_cdr, other_event
from cdrd.simulate.subscribed import SubscribedPBX
from cdrd.simulate.web_api import WebServer

STARTED = 1571897930
SUCCESS = '{"errcode":0,"errmsg":"SUCCESS"}'
BAD = '{"errcode":40002,"errmsg":"PARAMETER ERROR"}'
Socket = aiohttp.ClientWebSocketResponse


def report(number: int) -> bytes:
    return new_cdr(number, "p-series", started=STARTED)


class Client:
    """Connects to the PBX, without the protocol's own answers to a ping."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Socket]:
        async with self._session.ws_connect(self._url, autoping=False) as socket:
            yield socket

    @contextlib.asynccontextmanager
    async def subscribed(self, *topics: int) -> AsyncIterator[Socket]:
        async with self.connected() as socket:
            await socket.send_json({"topic_list": topics})
            assert await socket.receive_str() == SUCCESS
            yield socket


@contextlib.asynccontextmanager
async def running(pbx: SubscribedPBX) -> AsyncIterator[Client]:
    app = web.Application()
    app.router.add_get("/", pbx.serve)
    server = WebServer(app)
    await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Client(session, server.url)
    finally:
        await pbx.close()
        await server.close()


@pytest.mark.asyncio
async def test_each_event_is_one_text_to_who_has_its_topic() -> None:
    pbx = SubscribedPBX()
    async with (
        running(pbx) as client,
        client.subscribed(30012) as calls,
        client.subscribed(30012, 30005) as both,
    ):
        await pbx.logged_in()
        await pbx.stream(count=2, events=1, started=STARTED)
        assert await both.receive_str() == other_event(0, "p-series").decode()
        for number in range(2):
            told = report(number).decode()
            assert await calls.receive_str() == await both.receive_str() == told
    assert orjson.loads(other_event(0, "p-series"))["type"] == 30005
    assert (pbx.sent, pbx.events, pbx.unheard, pbx.calls) == (2, 1, 0, 2)


@pytest.mark.asyncio
async def test_who_has_not_subscribed_hears_nothing() -> None:
    pbx = SubscribedPBX()
    async with running(pbx) as client, client.connected() as socket:
        await socket.send_str("heartbeat")
        assert await socket.receive_str() == "heartbeat response"
        assert await pbx.send(report(0)) == 0
        await socket.send_str("heartbeat")
        assert await socket.receive_str() == "heartbeat response"
    assert (pbx.sent, pbx.unheard, pbx.heartbeats) == (0, 1, 2)


@pytest.mark.asyncio
async def test_a_later_list_of_topics_replaces_the_one_before() -> None:
    pbx = SubscribedPBX()
    async with running(pbx) as client, client.subscribed(30012) as socket:
        await socket.send_str('{"topic_list":[30011]}')
        assert await socket.receive_str() == SUCCESS
        assert await pbx.send(report(0)) == 0


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "text",
    ["", "HEARTBEAT", "{}", "[]", '{"topic_list":[]}', '{"topic_list":["30012"]}', '"x"', "1"],
)
async def test_what_is_no_subscription_is_a_parameter_error(text: str) -> None:
    pbx = SubscribedPBX()
    async with running(pbx) as client, client.connected() as socket:
        await socket.send_str(text)
        assert await socket.receive_str() == BAD
        assert await pbx.send(report(0)) == 0
    assert pbx.refusals == 1


@pytest.mark.asyncio
async def test_who_says_nothing_is_dropped_and_events_and_pings_do_not_count() -> None:
    said: list[str] = []
    pbx = SubscribedPBX(silence_seconds=0.3, note=said.append)
    clock = asyncio.get_running_loop().time
    begun = clock()
    async with running(pbx) as client, client.subscribed(30012) as socket:
        with contextlib.suppress(ConnectionResetError):
            while await pbx.send(report(0)):
                await socket.ping()
                await socket.receive()
                assert clock() < begun + 5
        assert clock() - begun >= 0.3
        async for _ in socket:
            pass
        assert socket.closed
    assert said[-1].endswith("was dropped: it said nothing")


@pytest.mark.asyncio
async def test_a_heartbeat_keeps_the_connection() -> None:
    pbx = SubscribedPBX(silence_seconds=0.3)
    clock = asyncio.get_running_loop().time
    async with running(pbx) as client, client.subscribed(30012) as socket:
        begun = clock()
        while clock() < begun + 0.7:
            await socket.send_str("heartbeat")
            assert await socket.receive_str() == "heartbeat response"
        assert await pbx.send(report(0)) == 1


@pytest.mark.asyncio
async def test_resets_break_off_with_rst_and_in_order() -> None:
    pbx = SubscribedPBX()
    async with running(pbx) as client:
        async with client.subscribed(30012) as socket:
            await pbx.reset(orderly=True)
            assert (await socket.receive()).type is WSMsgType.CLOSE
        async with client.subscribed(30012) as socket:
            await pbx.reset()
            assert (await socket.receive()).type in (WSMsgType.CLOSED, WSMsgType.ERROR)
            assert await pbx.send(report(0)) == 0
    assert (pbx.resets, pbx.unheard) == (2, 1)


@pytest.mark.asyncio
async def test_who_leaves_is_no_longer_sent_to() -> None:
    pbx = SubscribedPBX()
    async with running(pbx) as client:
        async with client.subscribed(30012) as socket:
            await socket.close()
        assert await pbx.send(report(0)) == 0
        async with client.subscribed(30012) as again:
            assert await pbx.send(report(1)) == 1
            assert await again.receive_str() == report(1).decode()


@pytest.mark.asyncio
async def test_the_end_of_the_pbx_is_a_close_to_each() -> None:
    pbx = SubscribedPBX()
    async with running(pbx) as client, client.subscribed(30012) as socket:
        await pbx.close()
        assert (await socket.receive()).type is WSMsgType.CLOSE
