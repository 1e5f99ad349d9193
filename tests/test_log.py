"""A line follows its row, hides what it must hide, and nobody waits for whoever reads the log."""

import fcntl
import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from cdrd.block import rows_of
from cdrd.log import (
    WAITING_LIMIT_BYTES,
    LineWriter,
    Logger,
    log_calls,
    make_logger,
    number_rule,
    set_level,
    under_journald,
)
from tests import example
from tests.small_disk import fill, small_disk

SOON = 20.0
KEYS = (
    "timestamp level event seq pbx call_id started_at caller callee source_trunk "
    "destination_trunk duration talk_duration status call_type recording source"
)
KEY = b"k" * 32

CALL = example.CALL._replace(
    callee="4930123456",
    pin_code="4711-PIN",
    recording="20170914093038-1505352615.274-1000-4930123456-Outbound.wav",
    raw='{"pincode": "4711-PIN"}',
)


class Out:
    """A log that goes to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.lines = LineWriter(self.descriptor)

    def text(self) -> str:
        assert self.lines.flush(SOON)
        return self.path.read_text(encoding="utf-8")

    def parsed(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Out]:
    made = Out(tmp_path / "log")
    yield made
    made.lines.close(SOON)
    os.close(made.descriptor)


def logger(out: Out, numbers: str = "full", level: str = "info") -> Logger:
    out.lines.number_rule = number_rule(numbers, KEY)
    return make_logger(out.lines, level=level)


# Lines.


def test_a_call_has_the_keys_of_the_contract_in_their_order(out: Out) -> None:
    log_calls(logger(out), out.lines, rows_of([(7, CALL)]))
    (line,) = out.parsed()
    assert " ".join(line) == KEYS
    del line["timestamp"]
    assert line == {
        "level": "info",
        "event": "call_released",
        "seq": 7,
        "pbx": "hq",
        "call_id": "1505352615.274",
        "started_at": "2017-09-14T01:30:15Z",
        "caller": "1000",
        "callee": "4930123456",
        "source_trunk": None,
        "destination_trunk": "Apple_test",
        "duration": 29,
        "talk_duration": None,
        "status": "ANSWERED",
        "call_type": "Outbound",
        "recording": CALL.recording,
        "source": "tcp",
    }


def test_any_other_event_begins_with_the_same_three_keys(out: Out) -> None:
    logger(out).warning("peer_refused", address="192.0.2.1", count=2)
    (line,) = out.parsed()
    assert list(line) == ["timestamp", "level", "event", "address", "count"]
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("console", [False, True])
def test_a_path_of_any_bytes_is_told(out: Out, *, console: bool) -> None:
    log = make_logger(out.lines, console=console)
    log.info("started", database=os.fsdecode(b"/caf\xe9/cdr.sqlite3"))
    assert "/caf?/cdr.sqlite3" in out.text()


HOSTILE = ("},{", '"},{"', "\\", '\n{"event":"call_released"}', "\x1b[2J", "\u2028", "{},{}", "ä")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("journal", [False, True])
def test_nothing_in_a_field_makes_a_line_of_its_own(out: Out, text: str, *, journal: bool) -> None:
    rows = [(seq, CALL._replace(caller=text, destination_trunk=text)) for seq in (1, 2)]
    log = make_logger(out.lines, journal=journal)
    log_calls(log, out.lines, rows_of(rows))
    log.warning("peer_refused", first=text, second=text)
    lines = out.text().split("\n")
    assert lines.pop() == ""
    prefixes = ["<6>", "<6>", "<4>"] if journal else ["", "", ""]
    assert [line[: len(prefix)] for line, prefix in zip(lines, prefixes, strict=True)] == prefixes
    parsed = [
        orjson.loads(line[len(prefix) :]) for line, prefix in zip(lines, prefixes, strict=True)
    ]
    assert [line.get("caller") for line in parsed] == [text, text, None]
    assert parsed[2]["first"] == text


@pytest.mark.parametrize("numbers", ["full", "masked", "hashed"])
@pytest.mark.parametrize("console", [False, True])
def test_a_pin_code_never_appears(out: Out, numbers: str, *, console: bool) -> None:
    out.lines.number_rule = number_rule(numbers, KEY)
    log = make_logger(out.lines, console=console)
    log_calls(log, out.lines, rows_of([(1, CALL)]))
    assert "1505352615.274" in out.text()
    assert "4711" not in out.text()


# Numbers.


def test_masked_hides_the_last_four_characters(out: Out) -> None:
    log_calls(logger(out, "masked"), out.lines, rows_of([(1, CALL)]))
    (line,) = out.parsed()
    assert (line["caller"], line["callee"]) == ("****", "493012****")
    assert line["recording"] == "20170914093038-1505352615.274-****-493012****-Outbound.wav"


def test_hashed_is_the_same_for_a_number_and_a_key(out: Out) -> None:
    log_calls(
        logger(out, "hashed"), out.lines, rows_of([(1, CALL), (2, CALL._replace(callee="1000"))])
    )
    first, second = out.parsed()
    assert first["caller"] == second["caller"] == second["callee"]
    assert first["callee"] != first["caller"]
    assert f"-{first['caller']}-{first['callee']}-" in first["recording"]
    assert "1000-" not in first["recording"]
    assert first["caller"] == number_rule("hashed", KEY)("1000")
    assert first["caller"] != number_rule("hashed", b"other" * 5)("1000")


@pytest.mark.parametrize("numbers", ["masked", "hashed"])
@pytest.mark.parametrize(
    "recording",
    [
        CALL.recording,
        "/ftp_media/autorecord/20170914/" + CALL.recording,
        "4930123456-1000.wav",
        "20170914093038-1505352615.274-1000-4930123456-Outbound.wav@20170914093040-x.wav",
    ],
)
def test_a_hidden_number_is_hidden_in_the_recordings_name_too(
    out: Out, numbers: str, recording: str
) -> None:
    log_calls(logger(out, numbers), out.lines, rows_of([(1, CALL._replace(recording=recording))]))
    assert CALL.callee not in out.text()


@pytest.mark.parametrize("numbers", ["masked", "hashed"])
def test_an_absent_number_stays_absent(out: Out, numbers: str) -> None:
    absent = CALL._replace(caller="", recording="")
    log_calls(logger(out, numbers), out.lines, rows_of([(1, absent)]))
    (line,) = out.parsed()
    assert (line["caller"], line["recording"]) == (None, None)


# journald and the terminal.


def test_under_journald_each_line_begins_with_its_priority(out: Out) -> None:
    log = make_logger(out.lines, journal=True, level="debug")
    log_calls(log, out.lines, rows_of([(1, CALL), (2, CALL)]))
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)("something_happened")
    prefixes = [line[:3] for line in out.text().splitlines()]
    assert prefixes == ["<6>", "<6>", "<7>", "<6>", "<4>", "<3>", "<2>"]
    assert all(line[3] == "{" for line in out.text().splitlines())


def test_only_the_very_stream_of_journald_is_journald(out: Out) -> None:
    status = os.fstat(out.descriptor)
    device, inode = status.st_dev, status.st_ino
    assert under_journald({"JOURNAL_STREAM": f"{device}:{inode}"}, out.descriptor)
    assert not under_journald({"JOURNAL_STREAM": f"{device}:{inode + 1}"}, out.descriptor)
    assert not under_journald({"JOURNAL_STREAM": ""}, out.descriptor)
    assert not under_journald({}, out.descriptor)
    assert not under_journald({"JOURNAL_STREAM": f"{device}:{inode}"}, 2**30)


def test_what_a_caller_is_named_cannot_command_the_terminal(out: Out) -> None:
    log = make_logger(out.lines, console=True)
    evil = "\x1b]0;owned\x07\r\n\x9b2J\x7f"
    log_calls(log, out.lines, rows_of([(1, CALL._replace(caller=evil))]))
    log.info("stopped", events={evil: 1}, reason=evil)
    text = out.text()
    for command in ("\x1b]", "\x07", "\r", "\x9b", "\x7f"):
        assert command not in text
    assert text.count("\n") == 2
    assert "\ufffd" in text


# What was told.


def test_logged_seq_follows_what_was_written(out: Out) -> None:
    log_calls(logger(out), out.lines, rows_of([(7, CALL), (9, CALL)]))
    assert out.lines.flush(SOON)
    assert out.lines.logged_seq == 9
    log_calls(logger(out), out.lines, rows_of([]))
    assert out.lines.logged_seq == 9


def test_logged_seq_stays_before_a_row_whose_line_is_to_come(out: Out) -> None:
    out.lines.hold(3)
    out.lines.hold(5)
    log_calls(logger(out), out.lines, rows_of([(7, CALL), (9, CALL)]))
    assert out.lines.flush(SOON)
    assert out.lines.logged_seq == 2
    out.lines.write(b"", held=3)
    assert out.lines.flush(SOON)
    assert out.lines.logged_seq == 4
    out.lines.let_go(5)
    assert out.lines.logged_seq == 9


def test_the_level_can_be_changed_while_the_daemon_runs(out: Out) -> None:
    log = logger(out, level="warning").bind(pbx="hq")
    log.info("first_happened")
    set_level(out.lines, "info")
    log.info("second_happened")
    set_level(out.lines, "error")
    log.warning("third_happened")
    log.error("fourth_happened")
    assert [line["event"] for line in out.parsed()] == ["second_happened", "fourth_happened"]


def test_a_level_that_leaves_calls_out_counts_them_as_told(out: Out) -> None:
    log = logger(out, level="warning")
    for seq in range(1, 2000):
        log_calls(log, out.lines, rows_of([(seq, CALL)]))
    assert out.lines.flush(SOON)
    assert out.lines.logged_seq == 1999
    assert out.text() == ""


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def read(descriptor: int, size: int) -> bytes:
    text = b""
    while len(text) < size:
        text += os.read(descriptor, size - len(text))
    return text


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    with pipe() as (reading, writing):
        lines = LineWriter(writing)
        chunk = b"x" * (WAITING_LIMIT_BYTES // 4)
        for seq in range(1, 5):
            lines.write(chunk, seq)
        assert not lines.full
        lines.write(b"end\n", 5)
        assert lines.full
        assert not lines.flush(0)
        assert lines.logged_seq == 0
        waiting = threading.Thread(target=lines.wait_until_room)
        waiting.start()
        assert read(reading, 4 * len(chunk) + 4).endswith(b"end\n")
        waiting.join(SOON)
        assert not waiting.is_alive()
        assert lines.flush(SOON)
        assert lines.logged_seq == 5
        lines.close(SOON)


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    # Whoever started us may have made the other end, and with it ours, non-blocking.
    with pipe() as (reading, writing):
        fcntl.fcntl(writing, fcntl.F_SETFL, os.O_NONBLOCK)
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_NONBLOCK)
        lines = LineWriter(writing)
        lines.write(b"x" * 500_000, 1)
        received = bytearray()
        while not lines.flush(0.001):
            received += drain(reading)
        received += drain(reading)
        assert (len(received), lines.logged_seq, lines.failure) == (500_000, 1, "")
        lines.close(SOON)


def drain(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1_000_000)
    except BlockingIOError:
        return b""


def test_a_reader_that_has_left_leaves_logged_seq_where_it_was() -> None:
    reading, writing = os.pipe()
    lines = LineWriter(writing)
    lines.write(b"told\n", 3)
    assert lines.flush(SOON)
    os.close(reading)
    lines.write(b"untold\n", 4)
    assert lines.flush(SOON)
    assert lines.logged_seq == 3
    assert "Broken pipe" in lines.failure
    lines.close(SOON)
    os.close(writing)


def test_a_row_behind_one_that_was_not_told_is_not_told_either(tmp_path: Path) -> None:
    # Nobody reads the pipe; the next run tells from the first that was not written.
    reading, descriptor = os.pipe()
    os.close(reading)
    lines = LineWriter(descriptor)
    lines.write(b"lost\n", 4)
    assert lines.flush(SOON)
    working = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(working, descriptor)
    lines.write(b"written\n", 5)
    assert lines.flush(SOON)
    assert lines.logged_seq == 0
    lines.close(SOON)
    os.close(descriptor)
    os.close(working)


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    lines = LineWriter(descriptor)
    lines.write(b"kept\n", 4)
    assert not lines.flush(0.1)
    working = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(working, descriptor)
    lines.write(b"written\n", 5)
    assert lines.flush(SOON)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "kept\nwritten\n"
    assert (lines.logged_seq, lines.failure) == (5, "")
    lines.close(SOON)
    os.close(descriptor)
    os.close(working)


def test_a_stop_does_not_wait_for_a_full_disk() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    lines = LineWriter(descriptor)
    lines.write(b"left to the next start\n", 4)
    lines.release()
    assert lines.flush(SOON)
    assert lines.logged_seq == 0
    assert "No space left" in lines.failure
    lines.close(SOON)
    os.close(descriptor)


def test_what_a_stop_has_cut_on_a_full_disk_joins_no_later_line(tmp_path: Path) -> None:
    with small_disk(tmp_path) as (disk, _):
        filler, room = disk / "filler", 8192
        fill(filler)
        os.truncate(filler, filler.stat().st_size - room)
        out = Out(disk / "log")
        out.lines.release()
        out.lines.write(b"c" * 2 * room + b"\n", 1)
        assert out.lines.flush(SOON)
        filler.unlink()
        out.lines.write(b"stopped\n")
        cut, _, behind = out.text().partition("\n")
        assert (set(cut), behind) == ({"c"}, "stopped\n")
        out.lines.close(SOON)
        os.close(out.descriptor)


@pytest.mark.parametrize(
    ("left", "becomes"), [(b"", "begun\n"), (b"whole\n", "whole\nbegun\n"), (b"c", "c\nbegun\n")]
)
def test_a_run_begins_a_line_of_its_own(tmp_path: Path, left: bytes, becomes: str) -> None:
    (tmp_path / "log").write_bytes(left)
    out = Out(tmp_path / "log")
    out.lines.write(b"begun\n")
    assert out.text() == becomes
    out.lines.close(SOON)
    os.close(out.descriptor)


def test_a_stop_leaves_the_calls_that_a_slow_reader_keeps_waiting() -> None:
    with pipe() as (reading, writing):
        lines = LineWriter(writing)
        begun, left = b"x" * 200_000, b"left\n"
        lines.write(begun, 1)  # more than a pipe holds
        select.select([reading], [], [], SOON)  # until it is being written
        lines.write(left, 2)
        lines.write(b"event\n")
        lines.write(left, 3)
        lines.finish(0.01)
        lines.write(b"stopped\n")
        told = begun + b"event\nstopped\n"
        assert read(reading, len(told)) == told
        assert lines.flush(SOON)
        assert lines.logged_seq == 1
        lines.close(SOON)


def test_a_stop_writes_what_a_reader_takes(tmp_path: Path) -> None:
    out = Out(tmp_path / "log")
    out.lines.write(b"told\n", 1)
    out.lines.finish(SOON)
    assert out.text() == "told\n"
    assert out.lines.logged_seq == 1
    out.lines.close(SOON)
    os.close(out.descriptor)


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    out = Out(tmp_path / "log")
    for number in range(100):
        out.lines.write(b"%d\n" % number, number)
    out.lines.close(SOON)
    assert out.path.read_text(encoding="utf-8").split() == [str(number) for number in range(100)]
    assert out.lines.logged_seq == 99
    os.close(out.descriptor)


def test_closing_does_not_wait_for_ever_for_a_reader() -> None:
    with pipe() as (reading, writing):
        lines = LineWriter(writing)
        lines.write(b"x" * 1_000_000, 1)
        lines.close(0.01)
        assert lines.logged_seq == 0
        assert len(read(reading, 1_000_000)) == 1_000_000
        lines.close(SOON)
