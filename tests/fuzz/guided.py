"""Turns a target's seeds into a corpus that goes through its code in ever more ways (atheris).

``python -m tests.fuzz.guided TARGET INPUTS DIRECTORY``, in a process of its own: it ends with the
search, and the instrumented code takes three times as long.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cdrd"]):
    from tests.fuzz.targets import TARGETS

from tests.fuzz.mutation import MOST_BYTES

WORDS = (
    *(r"{\"action\":", r"{\"event\":", r"{\"type\":30012", r"\"NewCdr\"", r"\\_", r"}{", r"\x0a"),
    *(r"\"callid\":", r"\"timestart\":", r"Content-Length:", r"chunked", r"HTTP/1.1\x0d\x0a"),
    *(r"\xc2\xa0", r"\xef\xbb\xbf", r"\x1c", r"\x00", r"\xff", r"\x0d\x0a\x0d\x0a", r"\\u0000"),
)
"""What chance alone would seldom spell."""


def fuzz(name: str, inputs: int, directory: Path) -> None:
    """Search until the inputs are used up or one fails."""
    with tempfile.TemporaryDirectory() as temporary:
        words, seeds = Path(temporary, "words"), Path(temporary, "seeds")
        words.write_text("".join(f'"{word}"\n' for word in WORDS))
        seeds.mkdir()
        for number, seed in enumerate(TARGETS[name].seeds):
            (seeds / str(number)).write_bytes(seed)
        options = {
            "runs": inputs,
            "max_len": MOST_BYTES,
            "timeout": 60,  # seconds for one input
            "dict": words,
            "artifact_prefix": f"{directory}/found/",
            "print_final_stats": 1,
        }
        flags = [f"-{option}={value}" for option, value in options.items()]
        corpora = [str(directory / "corpus"), str(seeds)]
        atheris.Setup([name, *flags, *corpora], TARGETS[name].check)
        atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
