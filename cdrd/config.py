"""Turns a TOML file into the configuration in force, or into all that is wrong with it at once.

The rule that must stay true: a configuration is accepted whole or not at all; an error names the
key by its dotted path and says what to do, and no secret stands in the file.
"""

import importlib.util
import os
import tomllib
import zoneinfo
from collections import Counter
from collections.abc import Mapping
from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from cdrd.address import format_address, parse_address
from cdrd.door import Door
from cdrd.exits import ConfigError
from cdrd.sender import Sender
from cdrd.sizes import KIB

DEFAULT_PATHS: Final = ("config.toml", "/etc/cdrd/config.toml")
SHA256_DIGITS: Final = 64


DATABASE_NAME_BYTES: Final = 77
"""The longest name of a database: the socket beside it is ``/proc/self/fd/1234567/NAME.control``,
and a Unix address has at most 107 bytes."""

POSTING: Final = ("http", "webhook")
"""The kinds of [pbx.events] whose PBX posts to us."""


def _is_database(text: str) -> str:
    name = os.fsencode(Path(text).name)
    if not name:
        raise ValueError("no file: give one such as /var/lib/cdrd/cdr.sqlite3")
    if len(name) > DATABASE_NAME_BYTES:
        raise ValueError(
            f"a file name of {len(name)} bytes: give one of {DATABASE_NAME_BYTES} at most,"
            " for the socket beside it"
        )
    return text


def _is_address(text: str) -> str:
    parse_address(text)
    return text


def _is_network(text: str) -> str:
    network = ip_network(text, strict=False)
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        # Peers that come as IPv4 within IPv6 are compared as what they are: IPv4.
        raise ValueError("an IPv4 address in its IPv6 form: write the IPv4 address itself")
    return text


def _is_timezone(text: str) -> str:
    try:
        zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"no time zone {text!r}: give one such as Europe/Berlin") from error
    return text


def _is_name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("give a name of printable characters")
    return text


def _is_fingerprint(text: str) -> str:
    digits = text.replace(":", "").lower()
    if len(digits) != SHA256_DIGITS or set(digits) - set("0123456789abcdef"):
        raise ValueError(
            "no SHA-256 of a certificate: give 64 hexadecimal digits, as"
            " openssl x509 -noout -fingerprint -sha256 prints them"
        )
    return digits


def _is_path(text: str) -> str:
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a path begins with a slash and has no blank: give one such as /hq")
    return text


def _is_web_address(text: str) -> str:
    try:
        parts = urlsplit(text)
        parse_address(format_address(parts.hostname or "", parts.port or 0))
        is_one = parts.scheme in ("http", "https") and not (parts.query or parts.fragment)
    except ValueError:
        is_one = False
    if not is_one:
        raise ValueError("no web address: give one such as https://192.0.2.10:8088")
    return text.rstrip("/")


DatabasePath = Annotated[str, AfterValidator(_is_database)]
Address = Annotated[str, AfterValidator(_is_address)]
OptionalAddress = Annotated[str, AfterValidator(lambda text: text and _is_address(text))]
Fingerprint = Annotated[str, AfterValidator(lambda text: text and _is_fingerprint(text))]
UrlPath = Annotated[str, AfterValidator(lambda text: text and _is_path(text))]
WebAddress = Annotated[str, AfterValidator(_is_web_address)]
PeerNetwork = Annotated[str, AfterValidator(_is_network)]
TimeZone = Annotated[str, AfterValidator(_is_timezone)]
Name = Annotated[str, AfterValidator(_is_name)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _has_no_nul(cls, value: object) -> object:
        """Refuse what is no name of a file, nor a text that a peer or SQLite takes whole."""
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a NUL character: take it out")
        return value


class Database(_Table):
    """``[database]``."""

    path: DatabasePath = "/var/lib/cdrd/cdr.sqlite3"
    durability: Literal["full", "normal"] = "full"
    max_age_days: Annotated[int, Field(ge=0, le=36_500)] = 0


class BatchTable(_Table):
    """``[batch]``."""

    max_records: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_delay: Annotated[float, Field(ge=0, le=60)] = 0.0  # seconds


class Tcp(_Table):
    """``[tcp]``."""

    listen: list[Address] = ["127.0.0.1:8261"]
    max_report_bytes: Annotated[int, Field(ge=1 * KIB, le=16 * KIB * KIB)] = 64 * KIB
    idle_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0  # seconds


class Http(_Table):
    """``[http]``."""

    listen: list[Address] = []


class Tls(_Table):
    """``[tls]``."""

    certificate: str = ""
    key: str = ""
    client_ca: str = ""

    @model_validator(mode="after")
    def _is_complete(self) -> "Tls":
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together: give both, or neither")
        if self.client_ca and not self.certificate:
            raise ValueError("client_ca needs certificate and key: TLS is what asks the peers")
        return self


class Log(_Table):
    """``[log]``."""

    format: Literal["json", "console", "auto"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
    numbers: Literal["full", "masked", "hashed"] = "full"


class Metrics(_Table):
    """``[metrics]``."""

    listen: OptionalAddress = ""


class Events(_Table):
    """``[pbx.events]``: how we connect to the PBX."""

    kind: Literal["tcp", "http", "websocket", "webhook"]
    address: OptionalAddress = ""
    username: str = ""
    password_file: str = ""
    secret_file: str = ""
    path: UrlPath = ""
    ca_file: str = ""
    fingerprint: Fingerprint = ""
    tls: bool = True

    @model_validator(mode="after")
    def _is_complete(self) -> "Events":
        of_webhook = self.kind == "webhook"
        needed = ("secret_file",) if of_webhook else ("address", "username", "password_file")
        missing = [key for key in needed if not getattr(self, key)]
        if missing:
            raise ValueError(f"kind {self.kind!r} needs {', '.join(missing)}")
        if "\r" in self.username or "\n" in self.username:
            raise ValueError("username has a line break in it")
        return self


class History(_Table):
    """``[pbx.history]``: where missed calls are fetched."""

    url: WebAddress
    username: str
    password_file: str
    interval: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0  # seconds
    ca_file: str = ""
    fingerprint: Fingerprint = ""


class Pbx(_Table):
    """``[[pbx]]``: a sender of reports."""

    name: Name
    timezone: TimeZone = "UTC"
    peers: list[PeerNetwork] = []
    serial: str = ""
    events: Events | None = None
    history: History | None = None

    @property
    def only_connects(self) -> bool:
        """Whether its reports come only where something listens for its peers."""
        return bool(self.peers) and self.events is None

    @property
    def signs(self) -> bool:
        """Whether it signs its reports, so that it can only POST them."""
        return self.events is not None and bool(self.events.secret_file)

    def sender(self) -> Sender:
        """Return the PBX as a sender of reports."""
        networks = tuple(ip_network(peer, strict=False) for peer in self.peers)
        zone = zoneinfo.ZoneInfo(self.timezone)
        return Sender(self.name, zone, networks, self.serial, self.signs)

    def door(self, config_path: Path) -> Door:
        """Return how the PBX posts. Raises ConfigError where its key cannot be read."""
        if self.events is None or not self.events.secret_file:
            return Door(self.sender(), self.events.path if self.events else "")
        name = f"{self.name}: secret_file {self.events.secret_file!r}"
        try:
            key = read_secret(self.events.secret_file, config_path)
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        if not key:
            raise ConfigError(f"{name} is empty: write the webhook's secret into it")
        return Door(self.sender(), self.events.path, key.encode())


class Portal(_Table):
    """``[[portal]]``: a conferencing portal."""

    name: Name
    timezone: TimeZone = "UTC"
    address: Address
    username: str
    password_file: str
    database: str = "portal2"


class Config(_Table):
    """The whole configuration."""

    database: Database = Database()
    batch: BatchTable = BatchTable()
    tcp: Tcp = Tcp()
    http: Http = Http()
    tls: Tls = Tls()
    log: Log = Log()
    metrics: Metrics = Metrics()
    pbx: list[Pbx] = []
    portal: list[Portal] = []

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Config":
        names = [("pbx", pbx.name) for pbx in self.pbx]
        names += [("portal", portal.name) for portal in self.portal]
        doubled = sorted(name for name, count in Counter(names).items() if count > 1)
        if doubled:
            told = (f"{kind}: the name {name!r} is given twice" for kind, name in doubled)
            raise ValueError("; ".join(told))
        return self

    @model_validator(mode="after")
    def _addresses_are_unique(self) -> "Config":
        listed = [("tcp.listen", address) for address in self.tcp.listen]
        listed += [("http.listen", address) for address in self.http.listen]
        listed += [("metrics.listen", self.metrics.listen)] if self.metrics.listen else []
        taken: set[tuple[str, int]] = set()
        for setting, text in listed:
            address = parse_address(text)
            if address in taken:
                raise ValueError(f"{setting}: {text} is listened at already: name another port")
            if address[1]:  # 0 is any that is free
                taken.add(address)
        return self

    @model_validator(mode="after")
    def _registered_pbxs_can_post(self) -> "Config":
        posting = [pbx for pbx in self.pbx if pbx.events and pbx.events.kind in POSTING]
        for pbx in posting:
            assert pbx.events is not None
            kind = f"kind {pbx.events.kind!r} of [pbx.events]"
            if not self.http.listen:
                raise ValueError(f"http.listen: {kind} needs an address here")
            if not pbx.peers:
                raise ValueError(
                    f"pbx: {kind} needs peers, the addresses that the PBX posts from:"
                    f" {pbx.name} has none"
                )
        return self


def find_config(argument: str | None, environment: Mapping[str, str]) -> Path:
    """Return the configuration file's path: the argument, ``$CDRD_CONFIG``, or a default's."""
    named = argument or environment.get("CDRD_CONFIG")
    if named:
        return Path(named)
    found = next(filter(_is_there, map(Path, DEFAULT_PATHS)), None)
    if found is None:
        raise ConfigError(
            f"no configuration: none of {', '.join(DEFAULT_PATHS)} exists; "
            "name one with -c FILE or $CDRD_CONFIG (config.example.toml explains every key)"
        )
    return found


def _is_there(path: Path) -> bool:
    """Tell whether there is a file; one in a directory closed to us is there, and is told so."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def load_config(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except (OSError, ValueError) as error:  # the latter: no UTF-8, or a name with a NUL
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_config(text, str(path))


def parse_config(text: str, name: str) -> Config:
    """Check a configuration's text. Raises ConfigError with a line for each fault."""
    try:
        tables = tomllib.loads(text)
    except ValueError as error:  # tomllib's own, or a number of more digits than int() takes
        raise ConfigError(f"{name}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested deeper than TOML can be read") from error
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        lines = [f"{name}: {_sentence(fault)}" for fault in error.errors()]
        raise ConfigError("\n".join(lines)) from error
    return config


def missing_packages(config: Config) -> list[str]:
    """Say which packages are not installed that the configuration needs."""
    needed = (
        ("[[portal]]", config.portal, "pymysql", "PyMySQL", "portal"),
        (
            "metrics.listen",
            config.metrics.listen,
            "prometheus_client",
            "prometheus-client",
            "metrics",
        ),
    )
    return [
        f"{setting} needs the package {package}: pip install 'cdrd[{extra}]', or take it out"
        for setting, value, module, package, extra in needed
        if value and importlib.util.find_spec(module) is None
    ]


def secret_path(name: str, config_path: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Return where a file is: absolute, a systemd credential, or beside the configuration."""
    path = Path(name)
    credentials = environment.get("CREDENTIALS_DIRECTORY")
    if path.is_absolute():
        return path
    beside = config_path.parent / path
    credential = Path(credentials) / path if credentials else beside
    return credential if _is_there(credential) else beside


def credentials_are_closed(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether systemd has credentials that are not for this process to read.

    So it is for the commands of ExecReload (systemd 252): the service alone may.
    """
    directory = environment.get("CREDENTIALS_DIRECTORY")
    return bool(directory) and not os.access(str(directory), os.X_OK)


def read_secret(name: str, config_path: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Read a secret's file: its text without the line break at its end.

    Raises OSError, and ValueError for a secret that has a line break within it.
    """
    path = secret_path(name, config_path, environment)
    secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    if "\n" in secret or "\r" in secret:
        raise ValueError(f"{path}: a secret is one line")
    return secret


def _sentence(fault: ErrorDetails) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key{_likely(fault['loc'])}"
    if fault["type"] == "missing":
        return f"{where}: is missing; give it a value"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if fault["type"] == "model_type":
        message = "input should be a table"
    given = fault["input"]
    quoted = not isinstance(given, str | int | float | bool) or repr(given) in message
    shown = "" if quoted else f", not {given!r}"
    return f"{where}: {message}{shown}" if where else message


def _likely(loc: tuple[int | str, ...]) -> str:
    """Name the key that was likely meant."""
    import difflib  # noqa: PLC0415 - for a mistake alone, and it takes 1 MiB

    table: Any = Config
    for part in loc[:-1]:
        if isinstance(part, str):
            table = _TABLES.get((table, part), table)
    likely = difflib.get_close_matches(str(loc[-1]), list(table.model_fields), 1, 0.5)
    return f" (did you mean {likely[0]!r}?)" if likely else ""


_TABLES: Final[dict[tuple[Any, str], type[BaseModel]]] = {
    (Config, "database"): Database,
    (Config, "batch"): BatchTable,
    (Config, "tcp"): Tcp,
    (Config, "http"): Http,
    (Config, "tls"): Tls,
    (Config, "log"): Log,
    (Config, "metrics"): Metrics,
    (Config, "pbx"): Pbx,
    (Config, "portal"): Portal,
    (Pbx, "events"): Events,
    (Pbx, "history"): History,
}
