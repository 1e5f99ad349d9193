"""The example configuration is the documentation; a wrong one is told whole, key by key."""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from cdrd.config import (
    Config,
    Events,
    find_config,
    load_config,
    parse_config,
    read_secret,
    secret_path,
)
from cdrd.exits import ConfigError
from cdrd.target import OF_A_DATABASE

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
COMMENTED = re.compile(r"^# (\w+ = .*|\[+[\w.]+\]+)$", re.MULTILINE)
NOBODY = 65534

PBX = '[[pbx]]\nname = "hq"\n'
HISTORY = PBX + "[pbx.history]\nusername = 'api'\npassword_file = 'p'\n"
EVENTS = PBX + '[pbx.events]\nkind = "tcp"\naddress = "pbx:8333"\nusername = "api"\n'


def uncommented() -> str:
    return COMMENTED.sub(r"\1", EXAMPLE.read_text(encoding="utf-8"))


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.toml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("c.toml: ") for line in lines)
    return [line.removeprefix("c.toml: ") for line in lines]


def only_fault(text: str) -> str:
    (fault,) = faults(text)
    return fault


def keys(table: type[BaseModel], path: str = "") -> set[str]:
    """Every key of a model by its dotted path, in the tables of its tables too."""
    found: set[str] = set()
    for name, field in table.model_fields.items():
        annotation: Any = field.annotation
        inner = [
            part
            for part in (annotation, *get_args(annotation))
            if isinstance(part, type) and issubclass(part, BaseModel)
        ]
        found |= keys(inner[0], f"{path}{name}.") if inner else {path + name}
    return found


def given_keys(tables: dict[str, Any], path: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in tables.items():
        tables_here = value if isinstance(value, list) else [value]
        if tables_here and all(isinstance(table, dict) for table in tables_here):
            for table in tables_here:
                found |= given_keys(table, f"{path}{name}.")
        else:
            found.add(path + name)
    return found


# The example.


def test_the_example_equals_the_defaults() -> None:
    assert load_config(EXAMPLE) == Config() == parse_config("", "empty.toml")


def test_the_example_sets_each_default_with_its_own_key() -> None:
    given = given_keys(tomllib.loads(EXAMPLE.read_text(encoding="utf-8")))
    assert given == {key for key in keys(Config) if not key.startswith(("pbx.", "portal."))}


def test_the_example_has_every_key_and_no_other() -> None:
    assert given_keys(tomllib.loads(uncommented())) == keys(Config)


def test_the_example_names_each_file_beside_the_database() -> None:
    text = EXAMPLE.read_text()
    never_there = "-journal"  # in WAL mode
    assert [ending for ending in OF_A_DATABASE if ending not in text] == [never_there]


def test_the_uncommented_example_is_valid() -> None:
    config = parse_config(uncommented(), "uncommented")
    assert [pbx.name for pbx in config.pbx] == ["hq"]
    assert config.pbx[0].events is not None
    assert config.pbx[0].events.address == "192.0.2.10:8333"
    assert [portal.name for portal in config.portal] == ["video"]


def test_a_file_of_only_comments_is_the_defaults() -> None:
    assert parse_config("# nothing\n", "c.toml") == Config()


def test_a_sender_has_the_networks_and_the_zone_of_its_table() -> None:
    text = PBX + 'timezone = "Europe/Berlin"\npeers = ["192.0.2.7/24", "2001:db8::1"]\nserial = "9"'
    sender = parse_config(text, "c.toml").pbx[0].sender()
    assert (sender.name, str(sender.zone), sender.serial) == ("hq", "Europe/Berlin", "9")
    assert sender.may_be_at("192.0.2.200")
    assert sender.may_be_at("::ffff:192.0.2.200")
    assert not sender.may_be_at("2001:db8::2")


# What is wrong with a configuration.


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[databse]", "databse: unknown key (did you mean 'database'?)"),
        ("[tcp]\nlistn = []", "tcp.listn: unknown key (did you mean 'listen'?)"),
        (PBX + "timezon = 'UTC'", "pbx.0.timezon: unknown key (did you mean 'timezone'?)"),
        (PBX + "qqqq = 1", "pbx.0.qqqq: unknown key"),
        ("qqqq = 1", "qqqq: unknown key"),
    ],
)
def test_an_unknown_key_is_told_with_the_likely_meant_one(text: str, fault: str) -> None:
    assert only_fault(text) == fault


def test_a_password_in_the_file_is_refused_without_being_quoted() -> None:
    text = EVENTS + 'password_file = "p"\npassword = "hunter2"'
    assert only_fault(text) == "pbx.0.events.password: unknown key (did you mean 'password_file'?)"


def test_all_faults_are_told_at_once() -> None:
    text = """
        [database]
        durability = "best"
        [batch]
        max_records = 0
        max_delay = "soon"
        [tcp]
        listen = ["127.0.0.1"]
        idle_timout = 1
        [log]
        level = "loud"
        [[pbx]]
        name = "a"
        peers = ["192.0.2.0/33"]
        timezone = "Mars/Olympus"
        [[portal]]
        name = "v"
    """
    assert [fault.partition(":")[0] for fault in faults(text)] == [
        "database.durability",
        "batch.max_records",
        "batch.max_delay",
        "tcp.listen.0",
        "tcp.idle_timout",
        "log.level",
        "pbx.0.timezone",
        "pbx.0.peers.0",
        "portal.0.address",
        "portal.0.username",
        "portal.0.password_file",
    ]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("database = 5", "database"),
        ("[database]\npath = 5", "database.path"),
        ("[database]\nmax_age_days = '7'", "database.max_age_days"),
        ("[database]\nmax_age_days = true", "database.max_age_days"),
        ("[batch]\nmax_records = 1.5", "batch.max_records"),
        ("[batch]\nmax_delay = '1'", "batch.max_delay"),
        ("[batch]\nmax_delay = true", "batch.max_delay"),
        ("[tcp]\nlisten = '127.0.0.1:8261'", "tcp.listen"),
        ("[tcp]\nidle_timeout = '3'", "tcp.idle_timeout"),
        ("[log]\nformat = 1", "log.format"),
        ("[pbx]\nname = 'hq'", "pbx"),
        ("pbx = ['hq']", "pbx.0"),
        (PBX + "serial = 12", "pbx.0.serial"),
        (EVENTS + "password_file = 'p'\ntls = 'no'", "pbx.0.events.tls"),
    ],
)
def test_a_wrong_type_is_told_by_its_path(text: str, path: str) -> None:
    assert only_fault(text).startswith(f"{path}: input should be ")


def test_a_table_that_is_no_table_is_told_in_words_of_toml() -> None:
    assert only_fault("database = 5") == "database: input should be a table, not 5"


@pytest.mark.parametrize(
    "setting",
    [
        "database.max_age_days = -1",
        "batch.max_records = 0",
        "batch.max_records = 100001",
        "batch.max_delay = -0.1",
        "batch.max_delay = 60.5",
        "batch.max_delay = nan",
        "batch.max_delay = inf",
        "tcp.max_report_bytes = 1023",
        "tcp.max_report_bytes = 16777217",
        "tcp.idle_timeout = -1",
        "tcp.idle_timeout = nan",
        "tcp.idle_timeout = inf",
    ],
)
def test_a_value_out_of_range_is_told_with_the_value(setting: str) -> None:
    path, value = setting.split(" = ")
    fault = only_fault(setting)
    assert fault.startswith(f"{path}: input should be ")
    assert fault.endswith(f", not {value}")


def test_the_ends_of_a_range_belong_to_it() -> None:
    text = "batch = {max_records = 100000, max_delay = 60}\ntcp.max_report_bytes = 1024"
    config = parse_config(text, "c.toml")
    assert (config.batch.max_records, config.batch.max_delay) == (100_000, 60.0)


@pytest.mark.parametrize("address", ["127.0.0.1", ":8261", "::1:8261", "a b:1", "h:65536", "h:-1"])
def test_a_bad_address_is_quoted(address: str) -> None:
    fault = only_fault(f'tcp.listen = ["127.0.0.1:1", "{address}"]')
    assert fault.startswith("tcp.listen.1: ")
    assert address in fault
    assert "write HOST:PORT" in fault


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[database]\npath = {}", "database.path"),
        ("[tls]\ncertificate = {0}\nkey = {0}", "tls.certificate"),
        (PBX + "serial = {}", "pbx.0.serial"),
        (EVENTS + "password_file = {}", "pbx.0.events.password_file"),
    ],
)
def test_a_nul_character_is_refused_wherever_it_stands(text: str, path: str) -> None:
    first, *_ = faults(text.format(r'"a\u0000b"'))
    assert first == f"{path}: a NUL character: take it out, not 'a\\x00b'"


@pytest.mark.parametrize("path", ["", "/", "/var/lib/cdrd/" + "a" * 78])
def test_a_database_that_no_daemon_can_serve_is_refused(path: str) -> None:
    assert only_fault(f'database.path = "{path}"').startswith("database.path: ")
    longest = "/var/lib/cdrd/" + "a" * 77
    assert parse_config(f'database.path = "{longest}"', "c.toml").database.path == longest


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('tcp.listen = ["127.0.0.1:1", "127.0.0.1:1"]', "tcp.listen"),
        ('http.listen = ["127.0.0.1:8261"]', "http.listen"),
        ('metrics.listen = "127.0.0.1:8261"', "metrics.listen"),
    ],
)
def test_an_address_that_is_listened_at_twice_is_told(text: str, path: str) -> None:
    assert only_fault(text).startswith(f"{path}: 127.0.0.1:")


def test_any_free_port_may_be_asked_for_twice() -> None:
    assert parse_config('tcp.listen = ["127.0.0.1:0", "127.0.0.1:0"]', "c.toml").tcp.listen


@pytest.mark.parametrize(
    "network", ["pbx.example.com", "192.0.2.0/33", "192.0.2", "", "::ffff:192.0.2.10"]
)
def test_a_network_that_no_peer_can_match_is_refused(network: str) -> None:
    assert only_fault(PBX + f'peers = ["{network}"]').startswith("pbx.0.peers.0: ")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "Europe", "", "../UTC", "/etc/passwd", "CEST7"])
def test_a_bad_time_zone_is_quoted_once(zone: str) -> None:
    fault = only_fault(PBX + f'timezone = "{zone}"')
    assert fault == f"pbx.0.timezone: no time zone {zone!r}: give one such as Europe/Berlin"


@pytest.mark.parametrize("name", ["", "  ", "a\\nb", "a\\u001b[2J"])
def test_a_name_that_cannot_be_printed_is_refused(name: str) -> None:
    assert only_fault(f'[[pbx]]\nname = "{name}"').startswith("pbx.0.name: ")


def test_every_doubled_name_is_told() -> None:
    tables = 'portal = [{name = "v", address = "h:1", username = "u", password_file = "p"}, \
        {name = "v", address = "h:1", username = "u", password_file = "p"}]\n'
    text = tables + PBX + PBX + '[[pbx]]\nname = "b"\n[[pbx]]\nname = "b"\n'
    fault = only_fault(text)
    for told in ("pbx: the name 'b'", "pbx: the name 'hq'", "portal: the name 'v'"):
        assert told in fault


def test_a_pbx_and_a_portal_may_share_a_name() -> None:
    text = 'portal = [{name = "hq", address = "h:1", username = "u", password_file = "p"}]\n' + PBX
    assert parse_config(text, "c.toml").portal[0].name == "hq"


@pytest.mark.parametrize("missing", ["address", "username", "password_file"])
def test_events_over_tcp_need_where_and_who(missing: str) -> None:
    parts = {"address": "pbx:8333", "username": "api", "password_file": "p"}
    del parts[missing]
    text = "".join(f'{key} = "{value}"\n' for key, value in parts.items())
    fault = only_fault(PBX + f'[pbx.events]\nkind = "tcp"\n{text}')
    assert fault == f"pbx.0.events: kind 'tcp' needs {missing}"


def test_all_missing_parts_of_events_are_told() -> None:
    fault = only_fault(PBX + '[pbx.events]\nkind = "tcp"')
    assert fault == "pbx.0.events: kind 'tcp' needs address, username, password_file"


def test_events_need_a_kind() -> None:
    fault = only_fault(PBX + "[pbx.events]")
    assert fault == "pbx.0.events.kind: is missing; give it a value"


def test_a_user_name_cannot_smuggle_in_a_second_header_line() -> None:
    text = EVENTS.replace('"api"', '"api\\r\\nAction: reboot"') + 'password_file = "p"'
    assert only_fault(text) == "pbx.0.events: username has a line break in it"


def test_a_webhook_needs_a_secret_and_no_address() -> None:
    assert Events(kind="webhook", secret_file="key").address == ""
    fault = only_fault(PBX + '[pbx.events]\nkind = "webhook"')
    assert fault == "pbx.0.events: kind 'webhook' needs secret_file"


@pytest.mark.parametrize("digest", ["ab:" * 31 + "AB", "ab" * 32])
def test_a_fingerprint_is_read_as_openssl_prints_it(digest: str) -> None:
    events = Events(kind="webhook", secret_file="key", fingerprint=digest)
    assert events.fingerprint == "ab" * 32


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            PBX + '[pbx.events]\nkind = "webhook"\nsecret_file = "key"\nfingerprint = "ab:cd"',
            (
                "pbx.0.events.fingerprint: no SHA-256 of a certificate: give 64 hexadecimal digits,"
                " as openssl x509 -noout -fingerprint -sha256 prints them, not 'ab:cd'"
            ),
        ),
        (
            PBX + '[pbx.events]\nkind = "webhook"\nsecret_file = "key"\npath = "hq"',
            (
                "pbx.0.events.path: a path begins with a slash and has no blank:"
                " give one such as /hq, not 'hq'"
            ),
        ),
        (
            PBX + '[pbx.history]\nurl = "192.0.2.10"\nusername = "api"\npassword_file = "p"',
            (
                "pbx.0.history.url: no web address: give one such as https://192.0.2.10:8088,"
                " not '192.0.2.10'"
            ),
        ),
    ],
)
def test_what_is_no_address_or_fingerprint_is_told_with_an_example(text: str, fault: str) -> None:
    assert only_fault(text) == fault


@pytest.mark.parametrize(
    "url",
    [
        "https://192.0.2.10:808O",
        "https://192.0.2.10:99999",
        "https://:8088",
        "https://[::1:8088",
        "https://a host",
        "https://192.0.2.10/?a=b",
        "https://192.0.2.10/#a",
        "ftp://192.0.2.10",
    ],
)
def test_a_slip_in_a_web_address_is_quoted(url: str) -> None:
    fault = only_fault(f"{HISTORY}url = {url!r}")
    assert fault.startswith("pbx.0.history.url: no web address: ")
    assert fault.endswith(f", not {url!r}")


@pytest.mark.parametrize(
    "url", ["https://192.0.2.10", "http://pbx.example.com:8088/api/v1.1.0", "https://[::1]:8088"]
)
def test_a_web_address_may_have_a_port_and_a_path(url: str) -> None:
    history = parse_config(f"{HISTORY}url = '{url}/'", "c.toml").pbx[0].history
    assert history is not None
    assert history.url == url


REGISTERED = """
[[pbx]]
name = "hq"
peers = ["192.0.2.10"]
[pbx.events]
kind = "http"
address = "192.0.2.10:8088"
username = "api"
password_file = "p"
"""


def test_a_pbx_that_is_told_to_post_needs_an_ear_and_an_address_of_its_own() -> None:
    assert only_fault(REGISTERED) == (
        "http.listen: kind 'http' of [pbx.events] needs an address here"
    )
    listening = 'http.listen = ["0.0.0.0:8260"]\n' + REGISTERED
    assert parse_config(listening, "c.toml").pbx[0].events
    assert only_fault(listening.replace('peers = ["192.0.2.10"]\n', "")) == (
        "pbx: kind 'http' of [pbx.events] needs peers, the addresses that the PBX posts from:"
        " hq has none"
    )


def test_reports_are_received_over_http() -> None:
    config = parse_config('http.listen = ["0.0.0.0:8260"]', "c.toml")
    assert config.http.listen == ["0.0.0.0:8260"]


def test_what_is_not_toml_is_told_with_its_place() -> None:
    fault = only_fault("[tcp]\nlisten = 127.0.0.1:8261\n")
    assert fault.startswith("not valid TOML: ")
    assert "line 2" in fault


@pytest.mark.parametrize(
    ("value", "fault"),
    [("[" * 5000, "nested deeper"), ("{a=" * 5000, "nested deeper"), ("1" * 5000, "digits")],
)
def test_what_is_too_much_for_the_parser_is_told(value: str, fault: str) -> None:
    assert fault in only_fault(f"tcp.idle_timeout = {value}")


def test_a_key_given_twice_is_not_toml() -> None:
    assert only_fault("[tcp]\nlisten = []\nlisten = []").startswith("not valid TOML: ")


def test_a_byte_order_mark_before_the_text_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(PBX, encoding="utf-8-sig")
    assert load_config(path).pbx[0].name == "hq"


# Where the file is.


@pytest.mark.parametrize("content", [None, b"\xff\xfe", "directory"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "config.toml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_argument_is_found_before_the_environment_and_that_before_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").touch()
    environment = {"CDRD_CONFIG": "/env.toml"}
    assert find_config("/arg.toml", environment) == Path("/arg.toml")
    assert find_config(None, environment) == Path("/env.toml")
    assert find_config(None, {"CDRD_CONFIG": ""}) == Path("config.toml")


@pytest.mark.skipif(Path("/etc/cdrd/config.toml").exists(), reason="cdrd is installed here")
def test_where_no_configuration_is_found_all_places_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_config(None, {})
    for place in ("config.toml", "/etc/cdrd/config.toml", "-c FILE", "$CDRD_CONFIG"):
        assert place in str(caught.value)


def test_a_default_in_a_directory_closed_to_us_is_told_without_a_traceback() -> None:
    with tempfile.TemporaryDirectory() as directory:
        place, closed = Path(directory), Path(directory, "closed")
        place.chmod(0o755)
        closed.mkdir(mode=0o700)
        (closed / "config.toml").touch()
        (place / "config.toml").symlink_to(closed / "config.toml")
        program = (
            "import os, sys, cdrd.config as config\n"
            f"os.chdir({directory!r}), os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})\n"
            "try: config.load_config(config.find_config(None, {}))\n"
            "except config.ConfigError as error: sys.exit(str(error))\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
    assert ended.stderr.startswith("config.toml: cannot be read: ")
    assert "Permission denied" in ended.stderr


# Secrets.


def test_a_secret_is_read_from_an_absolute_path(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret", encoding="utf-8")
    assert read_secret(str(secret), Path("/elsewhere/config.toml"), {}) == "s3cret"


def test_a_relative_secret_stands_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "hq.password").write_text("beside", encoding="utf-8")
    assert read_secret("hq.password", tmp_path / "config.toml", {}) == "beside"


def test_a_systemd_credential_comes_before_a_file_beside_the_configuration(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (tmp_path / "hq.password").write_text("beside", encoding="utf-8")
    environment = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert read_secret("hq.password", tmp_path / "config.toml", environment) == "beside"
    (credentials / "hq.password").write_text("credential", encoding="utf-8")
    assert read_secret("hq.password", tmp_path / "config.toml", environment) == "credential"


def test_a_name_too_long_for_a_file_is_told_when_it_is_read(tmp_path: Path) -> None:
    name = "a" * 300
    for directory in ("", str(tmp_path)):
        environment = {"CREDENTIALS_DIRECTORY": directory}
        assert secret_path(name, tmp_path / "config.toml", environment) == tmp_path / name


def test_an_absolute_secret_is_no_credential(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("absolute", encoding="utf-8")
    environment = {"CREDENTIALS_DIRECTORY": "/nowhere"}
    assert read_secret(str(tmp_path / "secret"), tmp_path / "c.toml", environment) == "absolute"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_line_break_at_the_end_of_a_secret_is_no_part_of_it(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "secret").write_bytes(" p\u00e4ss ".encode() + end)
    assert read_secret("secret", tmp_path / "config.toml", {}) == " p\u00e4ss "


@pytest.mark.parametrize("text", [b"one\ntwo", b"one\r\ntwo\r\n", b"one\rtwo"])
def test_a_line_break_within_a_secret_is_refused_without_quoting_it(
    tmp_path: Path, text: bytes
) -> None:
    (tmp_path / "secret").write_bytes(text)
    with pytest.raises(ValueError, match="a secret is one line") as caught:
        read_secret("secret", tmp_path / "config.toml", {})
    assert "two" not in str(caught.value)


def test_a_secret_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_secret("secret", tmp_path / "config.toml", {})
