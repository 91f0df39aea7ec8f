"""Is the log there, said within a few seconds and in words, although a broker that is away takes longer to give up."""

from __future__ import annotations

import asyncio

from walvec.contracts.errors import LogUnavailable, WalvecError
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log


class LogReach:
    """One question at a time is on its way; the reason that the last one failed with is kept for who cannot wait."""

    def __init__(self, log: Log, settings: Settings) -> None:
        self._log = log
        kafka = settings.log.kind == "kafka"
        self._name = f"Kafka at {settings.kafka.bootstrap_servers}" if kafka else "the log"
        self._asking: asyncio.Task[str] | None = None
        self._reason = ""

    async def check(self, seconds: float) -> None:
        """Raises LogUnavailable (and LogDamaged) with what is known after `seconds`."""
        asking = self._ask()
        await asyncio.wait((asking,), timeout=seconds)
        if not asking.done():
            raise self.silent(seconds)
        error = asking.exception()
        if error is not None:
            raise error

    def silent(self, seconds: float) -> LogUnavailable:
        """For whoever has waited for that long for something else."""
        self._ask()  # the next one to wait may hear the reason
        return LogUnavailable(f"{self._name} does not answer within {seconds:g} s.", self._reason)

    def _ask(self) -> asyncio.Task[str]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._identity())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._asking

    async def _identity(self) -> str:
        try:
            found = await self._log.identity()
        except WalvecError as e:
            self._reason = str(e)
            raise
        self._reason = ""
        return found

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
