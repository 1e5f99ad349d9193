"""Debian's systemd as PID 1 of namespaces of its own, with cdrd installed as the README says.

The rule that must stay true: it never runs on the machine's own root. Its root is an overlay whose
lower layer, the machine's, is only read; what is written goes to a tmpfs that ends with it. Its
units are those named below, so nothing else of the machine starts. It needs root, an overlayfs and
cgroup2, and says so where they are refused. Nothing here sleeps or polls.
"""

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from tests.running import DEADLINE_SECONDS

CHECKOUT = Path(__file__).parent.parent
DROP_IN = "/run/systemd/system/cdrd.service.d/test.conf"
DATABASE = "/var/lib/cdrd/cdr.sqlite3"
PORT = 8261  # as cdrd.socket; a network of its own: nothing else listens there

UNITS = (
    "basic.target",
    "multi-user.target",
    "network-online.target",
    "shutdown.target",
    "sockets.target",
    "sysinit.target",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
)
"""Of the machine's units those that are there; what they want beside these is left out."""

DEFAULT_TARGET = "[Unit]\nRequires=basic.target systemd-journald.service\nAfter=basic.target\n"

# The root of a cgroup namespace is where its maker is, so the cgroup is joined first.
JOIN = 'echo 0 >"$1/cgroup.procs"; shift; exec unshare --cgroup -- sh -eu -c "$@"'

# $0: a scratch directory, $1: the checkout, $2: the virtual environment, the others: units.
BOOT = r"""
scratch=$0 checkout=$1 environment=$2
shift 2
mount -t tmpfs -o mode=755 tmpfs "$scratch/disk"
cd "$scratch/disk"
mkdir upper work root
mount -t overlay -o "lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work" overlay root
cd root

mount -t proc proc proc
# Not all in it is of a namespace: systemd raises limits of the whole machine when it boots.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mkdir -p usr/local/lib/systemd
for folder in dev run tmp var etc/systemd usr/local/lib/systemd \
    usr/lib/systemd/system usr/lib/systemd/system-generators
do
    mount -t tmpfs -o mode=755 tmpfs "$folder"
done
mkdir -p etc/systemd/system var/lib var/log var/tmp run/host run/outside
chmod 1777 tmp var/tmp
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty dev
ln -s pts/ptmx dev/ptmx
ln -s /run var/run
for unit
do
    cp "/usr/lib/systemd/system/$unit" usr/lib/systemd/system
done
cp "$scratch/default.target" etc/systemd/system
: >run/host/notify
mount --bind "$scratch/notify" run/host/notify

bind() {
    mkdir -p "$2"
    mount --bind "$1" "$2"
    mount -o remount,bind,ro "$2"
}
bind "$environment" opt/cdrd
bind "$checkout" usr/local/src/cdrd

pivot_root . run/outside
cd /
umount -l run/outside
rmdir run/outside
# So systemd leaves it on a machine, and in a container to who made it: credentials need it.
mount --make-rshared /
# As in any container, the clock, the modules and the hardware are not its own.
exec env -i container=cdrd-test NOTIFY_SOCKET=/run/host/notify PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio,-sys_boot,-syslog \
    /usr/lib/systemd/systemd
"""

# What stands for the README's "pip install", which needs a network.
COMMAND = '#!/bin/sh\nPYTHONPATH=/usr/local/src/cdrd exec /opt/cdrd/bin/python -P -m cdrd "$@"\n'

# Connects inside, and hands the connection out: a socket stays in the network it was made in.
CONNECT = """
import socket, sys
source, port = sys.argv[1:]
sock = socket.create_connection(("127.0.0.1", int(port)), source_address=(source, 0))
socket.send_fds(socket.socket(fileno=0), [b"."], [sock.fileno()])
"""

Entry = dict[str, Any]


class Journal:
    """What the journal has about cdrd since a moment, from the daemon and from systemd.

    An entry has journald's fields, in capitals, and those of our line in it.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.entries: list[Entry] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def wait_for(self, words: str = "", *, times: int = 1, **fields: object) -> Entry:
        """Wait for so many entries with these words and fields; return the last of them."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._changed:
            while True:
                alike = [entry for entry in self.entries if fields.items() <= entry.items()]
                found = [entry for entry in alike if words in entry["MESSAGE"]]
                if len(found) >= times:
                    return found[times - 1]
                if not self._changed.wait(deadline - time.monotonic()):
                    said = "\n".join(entry["MESSAGE"] for entry in self.entries)
                    wanted = f"{times} x {words!r} {fields}"
                    raise AssertionError(f"{wanted} is not in the journal:\n{said}")

    def wait_for_end(self) -> None:
        """Wait until all is read of a stream that has ended."""
        self._reader.join(DEADLINE_SECONDS)

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            if not line.endswith(b"\n"):
                return  # cut off by the end of journalctl
            entry = orjson.loads(line)
            if entry["MESSAGE"].startswith("{"):
                entry |= orjson.loads(entry["MESSAGE"])
            with self._changed:
                self.entries.append(entry)
                self._changed.notify_all()


class Machine:
    """A booted systemd with cdrd installed, by the process that is PID 1 in it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.root = Path(f"/proc/{pid}/root")
        """Its root, to look at from here. Written it is from inside: a link could lead out."""

    def run(
        self, *command: str | Path, check: bool = True, given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it as root; unless it may fail, it has to succeed."""
        ended = subprocess.run(
            [*self._enter("--all"), *command],
            input=given,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert not check or ended.returncode == 0, (command, ended.stdout, ended.stderr)
        return ended

    def write(self, path: str, text: str, *, mode: str = "644", group: str = "root") -> None:
        """Write a file in it anew, and the directories above it."""
        options = (f"--mode={mode}", f"--group={group}")
        self.run("install", "-D", *options, "/proc/self/fd/0", path, given=text)

    def systemctl(self, *arguments: str) -> str:
        """Have systemd do something, and wait until it is done."""
        return self.run("systemctl", "--no-pager", *arguments).stdout

    def shown(self, name: str) -> str:
        """Tell a property of the service."""
        return self.systemctl("show", "--value", f"--property={name}", "cdrd").strip()

    def kill(self, signal_name: str) -> None:
        """Send the daemon, and nothing else of the service, a signal."""
        self.systemctl("kill", "--kill-who=main", f"--signal={signal_name}", "cdrd")

    def configure(self, tables: str, listen: str = f'["127.0.0.1:{PORT}"]') -> None:
        """Write another configuration, in the file that is installed."""
        head = f'database.path = "{DATABASE}"\ntcp.listen = {listen}\n'
        self.write("/etc/cdrd/config.toml", head + tables, mode="640", group="cdrd")

    def change_service(self, settings: str) -> None:
        """Write a drop-in that lasts until `forget`."""
        self.write(DROP_IN, f"[Service]\n{settings}\n")
        self.systemctl("daemon-reload")

    def forget(self) -> None:
        """Stop the service and forget its drop-in and its database."""
        self.systemctl("stop", "cdrd")
        self.run("find", "/var/lib/cdrd", "-mindepth", "1", "-delete")
        self.run("rm", "-f", DROP_IN)
        self.systemctl("daemon-reload")
        self.systemctl("reset-failed")

    def connect(self, *, source: str = "127.0.0.1") -> socket.socket:
        """Connect to the daemon over the loopback inside."""
        ours, theirs = socket.socketpair()
        command = [*self._enter("--net"), sys.executable, "-c", CONNECT, source, str(PORT)]
        with ours, theirs:
            subprocess.run(command, stdin=theirs.fileno(), timeout=DEADLINE_SECONDS, check=True)
            _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        sock = socket.socket(fileno=descriptor)
        sock.settimeout(DEADLINE_SECONDS)
        return sock

    @contextlib.contextmanager
    def send_and_keep_open(self, report: bytes) -> Iterator[socket.socket]:
        """Send a report over a connection of its own that stays open, as a PBX's does."""
        with self.connect() as sock:
            sock.sendall(report)
            yield sock

    def read(self, query: str) -> list[dict[str, Any]]:
        """Read the database as README says, as a user who is a member of cdrd's group."""
        reader = ("setpriv", "--reuid=reader", "--regid=reader", "--init-groups")
        rows = self.run(*reader, "sqlite3", "-json", f"file:{DATABASE}?mode=ro", query).stdout
        found: list[dict[str, Any]] = orjson.loads(rows or "[]")
        return found

    @contextlib.contextmanager
    def journal(self) -> Iterator[Journal]:
        """Follow what is written to the journal about cdrd from now on."""
        # From outside: inside, nsenter would be between us and it, and its end would not be ours.
        command = ["journalctl", f"--directory={self.root}/run/log/journal"]
        shown = subprocess.run(
            [*command, "--lines=0", "--show-cursor"], capture_output=True, text=True, check=True
        ).stdout
        command += ["--unit=cdrd", "--output=json", "--follow", "--no-tail"]
        command += [f"--after-cursor={shown.partition('cursor: ')[2].strip()}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            journal = Journal(process.stdout)
            try:
                yield journal
            finally:
                process.kill()
                journal.wait_for_end()

    def install(self) -> None:
        """Install cdrd by the README's own lines, but for those that need a network."""
        lines = (CHECKOUT / "README.md").read_text().splitlines()
        steps = [line for line in lines if line.startswith(("install ", "systemd-sysusers "))]
        self.write("/usr/local/bin/cdrd", COMMAND, mode="755")
        self.run("sh", "-eu", "-c", "\n".join(["cd /usr/local/src/cdrd", *steps]))
        self.run("systemd-sysusers", "--inline", "u reader -", "m reader cdrd")
        self.systemctl("daemon-reload")

    def _enter(self, *namespaces: str) -> list[str]:
        return ["nsenter", f"--target={self._pid}", *namespaces, "--"]


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    """Boot it and install cdrd; at the end nothing is left of it."""
    with (
        tempfile.TemporaryDirectory() as made,
        _cgroup() as group,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        scratch = Path(made)
        (scratch / "disk").mkdir()
        (scratch / "default.target").write_text(DEFAULT_TARGET)
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.bind(str(scratch / "notify"))
        said = scratch / "said"
        with said.open("wb") as output:
            process = subprocess.Popen(_boot_command(scratch, group), stdout=output, stderr=output)
        try:
            machine = Machine(_wait_until_up(process, manager, said))
            machine.install()
            yield machine
        finally:
            (group / "cgroup.kill").write_text("1")
            process.wait(DEADLINE_SECONDS)


def _boot_command(scratch: Path, group: Path) -> list[str | Path]:
    namespaces = ("--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net")
    return [
        *("setpriv", "--pdeathsig=KILL", "unshare", *namespaces, "--"),
        *("sh", "-eu", "-c", JOIN, "sh", group),
        *(BOOT, scratch, CHECKOUT, sys.prefix, *UNITS),
    ]


def _wait_until_up(process: subprocess.Popen[bytes], manager: socket.socket, said: Path) -> int:
    """Return the PID that its PID 1 has here: the sender of the word that it has booted."""
    message = b""
    ancillary: list[tuple[int, int, bytes]] = []
    ended = os.pidfd_open(process.pid)
    try:
        while b"READY=1" not in message:
            readable = select.select([manager.fileno(), ended], [], [], DEADLINE_SECONDS)[0]
            if manager.fileno() not in readable:
                raise AssertionError(f"systemd does not boot here: {said.read_text()}")
            message, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(12))
    finally:
        os.close(ended)
    pid, _, _ = struct.unpack("3i", ancillary[0][2])
    return int(pid)


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """Make a cgroup for all that runs in it, and remove it with those that are made below."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    tops = [Path(where) for _, where, kind, *_ in mounts if kind == "cgroup2"]
    assert tops, "systemd does not boot here: no cgroup2 is mounted"
    group = Path(tempfile.mkdtemp(prefix="cdrd-test-", dir=tops[0]))
    try:
        yield group
    finally:
        for folder, _, _ in os.walk(group, topdown=False):
            Path(folder).rmdir()
