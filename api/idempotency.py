"""`Idempotency-Key` on what creates: a repeat is given the first answer, and nothing is made twice.

Kept are answers of success alone: a request that failed made nothing, and may be mended and sent again. An attempt
prolongs its hold while it works; if its process dies, the next one may try half a minute later.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.responses import Json
from walvec.contracts.errors import WalvecError
from walvec.definitions.answers import HELD_SECONDS, Begun, KeptAnswer, RequestKey
from walvec.definitions.ports import Answers

logger = logging.getLogger(__name__)

CREATES = re.compile(
    r"/v1/(providers/[^/]+/connections|embedding-providers|vector-tables|vector-tables/[^/]+/backfill"
    r"|api-keys|organizations|environments)"
)
_KEY = re.compile(r"[!-~]{1,255}")
_KEPT_HEADERS = (b"content-type", b"etag", b"location")


class Idempotency:
    """Needs the body and the caller in the scope's state."""

    def __init__(self, app: ASGIApp, answers: Answers) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("state", {}).get("caller")
        if scope["type"] != "http" or caller is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("idempotency-key")
        if given is None or not CREATES.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        if not _KEY.fullmatch(given):
            why = "Idempotency-Key: must be 1 to 255 visible ASCII characters."
            await problems.answer(request, 422, "validation_error", why)(scope, receive, send)
            return
        environment = caller.environment.id if caller.environment else ""
        key = RequestKey(caller.organization.id, environment, given)
        what = f"{scope['method']} {scope['path']}"
        digest = hashlib.sha256(what.encode() + b"\n" + scope["state"].get("body", b"")).digest()
        try:
            begun = await self._answers.begin(key, what, digest)
        except WalvecError as e:
            await problems.failure(request, e)(scope, receive, send)
            return
        if begun.state == "new":
            await self._serve(key, begun, scope, receive, send)
        elif begun.state == "done":
            assert begun.answer is not None
            await _replayed(begun.answer)(scope, receive, send)
        else:
            code = "idempotency_in_progress" if begun.state == "in_progress" else "idempotency_key_reused"
            await problems.known(request, code)(scope, receive, send)

    async def _serve(self, key: RequestKey, begun: Begun, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Recorded()
        holding = asyncio.create_task(self._hold(key, begun.attempt))
        try:
            await self._app(scope, receive, answer.take)
        except BaseException:
            await self._quietly(self._answers.abandon, key, begun.attempt)
            raise
        finally:
            holding.cancel()
            await asyncio.wait((holding,))
        if 200 <= answer.status < 300:
            # kept before it is told: whoever hears of it finds it again
            await self._quietly(self._answers.finish, key, begun.attempt, answer.kept())
        else:
            await self._quietly(self._answers.abandon, key, begun.attempt)
        for message in answer.messages:
            await send(message)

    async def _hold(self, key: RequestKey, attempt: str) -> None:
        while True:
            await asyncio.sleep(HELD_SECONDS / 3)
            await self._quietly(self._answers.prolong, key, attempt)

    async def _quietly(self, tell: Callable[..., Awaitable[None]], *what: object) -> None:
        """What was done stays done, whatever becomes of its key: the hold ends by itself."""
        try:
            await tell(*what)
        except WalvecError as e:
            logger.warning("an idempotency key was not settled", extra={"action": "idempotency", "reason": e.message})


class _Recorded:
    """An answer, held back until it is whole."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.status = 0

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.messages.append(message)

    def kept(self) -> KeptAnswer:
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for message in self.messages
            for name, value in message.get("headers", [])
            if name in _KEPT_HEADERS
        }
        body = b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")
        return KeptAnswer(self.status, headers, body.decode())


def _replayed(answer: KeptAnswer) -> Json:
    found = Json(None, status_code=answer.status)
    found.body = answer.body.encode()
    for name in list(found.headers):
        del found.headers[name]
    found.headers.update({**answer.headers, "content-length": str(len(found.body)), "idempotent-replayed": "true"})
    return found
