"""What root opens belongs to whom the database belongs, and nothing else does."""

import os
from pathlib import Path

import pytest

from cdrd.owner import open_owned
from cdrd.spool import Spool
from tests.example import call, holding


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("owner", ["cdr.sqlite3", "."])
def test_the_database_tells_the_owner_and_before_it_is_there_its_directory(
    tmp_path: Path, owner: str
) -> None:
    database = tmp_path / "cdr.sqlite3"
    (tmp_path / owner).touch()
    os.chown(tmp_path / owner, 65534, 65533)
    os.close(open_owned(tmp_path / "beside", 0o640, database))
    status = (tmp_path / "beside").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (65534, 65533, 0o640)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_root_spools_is_the_owners_of_the_database(tmp_path: Path) -> None:
    database = tmp_path / "cdr.sqlite3"
    database.touch()
    os.chown(database, 65534, 65533)
    spool = Spool(database)
    for number in (1, 2):
        spool.append(holding([call(number)]))
    assert spool.read(0).batch.records == [call(1), call(2)]
    assert (spool.path.stat().st_uid, spool.path.stat().st_gid) == (65534, 65533)


def test_a_link_is_not_followed_to_a_file_of_another(tmp_path: Path) -> None:
    (tmp_path / "another").touch()
    (tmp_path / "beside").symlink_to("another")
    with pytest.raises(OSError, match="symbolic link"):
        open_owned(tmp_path / "beside", 0o640, tmp_path / "cdr.sqlite3")
