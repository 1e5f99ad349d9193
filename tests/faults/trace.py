"""Turns what strace saw of some processes into what they did to a directory's files, and told.

The rule that must stay true: calls begin and end here in the order in which they did. strace stops
a process before a call and behind it, so between a call's two steps it may or may not have worked.
What is written through a mapping is not seen: of ours that is SQLite's ``-shm`` alone.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

CHANGES = {
    "create": ("open", "openat", "creat"),
    "write": ("write", "pwrite64"),
    "truncate": ("ftruncate", "truncate"),
    "rename": ("rename", "renameat", "renameat2"),
    "link": ("link", "linkat"),
    "unlink": ("unlink", "unlinkat", "rmdir"),
    "mkdir": ("mkdir", "mkdirat"),
    "sync": ("fsync", "fdatasync"),
}
TELLS = ("write", "writev", "sendto", "sendmsg")
HANDED_DATA = (*TELLS, "pwrite64")
UNKNOWN = ("pwritev", "pwritev2", "fallocate", "sync_file_range", "copy_file_range", "sendfile")
"""What none of ours does to a file; so nobody has to know what it would mean."""

_CHANGE_OF = {name: change for change, names in CHANGES.items() for name in names}
_TRACED = ",".join(f"?{name}" for name in {*_CHANGE_OF, *TELLS, *UNKNOWN})
_LINE = re.compile(rb"(\d+) +(?:<\.\.\. \w+ resumed>|(\w+)\()")
_FILE = re.compile(rb"(\d+|AT_FDCWD)<((?:->|[^>])*)>")


@dataclass(eq=False, slots=True)
class Call:
    """A system call: a change of files, or ``tell``."""

    change: str
    path: str = ""  # within the directory; of what is told, the descriptor or the connection
    new_path: str = ""  # of a rename or a link
    data: bytes = b""
    offset: int | None = None  # None is the file's end
    worked: bool = True


class Step(NamedTuple):
    """A call begins, or it has ended."""

    call: Call
    ended: bool


def tracing(output: Path, kill: str = "") -> list[str]:
    """Return the command that runs another one, its child, and writes down what it calls.

    Whoever reads the other one's output to its end knows that strace has ended too. ``kill``: a
    call in place of which it is killed, such as ``fsync:when=2``, the second of each thread.
    """
    options = ["-D", "-f", "-yy", "-xx", "-a0", "-s", str(1 << 27), "-qq"]
    options += ["-e", "signal=none", "-e", f"trace={_TRACED}"]
    # With --seccomp-bpf what is not traced costs nothing; but then strace 6.1 kills nobody.
    options += ["-e", f"inject={kill}:signal=SIGKILL"] if kill else ["--seccomp-bpf"]
    return ["strace", *options, "-o", str(output)]


def read_trace(output: Path, directory: Path) -> list[Step]:
    """Read what was done to the files of a directory and told; what has failed did nothing."""
    with output.open("rb") as lines:
        steps = list(_steps(lines, f"{directory}/".encode()))
    return [step for step in steps if step.call.worked]


def _steps(lines: Iterable[bytes], directory: bytes) -> Iterator[Step]:
    begun: dict[bytes, list[Call]] = {}
    for line in lines:
        found = _LINE.match(line)
        if found is None:  # the end of a process
            continue
        process, name = found.groups()
        if name is not None:
            calls = begun[process] = list(_calls(name.decode(), line[found.end() :], directory))
            yield from (Step(call, ended=False) for call in calls)
        if line.endswith(b" <unfinished ...>\n"):
            continue
        result = line.rpartition(b") = ")[2].split()[0].partition(b"<")[0]
        for call in begun.pop(process):
            call.worked = not result.startswith(b"-")
            if result == b"?":  # the process was killed within it
                continue
            if call.change in ("write", "tell") and call.worked:
                call.data = call.data[: int(result)]
            yield Step(call, ended=True)


def _calls(name: str, text: bytes, directory: bytes) -> Iterator[Call]:
    """Read a call's arguments; some do two things, and most are no business of ours."""
    arguments = text.split(b", ")
    paths = list(_paths(arguments[:1] if name in HANDED_DATA else arguments))
    within = [path + b"/" for path in paths if (path + b"/").startswith(directory)]
    inside = [path.removeprefix(directory).rstrip(b"/").decode() for path in within]
    if not inside:
        if name in TELLS and (channel := _channel(arguments[0])):
            yield Call("tell", channel, data=_texts(text))
        return
    assert name in _CHANGE_OF, f"nobody knows here what {name} does"
    match _CHANGE_OF[name]:
        case "create" if b"O_CREAT" in text or b"O_TRUNC" in text:
            yield Call("create", inside[-1])
            if b"O_TRUNC" in text:
                yield Call("truncate", inside[-1], offset=0)
        case "create":
            pass
        case "write":
            offset = _number(arguments[-1]) if name == "pwrite64" else None
            yield Call("write", inside[0], data=_texts(text), offset=offset)
        case "truncate":
            yield Call("truncate", inside[0], offset=_number(arguments[-1]))
        case "rename" | "link" as change:
            yield Call(change, inside[-2], inside[-1])
        case change:
            yield Call(change, inside[-1])


def _paths(arguments: list[bytes]) -> Iterator[bytes]:
    """Give the files that arguments name, by descriptor or by a path below one."""
    base = b""
    for argument in arguments:
        if file := _FILE.match(argument):
            base = _unhexed(file[2].partition(b"<")[0]) if file[2].startswith(b"\\x") else b""
            yield base
        elif argument.startswith(b'"\\x2f'):
            yield _unhexed(argument.split(b'"')[1])
        elif argument.startswith(b'"') and base:
            yield base + b"/" + _unhexed(argument.split(b'"')[1])


def _channel(argument: bytes) -> str:
    """Name what people and peers read: stdout, stderr, or a connection by the peer's port."""
    found = _FILE.match(argument)
    if found is None:
        return ""
    descriptor, kind = found.groups()
    if kind.startswith(b"TCP") and b"->" in kind:
        return kind.rpartition(b":")[2].rstrip(b"]").decode()
    return descriptor.decode() if descriptor in (b"1", b"2") else ""


def _texts(text: bytes) -> bytes:
    return b"".join(map(_unhexed, text.split(b'"')[1::2]))


def _unhexed(text: bytes) -> bytes:
    return bytes.fromhex(text.replace(b"\\x", b"").decode())


def _number(argument: bytes) -> int:
    return int(argument.partition(b")")[0].partition(b" ")[0])
