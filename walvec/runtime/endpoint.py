"""A role's own small HTTP server: /metrics, /health/live, /health/ready, in the role's event loop.

Law: it never disturbs its role. A port that is taken is logged and tried again; a scrape that fails is a 500; whoever
connects has a few seconds to ask. Next: `walvec.cli.roles` runs one beside each role.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from walvec.contracts.errors import WalvecError
from walvec.runtime import measures, retry
from walvec.runtime.lifecycle import pause
from walvec.runtime.measures import Sample
from walvec.runtime.metrics import Metrics
from walvec.runtime.settings import MetricsSettings

_log = logging.getLogger(__name__)
_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 3.0
_AGAIN_SECONDS = 10.0
_MOST_BYTES = 16 * 1024

Question = Callable[[], Awaitable[Any]]
"""Returns when a dependency answers, else raises WalvecError."""


class Health:
    """What a role stands on, asked anew for each scrape and each question whether it is ready."""

    def __init__(self) -> None:
        self._questions: dict[str, Question] = {}
        self._answers: dict[str, str] = {"control_database": "not connected yet", "log": "not opened yet"}
        self._asking: asyncio.Task[None] | None = None

    @contextmanager
    def asks(self, questions: Mapping[str, Question]) -> Iterator[None]:
        """As long as the block lasts."""
        self._questions = dict(questions)
        try:
            yield
        finally:
            self._questions = {}

    def waits(self, reason: str) -> None:
        """The role could not begin, or had to end, since something is away."""
        if not self._questions:
            self._answers = dict.fromkeys(self._answers, reason)

    async def checks(self) -> Mapping[str, str]:
        """ "" for each dependency that answers, else why not. Questions that come together are asked once."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        await asyncio.shield(self._asking)
        return self._answers

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None

    async def _ask(self) -> None:
        questions = self._questions
        if questions:
            found = await asyncio.gather(*(_answer(q) for q in questions.values()))
            self._answers = dict(zip(questions, found, strict=True))

    def samples(self) -> Iterator[Sample]:
        for name, reason in self._answers.items():
            yield measures.DEPENDENCY_UP.of(0 if reason else 1, name)


async def _answer(question: Question) -> str:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await question()
    except TimeoutError:
        return f"no answer within {_ANSWER_SECONDS:g} s"
    except WalvecError as e:
        return str(e)
    return ""


def retries() -> Iterator[Sample]:
    """Of this process, whichever role waited."""
    for kind, count in list(retry.waits.items()):
        yield measures.RETRIES.of(count, kind)


class Endpoint:
    """One role's; without a port in the settings it serves nothing."""

    def __init__(self, role: str, settings: MetricsSettings) -> None:
        self.metrics = Metrics(role)
        self.health = Health()
        self._settings = settings

    async def run(self) -> None:
        """Until cancelled."""
        never = asyncio.Event()
        with self.metrics.source(self.health.samples), self.metrics.source(retries):
            while self._settings.port is not None:
                server = await self._listen()
                if server is not None:
                    async with server:
                        await never.wait()
                await pause(never, _AGAIN_SECONDS)

    async def _listen(self) -> asyncio.Server | None:
        host, port = self._settings.host, self._settings.port
        try:
            server = await asyncio.start_server(self._serve, host, port, limit=_MOST_BYTES)
        except OSError as e:
            _log.error(
                "metrics cannot be served: stop what listens there, or set WALVEC_METRICS__PORT to a free port",
                extra={"action": "listen", "host": host, "port": port, "reason": e.strerror or str(e)},
            )
            return None
        taken = server.sockets[0].getsockname()[1]
        _log.info("metrics are served", extra={"action": "listen", "host": host, "port": taken})
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request per connection."""
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            status, content_type, body = await self._answer(head.decode("latin-1"))
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + (b"" if head.startswith(b"HEAD ") else body)
            )
            async with asyncio.timeout(_REQUEST_SECONDS):
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as e:
            _log.debug("request given up", extra={"action": "request", "kind": type(e).__name__})
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, head: str) -> tuple[str, str, bytes]:
        request, *headers = head.split("\r\n")
        method, _, target = request.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _json("405 Method Not Allowed", {"detail": "only GET is answered here"})
        if path == "/health/live":
            return _json("200 OK", {"status": "ok"})
        if path == "/health/ready":
            checks = await self.health.checks()
            fine = not any(checks.values())
            told = {name: {"ok": not reason, "detail": reason} for name, reason in checks.items()}
            body = {"status": "ok" if fine else "unavailable", "role": self.metrics.role, "checks": told}
            return _json("200 OK" if fine else "503 Service Unavailable", body)
        if path != "/metrics":
            return _json("404 Not Found", {"detail": "there are /metrics, /health/live and /health/ready"})
        accept = next((h.partition(":")[2].strip() for h in headers if h.lower().startswith("accept:")), "")
        try:
            await asyncio.gather(self.health.checks(), self.metrics.look())
            exposition, content_type = self.metrics.exposition(accept)
        except Exception as e:  # noqa: BLE001  a defect of the instruments must not end what they measure
            _log.error("scrape failed", exc_info=e, extra={"action": "scrape"})
            return _json("500 Internal Server Error", {"detail": f"the scrape failed ({type(e).__name__})"})
        return "200 OK", content_type, exposition


def _json(status: str, body: Mapping[str, Any]) -> tuple[str, str, bytes]:
    return status, "application/json", json.dumps(body).encode() + b"\n"
