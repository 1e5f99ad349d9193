"""Turns a login to an S-Series PBX's API into reports that it posts to us, for as long as we live.

The rule that must stay true: the PBX hears of us before its token dies, and where the token is
gone, the posts are too: we log in anew, later each time, and say that some may be missing.
"""

import asyncio
from typing import Final
from urllib.parse import urlsplit

from cdrd.intake import Intake
from cdrd.log import Logger
from cdrd.login import MINUTES, BackOff
from cdrd.pbx_api import NotOffered, Unreachable, keep_holding
from cdrd.s_series import SSeriesApi, TokenGone

HEARTBEAT_SECONDS: Final = 5 * MINUTES
"""The token dies after 30 minutes without one. Source: the vendor's page on the heartbeat."""


class Registration:
    """Keeps one PBX posting to us: the port and the path are the API's to announce."""

    def __init__(
        self,
        pbx: str,
        api: SSeriesApi,
        *,
        intake: Intake,
        log: Logger,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.pbx = pbx
        self._api = api
        self._intake = intake
        self._address = urlsplit(api.base).netloc
        self._log = log
        self._heartbeat_seconds = heartbeat_seconds
        self._back_off = BackOff()
        self.connected = False

    async def run(self) -> None:
        """Hold the registration until cancelled."""
        await keep_holding(
            self._hold_one, self._back_off, self._log, pbx=self.pbx, address=self._address
        )

    async def _hold_one(self) -> None:
        await self._api.login()
        self.connected = True
        log = self._log.bind(pbx=self.pbx, address=self._address)
        log.info("pbx_connected", peer=self._address)
        self._intake.gaps.mended(self.pbx)
        try:
            reason = await self._keep_alive()
        finally:
            self.connected = False
        self._intake.gaps.broke(self.pbx)
        log.warning("registration_lost", reason=reason)

    async def _keep_alive(self) -> str:
        """Send heartbeats until one is in vain; return why it was."""
        api, login = self._api, self._api.logins
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            try:
                await api.heartbeat()
            except TokenGone as error:
                return str(error)
            except (Unreachable, NotOffered) as error:
                api.distrust_token()
                return str(error)
            if api.logins != login:
                return "the token was gone when history was fetched"
            self._back_off.reset()
