"""Power loss: what was told before it is there afterwards, once, and what it cut off does no harm.

Nothing here cuts the power of a machine: strace tells what the programs did to their files, and
from that is made what a disk may hold of it. What a disk does that says it has synced and has not
cannot be shown, nor what a file system does to files that nobody wrote.
"""

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

from cdrd.batch import Batch
from cdrd.spool import Spool
from tests.damage import drop_wal
from tests.example import call as record
from tests.faults.disk import write_files
from tests.faults.oracle import SendingPbx, Stored, call, logged_but_missing, read
from tests.faults.outcome import Outcome
from tests.faults.recorded import Moment, Recorder, Told
from tests.running import DEADLINE_SECONDS, HQ, RunningDaemon, cdrd, send
from tests.test_http_listen import TABLES, http_port

NORMAL = 'database.durability = "normal"\n'
SPOOLED = 600
STORED = 300
POSTED = range(1_000_000, 1_000_020)
POSTERS = 4
OLD = "127.0.0.2"
FILES = (
    ("backup",),
    ("export", "calls", "-o"),
    ("report", "--by", "day", "-o"),
)
REPLACED = b"what was there before"


@dataclass(slots=True)
class Losses:
    """What came of some losses of power."""

    cuts: int = 0
    told: int = 0
    missing: int = 0
    cuts_with_missing: int = 0
    doubled: int = 0
    unsound: int = 0
    not_logged: int = 0
    places: list[float] = field(default_factory=list)  # where something was missing

    def add(self, other: "Losses") -> None:
        """Add those of another recording."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def count(self, told: int, missing: int, moment: Moment) -> None:
        """Count what was told before a loss, and what of it is missing behind it."""
        self.cuts += 1
        self.told += told
        self.missing += missing
        if missing:
            self.cuts_with_missing += 1
            self.places.append(moment.place)

    @property
    def broken(self) -> tuple[str, ...]:
        """Name the promises that were not kept."""
        kept = {
            "the database is whole": not self.unsound,
            "every row has its line": not self.not_logged,
        }
        return tuple(promise for promise, is_kept in kept.items() if not is_kept)


def lose_power(times: int) -> Outcome:
    """Lose the power so often, in all that cdrd does to files."""
    began = time.monotonic()
    losses = Losses()
    for lose, share in _SHARES.items():
        losses.add(lose(max(1, times * share // 100)))
    normal = lose_power_under_load(max(1, times // 20), durability=NORMAL)
    broken = tuple(lose_power_while_files_are_made(times))
    seconds = time.monotonic() - began
    remark = (
        f"with normal {normal.missing:,} of {normal.told:,} were missing,"
        f" in {normal.cuts_with_missing} of {normal.cuts} cuts"
    )
    figures = (losses.told, losses.missing, losses.doubled)
    return Outcome(*figures, seconds, remark, losses.broken + broken)


def lose_power_under_load(
    times: int, *, calls: int = 400, durability: str = "", seed: int = 1
) -> Losses:
    """From the first start on, over posts, an orderly end, a second start and a kill."""
    losses = Losses()
    tables = durability + TABLES
    posted: dict[str, list[int]] = {}
    with recording() as recorder:
        with recorder.daemon(tables) as daemon, SendingPbx(daemon.port, rate=1000) as pbx:
            _post(http_port(daemon), POSTED, posted)
            daemon.wait_for("call_released", times=calls + len(POSTED))
            pbx.stop()
            assert daemon.stop()[0] == 0
        with recorder.daemon(tables) as daemon, SendingPbx(daemon.port, pbx.next, rate=1000):
            daemon.wait_for("call_released", times=calls)
            daemon.kill()
        for moment in recorder.moments(times, seed):
            logged, answered = moment.told.calls, _answered(moment.told, posted)
            stored = start_again(moment, losses, tables)
            missing = len(logged_but_missing(stored, logged))
            missing += len(answered - set(stored.numbers))
            losses.count(len(logged) + len(answered), missing, moment)
    return losses


def lose_power_at_the_first_start(times: int, *, seed: int = 1) -> Losses:
    """While the database is made."""
    return lose_power_under_load(times, calls=1, seed=seed)


def lose_power_behind_a_kill(times: int, *, seed: int = 1) -> Losses:
    """When a run has told what an earlier one had written and, killed, had not synced."""
    losses = Losses()
    with recording(lambda directory: _store(directory, HQ, ("127.0.0.1",))) as recorder:
        config = recorder.directory / "config.toml"
        captured = recorder.directory.parent / "captured"
        captured.write_bytes(b"".join(map(call, range(STORED, 2 * STORED))))
        import_calls = ("import", "calls", "-c", config, "--pbx", "hq", captured)
        recorder.run(*import_calls, kill="fdatasync:when=2")  # the first one is the start's
        assert recorder.is_unsynced("cdr.sqlite3-wal"), "the kill came behind the rows' sync"
        with recorder.daemon() as daemon:
            daemon.wait_for_calls(STORED)
            daemon.kill()
        for moment in recorder.moments(times, seed):
            told = moment.told.calls
            stored = start_again(moment, losses, logged_before=STORED)
            losses.count(len(told), len(logged_but_missing(stored, told)), moment)
    return losses


def lose_power_while_spooling(times: int, *, seed: int = 1) -> Losses:
    """While the spool takes what a damaged database cannot, and a killed run has begun it."""
    losses = Losses()
    posted: dict[str, list[int]] = {}
    with recording(_begin_to_spool, unsynced=("cdr.sqlite3.spool",)) as recorder:
        for first in (SPOOLED, SPOOLED + 100):
            with recorder.daemon(TABLES) as daemon:
                daemon.wait_for("database_damaged")
                _post(http_port(daemon), range(first, first + 100), posted)
                assert daemon.stop()[0] == 0
        for moment in recorder.moments(times, seed):
            answered = _answered(moment.told, posted)
            stored = start_again(moment, losses, mend=_remove_database)
            losses.count(len(answered), len(answered - set(stored.numbers)), moment)
    return losses


def lose_power_while_draining(times: int, *, durability: str = "", seed: int = 1) -> Losses:
    """While what the spool holds durably becomes rows: it is there or here."""
    losses = Losses()
    spooled = set(range(SPOOLED))
    tables = durability + HQ
    with recording(lambda directory: _spool(directory, SPOOLED)) as recorder:
        with recorder.daemon(tables) as daemon:
            daemon.wait_for("spool_drained", stored=SPOOLED)
            daemon.kill()
        for moment in recorder.moments(times, seed):
            stored = start_again(moment, losses, tables)
            losses.count(SPOOLED, len(spooled - set(stored.numbers)), moment)
    return losses


def lose_power_draining_with_normal(times: int) -> Losses:
    """While rows are not durable at once: what the spool has held was, and stays so."""
    return lose_power_while_draining(times, durability=NORMAL)


def lose_power_in_a_purge(times: int, *, seed: int = 1) -> Losses:
    """While the calls of one PBX are deleted, and another one's come."""
    losses = Losses()
    tables = HQ + '[[pbx]]\nname = "old"\npeers = ["127.0.0.2"]\n'
    with recording(lambda directory: _store(directory, tables, ("127.0.0.1", OLD))) as recorder:
        with recorder.daemon(tables) as daemon, SendingPbx(daemon.port, 2 * STORED, rate=200) as hq:
            done = cdrd("purge", "-c", daemon.config, "--before", "2020-01-01", "--pbx", "old")
            assert done.returncode == 0, done.stderr
            daemon.wait_for_call(hq.last_call_id)
            hq.stop()
            assert daemon.stop()[0] == 0
        assert len(read(daemon.database).numbers) < 2 * STORED + len(hq.sent)
        for moment in recorder.moments(times, seed):
            told = moment.told.calls
            stored = start_again(moment, losses, tables, logged_before=2 * STORED)
            missing = len(set(range(STORED)) - set(stored.numbers))
            missing += len(logged_but_missing(stored, told))
            losses.count(STORED + len(told), missing, moment)
    return losses


def lose_power_while_files_are_made(times: int, *, seed: int = 1) -> list[str]:
    """Each command makes a file and replaces one; return those that were not whole or as before.

    Once all is done, as before is too late.
    """
    with recording(lambda directory: _store(directory, HQ, ("127.0.0.1",))) as recorder:
        directory = recorder.directory
        allowed: dict[str, tuple[bytes | None, bytes]] = {}
        for place, command in enumerate(FILES):
            new, replaced = f"new-{place}.csv", f"replaced-{place}.csv"
            source = ("--db", directory / "cdr.sqlite3")
            recorder.run(*command, directory / new, *source)
            recorder.run(*command, directory / replaced, *source, "--force")
            allowed[new] = None, (directory / new).read_bytes()
            allowed[replaced] = REPLACED, (directory / replaced).read_bytes()
        return [
            f"{name} at {place:.2f}"
            for files, _, place in recorder.moments(times, seed)
            for name, (before, whole) in allowed.items()
            if files.get(name) not in ((whole,) if place == 1 else (before, whole))
        ]


def _no_preparation(_: Path) -> None:
    """Begin with nothing."""


@contextmanager
def recording(
    prepare: Callable[[Path], None] = _no_preparation, unsynced: Collection[str] = ()
) -> Iterator[Recorder]:
    with tempfile.TemporaryDirectory(prefix="cdrd-power-") as workspace:
        directory = Path(workspace, "disk")
        directory.mkdir()
        prepare(directory)
        yield Recorder(Path(workspace), unsynced)


def _begin_to_spool(directory: Path) -> None:
    _spool(directory, 5)
    (directory / "cdr.sqlite3").write_bytes(b"\xff" * 100_000)


def _spool(directory: Path, number: int) -> None:
    batch = Batch()
    batch.add(*map(record, range(number)))
    Spool(directory / "cdr.sqlite3").append(batch)


def _store(directory: Path, tables: str, sources: Sequence[str]) -> None:
    """Have a database with calls of each PBX, and a file that is to be replaced."""
    with RunningDaemon(directory, tables) as daemon:
        for place, source in enumerate(sources):
            numbers = range(place * STORED, (place + 1) * STORED)
            send(daemon.port, *map(call, numbers), source=source)
        daemon.wait_for_calls(STORED * len(sources))
        assert daemon.stop()[0] == 0
    for place, _ in enumerate(FILES):
        (directory / f"replaced-{place}.csv").write_bytes(REPLACED)


def _post(port: int, numbers: range, posted: dict[str, list[int]]) -> None:
    """Post calls over a few connections at once, and note which of them went over which."""

    def post_each(part: range) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
        with closing(connection):
            connection.connect()
            ours = posted.setdefault(str(connection.sock.getsockname()[1]), [])
            for number in part:
                ours.append(number)
                connection.request("POST", "/", call(number))
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200

    with ThreadPoolExecutor(POSTERS) as posters:
        for done in [posters.submit(post_each, numbers[each::POSTERS]) for each in range(POSTERS)]:
            done.result()


def _answered(told: Told, posted: dict[str, list[int]]) -> set[int]:
    """Return the calls that a 200 had said to be durable."""
    return {number for port, count in told.answered.items() for number in posted[port][:count]}


def _remove_database(directory: Path) -> None:
    """Do what the advice says about a damaged database that no backup was made of."""
    database = directory / "cdr.sqlite3"
    drop_wal(database)
    database.unlink(missing_ok=True)


def start_again(
    moment: Moment,
    losses: Losses,
    tables: str = HQ,
    *,
    mend: Callable[[Path], None] = _no_preparation,
    logged_before: int = 0,
) -> Stored:
    """Start and end the daemon on what the disk holds, and look at all but what was told before.

    ``logged_before``: the last row that was logged before the recording.
    """
    with tempfile.TemporaryDirectory(prefix="cdrd-again-") as workspace:
        directory = Path(workspace)
        write_files(directory, moment.files)
        mend(directory)
        spooled = Spool(directory / "cdr.sqlite3").size
        with RunningDaemon(directory, tables) as daemon:
            daemon.wait_for("ready")
            if spooled:
                daemon.wait_for("spool_drained")
            assert daemon.stop()[0] == 0
        stored = read(daemon.database)
        logged = [*moment.told.calls, *daemon.found("call_released")]
        untold = stored.by_seq.keys() - {line["seq"] for line in logged}
        losses.doubled += len(stored.numbers) - len(set(stored.numbers))
        losses.unsound += not stored.sound or bool(daemon.found("database_damaged"))
        losses.not_logged += len([seq for seq in untold if seq > logged_before])
        return stored


_SHARES: dict[Callable[[int], Losses], int] = {
    lose_power_under_load: 50,
    lose_power_at_the_first_start: 10,
    lose_power_behind_a_kill: 5,
    lose_power_while_spooling: 10,
    lose_power_while_draining: 10,
    lose_power_draining_with_normal: 5,
    lose_power_in_a_purge: 10,
}
"""Of a hundred losses."""
