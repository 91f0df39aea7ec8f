"""Answers of requests that carry an idempotency key, kept so that a repeat is given the same one.

A key is held by one attempt at a time, for a while that the attempt prolongs: one that died lets go by itself. Bodies
are encrypted: an answer may show an API key, which is kept nowhere else. After a day an answer is forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from walvec.contracts.errors import ConfigError
from walvec.definitions.pool import Pool
from walvec.definitions.rotation import in_force
from walvec.definitions.secrets import Secrets, kept_answer

HELD_SECONDS = 30.0
KEPT_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A client's key, in its organization and environment."""

    org_id: str
    environment: str
    key: str


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    status: int
    headers: Mapping[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Begun:
    """new: serve it, then `finish` or `abandon`. done: `answer` is what it was told. reused: of another request."""

    state: Literal["new", "done", "in_progress", "reused"]
    attempt: str = ""
    answer: KeptAnswer | None = None


_OURS = "org_id = %(org_id)s AND environment = %(environment)s AND key = %(key)s"
_BEGIN = """
INSERT INTO walvec_control.kept_answers AS k (org_id, environment, key, request, request_hash, attempt, held_until)
VALUES (%(org_id)s, %(environment)s, %(key)s, %(request)s, %(digest)s, %(attempt)s, now() + %(held)s * interval '1 s')
ON CONFLICT (org_id, environment, key) DO UPDATE SET attempt = excluded.attempt, held_until = excluded.held_until
WHERE k.status IS NULL AND k.held_until < now() AND k.request_hash = excluded.request_hash
RETURNING attempt
"""


class ControlAnswers:
    """Implements `ports.Answers`."""

    def __init__(self, pool: Pool, secrets: Secrets) -> None:
        self._pool = pool
        self._secrets = secrets

    async def begin(self, key: RequestKey, request: str, digest: bytes) -> Begun:
        attempt = uuid4().hex
        given = {**_fields(key), "request": request, "digest": digest, "attempt": attempt, "held": HELD_SECONDS}
        async with self._pool.transaction() as conn:
            await conn.execute(
                "DELETE FROM walvec_control.kept_answers WHERE created_at < now() - %s * interval '1 s'", [KEPT_SECONDS]
            )
            if await (await conn.execute(_BEGIN, given)).fetchone():
                return Begun("new", attempt)
            row = await (
                await conn.execute(
                    f"SELECT request_hash, status, answer FROM walvec_control.kept_answers WHERE {_OURS}".encode(),
                    given,
                )
            ).fetchone()
        if row is None:  # it was abandoned in this very moment
            return Begun("in_progress")
        if bytes(row[0]) != digest:
            return Begun("reused")
        if row[1] is None:
            return Begun("in_progress")
        try:
            kept = json.loads(self._secrets.decrypt(bytes(row[2]), _where(key)))
        except ConfigError:  # the secret key was changed since: what was told is not known any more
            return Begun("reused")
        return Begun("done", answer=KeptAnswer(int(row[1]), kept["headers"], kept["body"]))

    async def prolong(self, key: RequestKey, attempt: str) -> None:
        await self._change(key, attempt, "UPDATE {} SET held_until = now() + %(held)s * interval '1 s'")

    async def finish(self, key: RequestKey, attempt: str, answer: KeptAnswer) -> None:
        text = json.dumps({"headers": dict(answer.headers), "body": answer.body})
        statement = "UPDATE walvec_control.kept_answers SET status = %(status)s, answer = %(answer)s"
        async with self._pool.transaction() as conn:
            await in_force(conn, self._secrets)
            sealed = self._secrets.encrypt(text, _where(key))
            values = {**_fields(key), "attempt": attempt, "status": answer.status, "answer": sealed}
            await conn.execute(f"{statement} WHERE {_OURS} AND attempt = %(attempt)s".encode(), values)

    async def abandon(self, key: RequestKey, attempt: str) -> None:
        await self._change(key, attempt, "DELETE FROM {}")

    async def _change(self, key: RequestKey, attempt: str, statement: str, **values: Any) -> None:
        text = f"{statement.format('walvec_control.kept_answers')} WHERE {_OURS} AND attempt = %(attempt)s"
        async with self._pool.transaction() as conn:
            await conn.execute(text.encode(), {**_fields(key), "attempt": attempt, "held": HELD_SECONDS, **values})


def _fields(key: RequestKey) -> dict[str, Any]:
    return {"org_id": key.org_id, "environment": key.environment, "key": key.key}


def _where(key: RequestKey) -> str:
    return kept_answer(key.org_id, key.environment, key.key)
