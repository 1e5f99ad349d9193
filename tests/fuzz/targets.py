"""What is fuzzed: a check that fails for an input, the inputs it begins with, and its share."""

from collections.abc import Callable
from typing import NamedTuple

from tests.fuzz import files, requests, seeds, streams
from tests.fuzz.growth import Pour


class Target(NamedTuple):
    """What is fuzzed."""

    check: Callable[[bytes], None]
    seeds: list[bytes]
    share: int  # of all inputs, in thousandths
    pour: Pour | None = None  # takes a stream in pieces: what its length costs is looked at


TARGETS = {
    "frames": Target(streams.check_frames, seeds.STREAMS, 450),
    "streams": Target(streams.check_stream, seeds.STREAMS, 100, streams.pour_stream),
    "neighbours": Target(streams.check_neighbours, seeds.STREAMS, 100),
    "fields": Target(streams.check_fields, seeds.VALUES, 80),
    "http": Target(requests.check_requests, seeds.POSTS, 120, requests.pour_requests),
    "histories": Target(streams.check_history, seeds.ROWS, 50, streams.pour_history),
    "captures": Target(streams.check_capture, seeds.CAPTURES, 20, streams.pour_capture),
    "portals": Target(files.check_portal, seeds.PORTAL_ROWS, 30, files.pour_portal),
    "spools": Target(files.check_spool, seeds.SPOOLS, 20),
    "commands": Target(requests.check_asked, seeds.ASKED, 10),
    "answers": Target(requests.check_answer, seeds.ANSWERS, 10),
    "exports": Target(files.check_export, seeds.EXPORTS, 8),
    "configurations": Target(files.check_config, seeds.CONFIGS, 2),
}
"""Framing and decoding have nine tenths of all inputs."""
