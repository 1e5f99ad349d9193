"""Sizes that more than one module knows."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

PAYLOAD_BYTES: Final = 64 * KIB
"""The most bytes of a broken stretch that are kept; its full size is always told."""
