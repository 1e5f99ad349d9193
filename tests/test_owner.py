"""What root opens belongs to whom the database belongs, and nothing else does."""

import os
from pathlib import Path

import pytest

from cdrd.owner import open_owned


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


def test_a_link_is_not_followed_to_a_file_of_another(tmp_path: Path) -> None:
    (tmp_path / "another").touch()
    (tmp_path / "beside").symlink_to("another")
    with pytest.raises(OSError, match="symbolic link"):
        open_owned(tmp_path / "beside", 0o640, tmp_path / "cdr.sqlite3")
