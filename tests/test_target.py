"""A file is found whole under its name, or what was there before; and nothing beside it."""

import errno
import os
import re
from pathlib import Path

import pytest

from cdrd.target import OF_A_DATABASE, CannotWrite, check_apart, drafts, is_device


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_files_appear_together_when_all_are_complete(tmp_path: Path) -> None:
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    with drafts(paths, replace=False) as written:
        for draft in written:
            assert names(tmp_path) == [draft.parent.name]
            draft.write_text(draft.name)
    assert names(tmp_path) == ["a.csv", "b.csv"]
    assert [path.read_text() for path in paths] == ["a.csv", "b.csv"]
    mask = os.umask(0)
    os.umask(mask)
    assert paths[0].stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("ended_by", [KeyboardInterrupt, BrokenPipeError, ValueError])
def test_whatever_ends_the_work_leaves_nothing(
    tmp_path: Path, ended_by: type[BaseException]
) -> None:
    def work() -> None:
        with drafts([tmp_path / "a.csv"], replace=False) as [draft]:
            draft.write_text("half")
            raise ended_by

    with pytest.raises(ended_by):
        work()
    assert names(tmp_path) == []


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"

    def work() -> None:
        with drafts([path], replace=False) as [draft]:
            draft.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(CannotWrite, match="exists: --force"):
        work()
    assert (names(tmp_path), path.read_text()) == (["a.csv"], "theirs")


def test_a_file_is_replaced_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a.csv", tmp_path / "a.csv"
    target.write_text("old")
    link.symlink_to(target)
    with pytest.raises(CannotWrite), drafts([link], replace=False):
        pass
    with drafts([link], replace=True) as [draft]:
        draft.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_what_goes_wrong_with_a_disk_is_told_of_the_file(tmp_path: Path) -> None:
    def work() -> None:
        with drafts([tmp_path / "a.csv"], replace=False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CannotWrite, match="No space left on device"):
        work()
    with pytest.raises(CannotWrite, match="No such file"), drafts([tmp_path / "x/a"], replace=True):
        pass
    with pytest.raises(CannotWrite, match="is a directory"), drafts([tmp_path], replace=True):
        pass
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / ("n" * 300)):
        assert not is_device(path)
        check_apart([path], tmp_path / "cdr.sqlite3")
        with pytest.raises(CannotWrite), drafts([path], replace=False):
            pass


def test_a_device_is_no_file_to_replace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    paths = (Path("/dev/null"), tmp_path / "pipe", tmp_path / "file", tmp_path, tmp_path / "none")
    assert [is_device(path) for path in paths] == [True, True, False, False, False]


@pytest.mark.parametrize("ending", OF_A_DATABASE)
def test_a_databases_own_files_are_never_written_whatever_they_are_called(
    tmp_path: Path, ending: str
) -> None:
    database, own = tmp_path / "cdr.sqlite3", tmp_path / f"cdr.sqlite3{ending}"
    link, hard_link = tmp_path / "link", tmp_path / "hard link"
    link.symlink_to(database)
    with pytest.raises(CannotWrite, match="belongs to"):
        check_apart([tmp_path / "a.csv", own], link)
    own.touch()
    hard_link.hardlink_to(own)
    with pytest.raises(CannotWrite, match="belongs to"):
        check_apart([hard_link], database)
    check_apart([tmp_path / "cdr.sqlite3-2026-11-01", Path("-")], database)


def test_each_file_that_we_put_beside_a_database_is_its_own() -> None:
    package = Path(__file__).parent.parent / "cdrd"
    text = "".join(path.read_text() for path in package.rglob("*.py"))
    put = set(re.findall(r'Path\(f"\{(?:self\._)?database\}([^"{]+)"\)', text))
    assert {".spool", ".logins", ".silent"} <= put <= {*OF_A_DATABASE}
