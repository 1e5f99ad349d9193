"""The demo as people run it: what was sent is what was stored is what was logged."""

import os
import pty
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest

from cdrd.commands.demo import CONNECTS, CONNECTS_RATE, DIALLED, DIALLED_RATE, Outcome, Sent
from tests.running import DEADLINE_SECONDS, Line, assert_accounted, cdrd

CHECKOUT = Path(__file__).parent.parent
ACCOUNTED = {
    "received": 4,
    "stored": 2,
    "duplicate": 0,
    "quarantined": 1,
    "passed_over": 1,
    "spooled": 0,
}


def split(output: str) -> tuple[list[Line], list[str]]:
    """Split what a demo has said into its log and its summary."""
    log, _, summary = output.partition("\n\n")
    return [orjson.loads(line) for line in log.splitlines()], summary.splitlines()


def released(lines: list[Line]) -> Counter[str]:
    return Counter(line["pbx"] for line in lines if line["event"] == "call_released")


def counted(summary: list[str]) -> dict[str, list[int]]:
    """Return the four numbers of each PBX: reports, other events, rows, lines."""
    rows = [line.split() for line in summary if line.startswith((DIALLED, CONNECTS))]
    return {name: [int(number) for number in numbers] for name, *numbers in rows}


def outcome(*, stored: int = 2, logged: int = 2, stopped: dict[str, int] | None = None) -> Outcome:
    told = ACCOUNTED if stopped is None else stopped
    return Outcome({DIALLED: Sent(2, 1)}, {DIALLED: stored}, {DIALLED: logged}, told)


def test_what_was_sent_is_what_was_stored_is_what_was_logged() -> None:
    played = cdrd("demo", "--seconds", "1")
    assert (played.returncode, played.stderr) == (0, "")
    lines, summary = split(played.stdout)
    logged = released(lines)
    assert logged == {DIALLED: DIALLED_RATE, CONNECTS: CONNECTS_RATE}
    events = 0
    for pbx, (reports, others, stored, told) in counted(summary).items():
        assert reports == stored == told == logged[pbx]
        assert others > 0
        events += others
    assert_accounted(lines[-1])
    assert lines[-1]["stored"] == logged.total()
    assert lines[-1]["passed_over"] == events
    assert summary[-1].startswith("all agree")


def test_it_works_in_any_directory_and_leaves_nothing_behind(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    (home / "sqlite3.py").write_text("raise SystemExit('of another program')")
    played = subprocess.run(
        [sys.executable, "-P", "-m", "cdrd", "demo", "--seconds", "1"],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "TMPDIR": str(temporary)},
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert (played.returncode, played.stderr) == (0, b"")
    assert [path.name for path in home.iterdir()] == ["sqlite3.py"]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_demo_ends_with_the_summary_so_far(number: int, tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "cdrd", "demo", "--seconds", "60"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        read = ""
        while released(split(read)[0]).keys() != {DIALLED, CONNECTS}:
            read += demo.stdout.readline()
        demo.send_signal(number)
        # Not communicate(): it does not know of what readline() has read ahead.
        read += demo.stdout.read()
        remarks = demo.stderr.read()
    assert (demo.returncode, remarks) == (0, "")
    lines, summary = split(read)
    sent = {pbx: numbers[0] for pbx, numbers in counted(summary).items()}
    assert sent == released(lines)
    assert summary[-1].startswith("all agree")
    assert list(tmp_path.iterdir()) == []


def test_a_demo_whose_reader_leaves_ends_quietly_and_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "cdrd", "demo", "--seconds", "60"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.wait(DEADLINE_SECONDS) == 0
        assert demo.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


def test_on_a_terminal_the_log_lines_are_for_people() -> None:
    terminal, inside = pty.openpty()
    demo = subprocess.Popen(
        [sys.executable, "-m", "cdrd", "demo", "--seconds", "1"], stdout=inside, stderr=inside
    )
    os.close(inside)
    shown = b""
    with demo:
        try:
            while chunk := os.read(terminal, 1 << 16):
                shown += chunk
        except OSError:
            pass  # how Linux tells that nobody has the terminal's other side any more
        assert demo.wait(DEADLINE_SECONDS) == 0
    os.close(terminal)
    assert shown.count(b"call_released") == DIALLED_RATE + CONNECTS_RATE + 1  # and a heading
    assert b'{"timestamp"' not in shown
    assert b"all agree" in shown


def test_a_demo_that_cannot_be_played_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'serve' in sys.orig_argv: sys.exit('no daemon today')\n"
    )
    failed = subprocess.run(
        [sys.executable, "-m", "cdrd", "demo", "--seconds", "1"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert failed.returncode == 1
    assert "cdrd demo: the daemon ended by itself" in failed.stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "1.5", "soon"])
def test_seconds_are_a_whole_number_of_one_or_more(seconds: str) -> None:
    refused = cdrd("demo", "--seconds", seconds)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage: cdrd demo")


def test_it_agrees_only_when_sent_stored_and_logged_are_the_same_and_all_is_accounted_for() -> None:
    assert outcome().agrees
    assert not outcome(stored=1).agrees
    assert not outcome(logged=3).agrees
    assert not outcome(stopped=ACCOUNTED | {"received": 5}).agrees
    assert not outcome(stopped={}).agrees
