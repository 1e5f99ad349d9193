"""``cdrd serve`` that asks for history within milliseconds of a gap's end, not within seconds.

So does it look whether a damaged database was replaced, and for what has become too old.

Runs as a command in front of the one that ``RunningDaemon`` starts, and serves in its place.
"""

import asyncio
import sys
from pathlib import Path

import uvloop

from cdrd import drain, purge
from cdrd.config import load_config
from cdrd.daemon import serve
from cdrd.gap_watch import Pace
from cdrd.store_process import StoreProcess

PACE = Pace(settle=0.1, apart=0.1, first_retry=0.1, longest_retry=0.2, note=0.05)

if __name__ == "__main__":
    config = Path(sys.argv[-1])
    drain.LOOK_SECONDS = 0.1  # type: ignore[misc] # Final to everybody else
    purge.AGE_SECONDS = 0.1  # type: ignore[misc] # as above
    purge.HELD_SECONDS = 1.0  # type: ignore[misc] # as above
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(load_config(config), config, StoreProcess(), PACE))
