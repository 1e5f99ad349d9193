"""The ways in which a record comes, by the names that its row, its line and quarantine tell."""

from typing import Final

TCP: Final = "tcp"
"""The PBX connected to us."""

DIAL: Final = "dial"
"""We connected to the PBX."""

HTTP: Final = "http"
"""The PBX posted."""

WEBHOOK: Final = "webhook"
"""The PBX posted and signed."""

WEBSOCKET: Final = "websocket"
"""A P-Series PBX's WebSocket, which we opened."""

HISTORY: Final = "history"
"""What a PBX was asked for."""

IMPORT: Final = "import"
"""A file."""

PORTAL: Final = "portal"
"""A portal's table, which we read."""

LIVE: Final = frozenset((TCP, DIAL, HTTP, WEBHOOK, WEBSOCKET))
"""A record comes when its call is released."""

READ_AGAIN: Final = (IMPORT, PORTAL, HISTORY)
"""The same may come any number of times."""
