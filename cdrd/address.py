"""Turns HOST:PORT text into an address, and an address into HOST:PORT text.

What `format_address` writes, `parse_address` reads back as the same address.
"""

from ipaddress import IPv6Address

_HIGHEST_PORT = 65535
_RIGHT_FORM = 'write HOST:PORT, such as "127.0.0.1:8333", "[::1]:8333" or "pbx.example.com:8333"'


def parse_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 host stands in brackets, and comes back without them.

    The port is 0 to 65535. Raises ValueError with a sentence that quotes the text.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise _not_an_address(text, "it needs a host and a port")
    return _host(host, text), _port(port, text)


def format_address(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return _bracketed(host[1:-1], text)
    if ":" in host and "/" not in host:
        raise _not_an_address(text, "an IPv6 address stands in brackets")
    if not _is_host_name(host):
        raise _not_an_address(text, f'"{host}" is no host name')
    return host


def _is_host_name(host: str) -> bool:
    if not host.isprintable() or any(character in " []/@" for character in host):
        return False
    try:
        host.encode("idna")  # as the system's resolver is asked for it
    except UnicodeError:
        return False
    return True


def _bracketed(host: str, text: str) -> str:
    try:
        IPv6Address(host)
    except ValueError:
        raise _not_an_address(text, f'"{host}" in brackets is no IPv6 address') from None
    return host


def _port(port: str, text: str) -> int:
    # The length is bounded first: int() of more than 4,300 digits is an error of another kind.
    if port.isascii() and port.isdecimal() and len(port) <= len(str(_HIGHEST_PORT)):
        number = int(port)
        if number <= _HIGHEST_PORT:
            return number
    raise _not_an_address(text, f"the port is a number from 0 to {_HIGHEST_PORT}")


def _not_an_address(text: str, why: str) -> ValueError:
    return ValueError(f'"{text}" is no address: {why}; {_RIGHT_FORM}')
