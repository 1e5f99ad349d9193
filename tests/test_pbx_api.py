"""Logins to one PBX go one at a time, and refusals are counted together, whoever meets them."""

from pathlib import Path

import pytest

from cdrd.config import Events, History
from cdrd.login import BackOff
from cdrd.pbx_api import (
    LoginRefused,
    NotOffered,
    Trust,
    Unreachable,
    account_of,
    base_of,
    family_of,
    keep_holding,
    trust_of,
)


@pytest.mark.asyncio
async def test_what_cannot_be_held_is_tried_again_and_told() -> None:
    told: list[tuple[str, str]] = []

    class Log:
        def error(self, event: str, **fields: str) -> None:
            told.append((event, fields["advice"]))

        def bind(self, **_: str) -> "Log":
            return self

        def warning(self, event: str, **fields: str) -> None:
            told.append((event, fields["error"]))

    failures = [LoginRefused("no"), Unreachable("away"), NotOffered("what?"), OSError("file")]

    async def hold_one() -> None:
        if not failures:
            raise RuntimeError("a fault of ours")
        raise failures.pop(0)

    with pytest.raises(RuntimeError):
        await keep_holding(hold_one, BackOff(0.001, 0.001), Log(), pbx="hq", address="h")  # type: ignore[arg-type] # what is used of one
    assert told == [
        ("login_refused", "no"),
        ("pbx_unreachable", "away"),
        ("pbx_unreachable", "what?"),
        ("pbx_unreachable", "file"),
    ]


@pytest.mark.parametrize(
    ("kind", "family"),
    [("tcp", "S-Series"), ("http", "S-Series"), ("websocket", "P-Series"), ("webhook", "P-Series")],
)
def test_the_family_is_told_by_the_way_that_a_pbx_delivers(kind: str, family: str) -> None:
    assert family_of(Events.model_construct(kind=kind)) == family
    assert family_of(None) == ""


def test_files_are_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("pass5678\n")
    history = History(url="https://h", username="u", password_file="p", ca_file="ca.pem")
    config = tmp_path / "config.toml"
    assert account_of(history, config).read_password() == "pass5678"
    assert trust_of(history, config) == Trust(str(tmp_path / "ca.pem"), "")
    assert trust_of(history.model_copy(update={"ca_file": ""}), config) == Trust()


@pytest.mark.parametrize(("tls", "base"), [(True, "https://h:8088"), (False, "http://h:8088")])
def test_events_come_over_tls_unless_told(tls: bool, base: str) -> None:
    assert base_of(Events.model_construct(kind="http", address="h:8088", tls=tls)) == base
