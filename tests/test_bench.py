"""What the bench measures with: its loads, its sender, its runs and those it compares with."""

import contextlib
import re
import sqlite3
import threading
from datetime import UTC
from functools import partial
from itertools import islice
from pathlib import Path
from socket import create_server, socket
from types import ModuleType

import orjson
import pytest

from cdrd.database import open_reader
from cdrd.report import read_reports
from cdrd.simulate.reports import new_cdr, other_event
from tests.bench import (
    exports,
    floor,
    goals,
    grown_file,
    growth,
    idle,
    kinds,
    latency,
    many,
    measured,
    peers,
    posts,
    sender,
)
from tests.bench.contender import Contender, take_turns
from tests.bench.load import DIALECT, STARTED, Load, blocks_of, render
from tests.bench.peer_cdrd import Cdrd
from tests.bench.run import Run, run, syncs
from tests.bench.server import Failed
from tests.bench.table import Table, figure
from tests.example import make_records

SMALL = Load(3000, connections=7)


# Loads and the sender


def test_a_load_is_the_simulated_reports_in_order(tmp_path: Path) -> None:
    load = Load(120, connections=2, events=1)
    lines = render(load, tmp_path).read_bytes().splitlines()
    assert lines[0::2] == [
        new_cdr(n, DIALECT, started=STARTED + n // 50) for n in range(load.count)
    ]
    assert lines[1::2] == [other_event(n, DIALECT) for n in range(load.count)]


def test_a_padded_report_has_its_size_and_says_the_same(tmp_path: Path) -> None:
    plain = render(Load(1500), tmp_path).read_bytes().splitlines()
    padded = render(Load(1500, size=600), tmp_path).read_bytes().splitlines(keepends=True)
    assert {len(line) for line in padded} == {600}
    for one, other in zip(plain, padded, strict=True):
        report = orjson.loads(other)
        del report["note"]
        assert report == orjson.loads(one)


def test_a_load_without_delimiters_has_none(tmp_path: Path) -> None:
    text = render(Load(1000, delimiter="none"), tmp_path).read_bytes()
    assert b"\n" not in text
    assert text.count(b"}{") == 999


def test_each_connection_gets_whole_reports_and_each_report_goes_once(tmp_path: Path) -> None:
    file = render(SMALL, tmp_path)
    assert len(orjson.loads(blocks_of(file).read_bytes())) >= SMALL.connections
    received: list[bytes] = []

    def take(connection: socket) -> None:
        with connection, connection.makefile("rb") as stream:
            received.append(stream.read())

    with (
        create_server(("127.0.0.1", 0)) as listener,
        sender.sending(file, listener.getsockname()[1], SMALL.connections) as sending,
    ):
        takers = [
            threading.Thread(target=take, args=(listener.accept()[0],))
            for _ in range(SMALL.connections)
        ]
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join()
        assert sending.wait(30) == 0
    assert all(received)
    lines = [line for stream in received for line in stream.splitlines(keepends=True)]
    assert sorted(lines) == sorted(file.read_bytes().splitlines(keepends=True))


def test_the_sender_alone_is_measured(tmp_path: Path) -> None:
    sent = sender.alone(render(SMALL, tmp_path), SMALL.connections)
    assert sent.seconds > 0
    assert sent.cpu_seconds > 0


# Runs


def test_a_run_tells_rate_cost_and_memory(tmp_path: Path) -> None:
    measured = run(Cdrd, SMALL, tmp_path)
    assert measured.rate > 100
    assert measured.cpu_seconds_a_million > 1
    assert measured.peak_mib > 20


def test_a_run_holds_the_server_to_what_was_sent(tmp_path: Path) -> None:
    file = render(SMALL, tmp_path)
    with file.open("ab") as more:
        end = file.stat().st_size + more.write(new_cdr(SMALL.count, started=STARTED))
    ends = orjson.loads(blocks_of(file).read_bytes())
    blocks_of(file).write_bytes(orjson.dumps([*ends, end]))
    with pytest.raises(Failed, match=r"3,000 were sent, .*3,001 lines"):
        run(Cdrd, SMALL, tmp_path)


# Node-RED takes minutes to install, so only the bench sees to it.
AT_HAND = [peer for _, peer, _, _ in peers.PEERS if not peer.missing()]


@pytest.mark.parametrize("peer", AT_HAND, ids=lambda peer: peer.__name__)
def test_a_peer_stores_what_it_is_sent(peer: ModuleType, tmp_path: Path) -> None:
    assert run(partial(peer.start, synchronous="NORMAL"), SMALL, tmp_path).rate > 100


def test_the_floor_inserts_what_cdrd_has_stored(tmp_path: Path) -> None:
    measured = floor.run(SMALL, tmp_path)
    assert measured.rate > 1000
    assert measured.cpu_seconds_a_million > 0.5


def test_syncs_are_those_of_the_commits(tmp_path: Path) -> None:
    counted = syncs(Cdrd, SMALL, tmp_path)
    assert counted is not None
    assert 0.3 < counted < 1000


def test_who_fails_is_left_out_with_the_reason_and_ends_nothing(tmp_path: Path) -> None:
    def fail() -> Run:
        raise Failed("it has no port")

    compared = peers.SideBySide(SMALL)
    compared.add(peers.CDRD, Cdrd, 1, tmp_path)
    compared.contenders.append(Contender("bad", fail))
    take_turns(compared.contenders, 2, lambda _: None)
    table = peers.table(compared)
    assert [row[0] for row in table.rows] == [peers.CDRD]
    assert table.rows[0][2] == "1.00"
    assert "Left out: bad (it has no port)." in table.remarks
    assert len(compared.contenders[0].runs) == 2


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    one, two = Contender("one", partial(Run, 1, 1, 1)), Contender("two", partial(Run, 1, 1, 1))
    one.runs = [Run(rate, 10, 50) for rate in (10, 40, 90)]
    two.runs = [Run(rate, 20, 50) for rate in (10, 10, 30)]
    assert one.ratio(two) == (3, 0.5, 1)
    assert one.median() == (40, 10, 50)


def test_the_parsing_alone_is_of_every_event(tmp_path: Path) -> None:
    parsed = kinds.parse(Load(500, events=20), tmp_path)
    assert 1 < parsed.cpu_seconds_a_million < 1_000_000
    assert parsed.rate == pytest.approx(1e6 / parsed.cpu_seconds_a_million)


def test_a_lone_report_is_timed_until_it_is_visible() -> None:
    found = latency.measure(Cdrd, 1, background=1000)
    assert 0.1 < found.median <= found.high < latency.LOST_SECONDS * 1000


# Growth and rest


def test_a_grown_file_holds_what_cdrd_makes_of_each_rows_report(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    grown_file.make(path, 2500)
    with contextlib.closing(open_reader(path)) as reader:
        reader.row_factory = sqlite3.Row
        rows = reader.execute("SELECT * FROM call ORDER BY seq").fetchall()
    calls = list(read_reports(orjson.loads(row["raw"]) for row in rows))
    raws = [row["raw"] for row in rows]
    made = make_records(calls, raws, pbx="bench", zone=UTC, source="tcp", received_at="")  # type: ignore[arg-type]  # each of them is a call
    assert [row["seq"] for row in rows] == list(range(1, 2501))
    for row, record in zip(rows, made, strict=True):
        expected = record._asdict()
        for name in expected.keys() - {"identity", "received_at"}:
            assert row[name] == expected[name], name
    assert rows[-1]["started_at"] == "2023-11-13T11:10:56Z"


def test_each_load_into_a_grown_file_adds_its_rows(tmp_path: Path) -> None:
    grown = growth.Grown(tmp_path, 2000)
    for times in (1, 2):
        assert grown.run(Load(500), tmp_path).rate > 100
        with contextlib.closing(open_reader(grown.database)) as reader:
            (rows,) = reader.execute("SELECT count(*) FROM calls").fetchone()
        assert rows == 2000 + times * 500
    looks = dict(islice(grown.looks(), len(growth.QUERIES) + 1))
    assert all(milliseconds > 0 for milliseconds in looks.values())
    grown.command(growth.COMMANDS["cdrd export of a day"])
    assert (grown.directory / "output.csv").read_bytes().startswith(b"seq,pbx,call_id,")


def test_rest_is_measured_with_connections_that_say_nothing() -> None:
    percent, mib = idle.cpu_at_rest(20, 0.5)
    assert 0 <= percent < 100
    assert mib > 20
    assert idle.milliseconds_to_ready() > 10


def test_a_history_that_was_never_pushed_is_timed_and_held_to_the_rows() -> None:
    seconds, mib = many.fetched(200)
    assert seconds > 0.1
    assert mib > 20


# Posts and exports


def test_posts_are_timed_and_held_to_the_rows() -> None:
    posted = posts.measure(4, 40)
    assert posted.rate > 1
    assert posted.daemon_cpu > 10
    assert posted.poster_cpu > 10


def test_an_export_is_timed_whole(tmp_path: Path) -> None:
    grown_file.make(tmp_path / "cdr.sqlite3", 1000)
    ran = exports.measure(exports.export(tmp_path / "cdr.sqlite3", "jsonl"), tmp_path / "out")
    assert len((tmp_path / "out").read_bytes().splitlines()) == 1000
    assert ran.seconds > 0.05
    assert ran.peak_mib > 10


# Goals


def test_the_goals_say_what_was_reached_and_which_were_not_measured() -> None:
    table = goals.table({goals.RATE: 1.98, goals.PEAK: 99.4})
    rows = {name: rest for name, *rest in table.rows}
    assert rows[goals.RATE.name] == ["1.98", "at least 2.00", "no"]
    assert rows[goals.PEAK.name] == ["99 MiB", "at most 100 MiB", "yes"]
    assert rows[goals.CPU.name] == ["not measured", "at most 0.60", ""]
    assert len(rows) == len(goals.GOALS)


# Tables


def test_a_table_as_markdown() -> None:
    table = Table("Beside", ("who", "rate"), [("cdrd", figure(12345.6)), ("other", "")], ["So."])
    assert table.markdown() == (
        "## Beside\n\n| who | rate |\n| --- | --- |\n| cdrd | 12,346 |\n| other | |\n\nSo.\n"
    )


# The page


def test_the_readme_quotes_the_page_word_for_word() -> None:
    readme = measured.README.read_text()
    assert measured.quote(readme, measured.PAGE.read_text()) == readme
    assert "### Goals" in readme
    assert "### Beside others" in readme


def test_what_is_quoted_is_the_machine_the_goals_and_the_comparison() -> None:
    tables = [Table(name, ("who",), [(name[0],)]) for name in ("Goals", "Growth", "Beside others")]
    page = measured.page("Two cores.", tables)
    assert measured.quoted(page) == (
        "Two cores.\n\n### Goals\n\n| who |\n| --- |\n| G |\n\n"
        "### Beside others\n\n| who |\n| --- |\n| B |\n"
    )
    first = measured.quote(f"# cdrd\n{measured.BEGIN}old\n{measured.END}More.\n", page)
    assert first.startswith(f"# cdrd\n{measured.BEGIN}\nTwo cores.\n")
    assert first.endswith(f"| B |\n\n{measured.END}More.\n")
    assert measured.quote(first, page) == first


def test_the_page_has_the_goals_that_are_set() -> None:
    page = measured.PAGE.read_text()
    for goal in goals.GOALS:
        bound = f"at {'least' if goal.at_least else 'most'} {goal.shown(goal.bound)}"
        assert re.search(rf"\| {re.escape(goal.name)} \| [^|]+ \| {re.escape(bound)} \|", page)
