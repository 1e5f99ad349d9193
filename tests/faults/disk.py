"""Turns what was done to a directory's files into what a disk may hold after a loss of power.

The rule that must stay true: it is as unkind as POSIX allows. What was synced before is there; of
what was not, each sector and each name is as it was after any one of its changes, or none. A sync
of a file says nothing of its name, one of a directory nothing of its files.
"""

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.faults.trace import Call, Step

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""

NOT_KEPT = "-shm"
"""SQLite's index of the WAL: memory in the form of a file, of which nothing has to outlast."""


@dataclass(eq=False, slots=True)
class File:
    """What is durable of a file, and what was done to it since."""

    durable: bytearray = field(default_factory=bytearray)
    size: int = 0  # as the processes see it
    changes: list[Call] = field(default_factory=list)


Entry = File | None  # None is a directory
Names = dict[str, Entry]


@dataclass(eq=False, slots=True)
class _Naming:
    """What a call did to the names of one directory; ``gone`` are those that it took away."""

    directory: str
    call: Call
    made: Names
    gone: tuple[str, ...] = ()

    def apply(self, names: Names) -> None:
        for name in self.gone:
            names.pop(name, None)
        names.update(self.made)


class Disk:
    """A directory on a disk while processes work on it."""

    def __init__(self, files: Mapping[str, bytes], unsynced: Collection[str] = ()) -> None:
        """``unsynced``: the files whose name somebody who was killed had not made durable."""
        held: Names = {name: File(bytearray(data), len(data)) for name, data in files.items()}
        self._durable = {name: file for name, file in held.items() if name not in unsynced}
        self._names = dict(held)
        self._namings = [_Naming("", Call("create"), {name: held[name]}) for name in unsynced]
        self._ended: set[Call] = {naming.call for naming in self._namings}
        self._covered: dict[Call, list[Call]] = {}

    def take(self, step: Step) -> None:
        """Go on by a step."""
        call, ended = step
        if not ended:
            self._begin(call)
            return
        self._ended.add(call)
        if call.change == "sync":
            self._sync(call)

    def contents(self) -> dict[str, bytes]:
        """Return the files as the processes see them."""
        files = {name: file for name, file in self._names.items() if file is not None}
        return {name: _torn(file, 1.0, random.Random()) for name, file in files.items()}

    def after_power_loss(self, chances: random.Random) -> dict[str, bytes]:
        """Return files as a disk may hold them if the power is lost now."""
        held = self._surviving(chances.choice((0.0, 0.1, 0.5, 0.9, 1.0)), chances)
        for name in self._names:
            if name.endswith(NOT_KEPT) and chances.random() < 0.5:
                held[name] = chances.randbytes(chances.choice((0, SECTOR, 64 * SECTOR)))
        return held

    def synced(self) -> dict[str, bytes]:
        """Return the files that any disk holds if the power is lost now."""
        return self._surviving(0.0, random.Random())

    def _surviving(self, share: float, chances: random.Random) -> dict[str, bytes]:
        """Return files with a share of what was not synced."""
        names = dict(self._durable)
        for naming in self._namings:
            if chances.random() < share:
                naming.apply(names)
        return {
            name: _torn(file, share, chances)
            for name, file in names.items()
            if file is not None and not name.endswith(NOT_KEPT) and _is_reached(name, names)
        }

    def _begin(self, call: Call) -> None:
        match call.change:
            case "sync":
                self._cover(call)
            case "write" | "truncate" if call.path in self._names:  # else it has no name any more
                self._change(call)
            case "create" if call.path not in self._names:
                self._name(call, made={call.path: File()})
            case "mkdir":
                self._name(call, made={call.path: None})
            case "link":
                self._name(call, made={call.new_path: self._names[call.path]})
            case "unlink":
                self._name(call, gone=(call.path,))
            case "rename":
                self._rename(call)

    def _change(self, call: Call) -> None:
        file = self._names[call.path]
        assert file is not None
        if call.offset is None:
            call.offset = file.size
        end = call.offset + len(call.data)
        file.size = end if call.change == "truncate" else max(file.size, end)
        file.changes.append(call)

    def _rename(self, call: Call) -> None:
        moved = {call.new_path: self._names[call.path]}
        if _directory(call.path) == _directory(call.new_path):
            self._name(call, made=moved, gone=(call.path,))
        else:
            self._name(call, made=moved)
            self._name(call, gone=(call.path,))

    def _name(self, call: Call, made: Names | None = None, gone: tuple[str, ...] = ()) -> None:
        path = next(iter((*gone, *(made or {}))))
        naming = _Naming(_directory(path), call, made or {}, gone)
        naming.apply(self._names)
        self._namings.append(naming)

    def _cover(self, call: Call) -> None:
        """Note what a sync is about: what has ended before it begins."""
        file = self._names.get(call.path)
        changes = [naming.call for naming in self._namings if naming.directory == call.path]
        if file is not None:
            changes = file.changes
        self._covered[call] = [change for change in changes if change in self._ended]

    def _sync(self, call: Call) -> None:
        covered = set(self._covered.pop(call))
        file = self._names.get(call.path)
        if file is not None:
            for change in file.changes:
                if change in covered:
                    _apply(change, file.durable)
            file.changes = [change for change in file.changes if change not in covered]
            return
        for naming in self._namings:
            if naming.directory == call.path and naming.call in covered:
                naming.apply(self._durable)
        self._namings = [
            naming
            for naming in self._namings
            if naming.directory != call.path or naming.call not in covered
        ]


def read_files(directory: Path) -> dict[str, bytes]:
    """Read all files of a directory by their names within it."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Make a directory that holds these files."""
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _directory(path: str) -> str:
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "." else parent


def _is_reached(path: str, names: Names) -> bool:
    """Tell whether all the directories of a file are there too."""
    parent = _directory(path)
    return not parent or (parent in names and _is_reached(parent, names))


def _torn(file: File, share: float, chances: random.Random) -> bytes:
    """Return a file's content where a share of the sectors written since a sync is on the disk.

    A disk is sent sectors as they are in memory, with all that was written to them before.
    """
    memory, disk = bytearray(file.durable), bytearray(file.durable)
    for change in file.changes:
        _apply(change, memory)
        if change.change == "truncate":
            if chances.random() < share:
                _apply(change, disk)
            continue
        for begin, end in _kept(change, share, chances):
            sector = memory[begin:end]
            disk.extend(bytes(max(0, begin - len(disk))))
            disk[begin : begin + len(sector)] = sector
    return bytes(disk)


def _kept(change: Call, share: float, chances: random.Random) -> Iterator[tuple[int, int]]:
    """Give the parts of a write that have reached the disk: all, some sectors of it, or none."""
    assert change.offset is not None
    first = change.offset // SECTOR
    behind = (change.offset + len(change.data) + SECTOR - 1) // SECTOR
    match chances.random() < share, chances.random() < 0.5:
        case True, True:
            yield first * SECTOR, behind * SECTOR
        case True, False:
            for sector in range(first, behind):
                if chances.random() < share:
                    yield sector * SECTOR, (sector + 1) * SECTOR


def _apply(change: Call, content: bytearray) -> None:
    assert change.offset is not None
    if change.change == "truncate":
        del content[change.offset :]
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.data)] = change.data
