"""What is printed goes where it was to go, or nowhere, or its loss is told."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import DEADLINE_SECONDS, HQ, RunningDaemon
from tests.test_commands import BAD, calls, filled

CLOSED = ("<&-", ">&-", "2>&-", "<&- >&- 2>&-")


def shell(redirection: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command with its streams as a shell redirects them."""
    return subprocess.run(
        [
            "/bin/sh",
            "-c",
            f'exec "$@" {redirection}',
            "sh",
            sys.executable,
            "-m",
            "cdrd",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a call and something in quarantine, of a PBX that ASCII cannot spell."""
    path = tmp_path_factory.mktemp("filled")
    filled(path, calls(1) + BAD, tables=HQ.replace("hq", "Łódź"))
    return path


PRINTING = (
    ("report",),
    ("check",),
    ("quarantine", "list"),
    ("quarantine", "show", "1"),
)


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
@pytest.mark.parametrize("redirection", CLOSED)
def test_a_stream_that_is_closed_is_dev_null(
    directory: Path, redirection: str, arguments: tuple[str, ...]
) -> None:
    ended = shell(redirection, *arguments, "-c", directory / "config.toml")
    assert (ended.returncode, ended.stderr) == (0, "")


ASCII = {
    "PYTHONIOENCODING": {"PYTHONIOENCODING": "ascii"},
    "LC_ALL": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.fixture(params=ASCII)
def _ascii(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is started print ASCII alone."""
    for name, value in ASCII[request.param].items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_ascii")
@pytest.mark.parametrize("arguments", PRINTING[1:], ids=" ".join)
def test_what_the_locale_cannot_spell_is_escaped(
    directory: Path, arguments: tuple[str, ...]
) -> None:
    ended = shell("", *arguments, "-c", directory / "config.toml")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert r"\u0141\xf3d\u017a" in ended.stdout


@pytest.mark.usefixtures("_ascii")
@pytest.mark.parametrize(
    "arguments", [("export", "calls"), ("report", "--by", "pbx", "--format", "json")], ids=" ".join
)
def test_data_is_utf8_whatever_the_locale(directory: Path, arguments: tuple[str, ...]) -> None:
    ended = shell("", *arguments, "-c", directory / "config.toml")
    assert ended.returncode == 0, ended.stderr
    assert "Łódź" in ended.stdout


@pytest.mark.parametrize("redirection", CLOSED)
def test_a_file_is_written_whatever_is_closed(
    directory: Path, tmp_path: Path, redirection: str
) -> None:
    file = tmp_path / "calls.csv"
    database = directory / "cdr.sqlite3"
    ended = shell(redirection, "export", "calls", "--db", database, "-o", file)
    assert ended.returncode == 0, ended.stderr
    assert len(file.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    "arguments", [*PRINTING, ("follow",), ("export", "calls"), ("--version",)], ids=" ".join
)
def test_output_that_cannot_be_written_is_one_sentence(
    directory: Path, arguments: tuple[str, ...]
) -> None:
    config = () if arguments == ("--version",) else ("-c", directory / "config.toml")
    ended = shell(">/dev/full", *arguments, *config)
    name = " ".join(word for word in ("cdrd", arguments[0]) if not word.startswith("-"))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0] == f"{name}: stdout: No space left on device"
    assert "Traceback" not in ended.stderr


def test_remarks_that_cannot_be_written_end_it_with_1(directory: Path) -> None:
    ended = shell("2>/dev/full", "quarantine", "show", "7", "-c", directory / "config.toml")
    assert ended.returncode == 1


def test_the_log_of_a_daemon_without_stdout_goes_nowhere(tmp_path: Path) -> None:
    closing = ("/bin/sh", "-c", 'exec "$@" <&- >&-', "sh")
    tables = f'{HQ}[log]\nformat = "json"\n'
    notified = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(notified)
        manager.settimeout(DEADLINE_SECONDS)
        environment = {"NOTIFY_SOCKET": notified}
        with RunningDaemon(tmp_path, tables, inside=closing, environment=environment) as daemon:
            while b"READY=1" not in manager.recv(4096):
                pass
            opened = Path("/proc", str(daemon.process.pid), "fd")
            assert {Path(opened, name).readlink() for name in "01"} == {Path("/dev/null")}
            daemon.process.terminate()
            assert daemon.process.wait(DEADLINE_SECONDS) == 0
