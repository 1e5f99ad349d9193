"""Many PBXs at once, orderly ends and reloads under load: nothing is lost, nothing is doubled."""

import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path

from tests.faults.oracle import SendingPbx, call
from tests.faults.outcome import Outcome, compare
from tests.manager import Manager
from tests.running import (
    HQ,
    RunningDaemon,
    assert_accounted,
    assert_each_row_is_logged,
    send,
)

END_SECONDS = 5.0


def reconnect_storm(pbxs: int, records: int) -> Outcome:
    """So many PBXs connect at once, and each brings so many records, half of them known already."""
    tables = '[[pbx]]\nname = "hq"\npeers = ["127.0.0.0/8"]\n'
    with tempfile.TemporaryDirectory(prefix="cdrd-storm-") as directory:
        with RunningDaemon(Path(directory), tables) as daemon:
            port, total = daemon.port, pbxs * records
            send(port, *(call(number) for number in range(0, total, 2)))
            daemon.wait_for("call_released", times=total // 2)
            began = time.monotonic()
            senders = [
                threading.Thread(
                    target=send,
                    args=(port, *(call(pbx * records + n) for n in range(records))),
                    kwargs={"source": f"127.0.1.{pbx + 1}"},
                )
                for pbx in range(pbxs)
            ]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join()
            daemon.wait_for("call_released", times=total)
            outcome = compare(daemon.database, set(range(total)), began)
            _, stopped = daemon.stop()
        assert_accounted(stopped)
        return outcome


def end_under_load() -> Outcome:
    """SIGTERM while calls come flat out: what was received is a row."""
    with (
        tempfile.TemporaryDirectory(prefix="cdrd-end-") as directory,
        RunningDaemon(Path(directory), HQ) as daemon,
        SendingPbx(daemon.port) as pbx,
    ):
        daemon.wait_for("call_released", times=2000)
        pbx.stop()
        began = time.monotonic()
        status, stopped = daemon.stop()
        seconds = time.monotonic() - began
        assert status == 0
        assert_accounted(stopped)
        slow = () if seconds <= END_SECONDS else (f"it ends within {END_SECONDS} s",)
        outcome = compare(daemon.database, pbx.numbers, began)
        return outcome._replace(seconds=seconds, broken=slow)


def kill_what_stores(kills: int, *, rate: float = 2000, seed: int = 1) -> Outcome:
    """SIGKILL the process that stores, at random moments while calls come; the daemon goes on."""
    moments = random.Random(seed)
    with (
        tempfile.TemporaryDirectory(prefix="cdrd-stores-") as directory,
        RunningDaemon(Path(directory), HQ) as daemon,
    ):
        began = time.monotonic()
        with SendingPbx(daemon.port, rate=rate) as pbx:
            for kill in range(kills):
                daemon.wait_for_call(pbx.last_call_id)
                time.sleep(moments.uniform(0, 0.1))  # the moment of the kill is what is tried
                os.kill(daemon.storing_process(), signal.SIGKILL)
                daemon.wait_for("store_replaced", times=kill + 1, status=-signal.SIGKILL)
            pbx.stop()
            assert not pbx.broken
        daemon.wait_for_call(pbx.last_call_id)
        status, stopped = daemon.stop()
        assert status == 0
        assert_accounted(stopped)
        assert_each_row_is_logged(daemon.database, daemon.found("call_released"))
        return compare(daemon.database, pbx.numbers, began)


def reload_under_load(reloads: int) -> Outcome:
    """SIGHUP again and again while calls come; every third file is broken."""
    with (
        tempfile.TemporaryDirectory(prefix="cdrd-reload-") as directory,
        RunningDaemon(Path(directory), HQ) as daemon,
    ):
        good = daemon.config.read_text()
        began = time.monotonic()
        with SendingPbx(daemon.port, rate=2000) as pbx:
            for number in range(reloads):
                broken = number % 3 == 2
                aside = Path(directory, "aside")
                aside.write_text(good + ("[[pbx]\n" if broken else f"# {number}\n"))
                aside.replace(daemon.config)
                event = "reload_refused" if broken else "reloaded"
                times = len(daemon.found(event)) + 1
                daemon.process.send_signal(signal.SIGHUP)
                daemon.wait_for(event, times=times)
                # So that calls come before and after each.
                daemon.wait_for("call_released", times=len(daemon.found("call_released")) + 1)
            pbx.stop()
            assert not pbx.broken
        assert len(daemon.found("peer_connected")) == 1
        daemon.stop()
        return compare(daemon.database, pbx.numbers, began)


def restart_with_kept_connections(restarts: int, *, crash: bool) -> Outcome:
    """One connection over many processes, as systemd keeps it; it never breaks."""
    with tempfile.TemporaryDirectory(prefix="cdrd-kept-") as name:
        directory = Path(name)
        began = time.monotonic()
        with Manager(directory) as manager:
            port = manager.listen("tcp")
            daemon = manager.start()
            daemon.wait_for("ready")
            with SendingPbx(port, rate=2000) as pbx:
                for _ in range(restarts):
                    manager.wait_for_store(1)
                    # Caught up: what a crash takes is what was read and not yet stored.
                    daemon.wait_for_call(pbx.last_call_id)
                    if crash:
                        daemon.kill()
                    else:
                        daemon.stop()
                    daemon.__exit__(None, None, None)
                    daemon = manager.start()
                    daemon.wait_for("ready")
                pbx.stop()
                assert not pbx.broken
                daemon.wait_for_call(pbx.last_call_id)
            daemon.stop()
            outcome = compare(daemon.database, pbx.numbers, began)
            daemon.__exit__(None, None, None)
            return outcome
