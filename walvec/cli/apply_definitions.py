"""What `walvec up` asks of its own API: apply these files, read every table again. Next: `commands.py`, by hand.

Law: what cannot be reached is asked again for ever; what is wrong is an error with its cure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from walvec.contracts.errors import ConfigError, LogDamaged, NotFound, WalvecError
from walvec.definitions import document
from walvec.runtime.lifecycle import pause
from walvec.runtime.settings import Settings
from walvec.transport.local import check, move_aside

logger = logging.getLogger(__name__)

_ALREADY = "backfill_in_progress"
_TIMEOUT_SECONDS = 300.0
_MAX_PAUSE_SECONDS = 10.0


class Refused(WalvecError):
    """The API's "no" to something that no waiting mends."""

    kind = "definition"


def check_files(paths: list[Path]) -> None:
    """Raises ConfigError for a file that is wrong by itself, before anything is started."""
    for path in paths:
        document.load(path)


def check_log(settings: Settings, *, seconds: float | None = None) -> None:
    """Raises LogDamaged for a local log that is (as far as it can be read in so many seconds)."""
    if settings.log.kind == "local":
        check(settings.data_dir, seconds=seconds)


def set_damaged_log_aside(settings: Settings) -> None:
    """The local log, if it is damaged, under another name: a new one is made. Every role has ended before."""
    if settings.log.kind != "local":
        return
    try:
        check(settings.data_dir)
    except LogDamaged as error:
        try:
            kept = move_aside(settings.data_dir)
        except NotFound:
            return
        logger.warning(
            "the damaged log was set aside", extra={"action": "rename", "reason": str(error), "file": str(kept)}
        )


class OwnApi:
    """The API of this `walvec up`."""

    def __init__(self, key: str, url: str, stop: asyncio.Event) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT_SECONDS, trust_env=False)
        self._stop = stop

    async def close(self) -> None:
        await self._client.aclose()

    async def wait(self, path: str) -> None:
        """Until GET `path` is answered with 200 (or stop)."""
        seconds = 0.05
        while not self._stop.is_set():
            try:
                if (await self._client.get(path, timeout=5)).status_code == 200:
                    return
            except httpx.HTTPError as error:
                logger.debug("the API does not answer yet", extra={"action": "retry", "kind": type(error).__name__})
            if await pause(self._stop, seconds):
                return
            seconds = min(seconds * 1.3, 0.5)

    async def apply(self, path: Path) -> None:
        """Applies a file. A source that is down is waited for."""
        wire = {"document": document.load(path).wire()}
        await self._ask("POST", "/v1/apply", wire, subject=path.name)
        logger.info("definitions applied", extra={"action": "apply", "file": path.name})

    async def rebackfill_all(self) -> None:
        """Every vector table is read again and swept."""
        answer = await self._ask("GET", "/v1/status", None, subject="status")
        for table in answer.get("tables", []):
            name = table["name"]
            await self._ask("POST", f"/v1/vector-tables/{name}/backfill", {"sweep": True}, subject=name)

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, *, subject: str) -> Mapping[str, Any]:
        seconds = 0.2
        while not self._stop.is_set():
            try:
                answer = await self._client.request(method, path, json=body)
            except httpx.HTTPError as error:
                reason = type(error).__name__
            else:
                if answer.is_success:
                    found: Mapping[str, Any] = answer.json()
                    return found
                code, message, cure = _error(answer)
                if code == _ALREADY:
                    return {}
                if answer.status_code < 500:
                    raise Refused(f"{subject}: {message}", cure)
                reason = message
            logger.warning(
                "not yet applied, trying again", extra={"action": "retry", "subject": subject, "reason": reason}
            )
            await pause(self._stop, seconds)
            seconds = min(seconds * 2, _MAX_PAUSE_SECONDS)
        raise ConfigError("Stopped before the definitions were applied.")


def _error(answer: httpx.Response) -> tuple[str, str, str]:
    """Code, message and cure of a failure."""
    try:
        error = answer.json()["error"]
        return str(error["code"]), str(error["message"]), str(error.get("resolution") or "")
    except (ValueError, KeyError, TypeError):
        return "", f"HTTP {answer.status_code}", ""
