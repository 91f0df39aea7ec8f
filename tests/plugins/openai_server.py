"""A local server that speaks OpenAI's embeddings API faithfully, and misbehaves on demand.

`python -m tests.plugins.openai_server --port 9999 --latency 0.05`, or the fixture `openai_server`. Vectors depend on
the text alone. `POST /control` sets faults (fields of `Faults`), `GET /stats` counts, `POST /reset` forgets. Texts can
carry their own fault: `[[reject]]` is answered 400, `[[server]]` 500, `[[nan]]` a vector of NaN, `[[slow]]` never.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}


@dataclass
class Faults:
    """`answers`: how many requests get `status` (-1 = all until reset)."""

    status: int = 0
    answers: int = -1
    code: str = ""
    type: str = ""
    param: str = ""
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)
    latency: float = 0.0
    dimensions: int = 0
    drop: int = 0
    """Vectors left out of each answer."""
    shuffle: bool = False
    floats: bool = False
    """Float lists whatever is asked for."""
    no_index: bool = False
    bad_json: bool = False
    hang_up: bool = False
    body: Any = None
    """Answered as it stands, with status 200 unless `status` is set."""
    nan: bool = False
    max_items: int = 2048
    max_tokens: int = 300_000
    max_text_tokens: int = 8192
    token_limit_per_minute: int = 0
    key: str = ""
    model: str = ""
    no_base64: bool = False
    """An older server: the parameter is refused."""
    harmless: bool = False
    """Texts' own faults do nothing."""


@dataclass
class Stats:
    requests: int = 0
    texts: int = 0
    """Texts answered with a vector, so paid for."""
    texts_received: int = 0
    tokens: int = 0
    refused: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    distinct: int = 0


def vector_of(text: str, dimensions: int) -> np.ndarray:
    """Unit length, the same for the same text in every process."""
    seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
    vector = np.random.default_rng(seed).standard_normal(dimensions).astype("<f4")
    return (vector / np.linalg.norm(vector)).astype("<f4")


def tokens_of(text: str) -> int:
    return max(1, (len(text.encode()) + 3) // 4)


class OpenAIServer:
    """Usable as an async context manager; `url` ends with /v1."""

    def __init__(self, *, port: int = 0, latency: float = 0.0, dimensions: int = 1536) -> None:
        self.port = port
        self.default_latency = latency
        self.default_dimensions = dimensions
        self.faults = Faults()
        self.stats = Stats()
        self.texts: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.hold: asyncio.Event | None = None
        """While set to an unset event, requests wait for it."""
        self._seen: set[str] = set()
        self._cache: dict[tuple[str, int], bytes] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> OpenAIServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=64 * 1024**2)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def reset(self) -> None:
        self.faults, self.stats = Faults(), Stats()
        self.texts.clear()
        self.bodies.clear()
        self._seen.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except (asyncio.IncompleteReadError, ConnectionError):
                    return
                line, *rest = head.decode("latin-1").split("\r\n")
                method, path, _ = line.split(" ", 2)
                headers = {k.lower(): v.strip() for k, _, v in (r.partition(":") for r in rest if r)}
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                answer = await self._answer(method, path, headers, raw)
                if answer is None:
                    return
                status, extra, body = answer
                out = [f"HTTP/1.1 {status} {_REASONS.get(status, 'X')}", "content-type: application/json"]
                out += [f"{k}: {v}" for k, v in extra.items()] + [f"content-length: {len(body)}", "", ""]
                writer.write("\r\n".join(out).encode("latin-1") + body)
                await writer.drain()
        except ConnectionError:
            return
        except asyncio.CancelledError:
            return
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(
        self, method: str, path: str, headers: dict[str, str], raw: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        if path == "/stats":
            return 200, {}, json.dumps(asdict(self.stats)).encode()
        if path == "/reset":
            self.reset()
            return 200, {}, b"{}"
        if path == "/control":
            known = {f.name for f in fields(Faults)}
            for name, value in json.loads(raw or b"{}").items():
                if name not in known:
                    return self._error(400, f"no fault {name}")
                setattr(self.faults, name, value)
            return 200, {}, json.dumps(asdict(self.faults)).encode()
        if path == "/v1/models":
            return 200, {}, json.dumps({"object": "list", "data": []}).encode()
        if method != "POST" or path != "/v1/embeddings":
            return self._error(404, f"no such path: {path}")
        stats = self.stats
        stats.requests += 1
        stats.in_flight += 1
        stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)
        try:
            if self.hold is not None:
                await self.hold.wait()
            latency = self.faults.latency or self.default_latency
            if latency:
                await asyncio.sleep(latency)
            answer = await self._embed(headers, raw)
        finally:
            stats.in_flight -= 1
        if answer is None or answer[0] != 200:
            stats.refused += 1
        return answer

    @staticmethod
    def _error(
        status: int, message: str, *, code: str = "", type_: str = "invalid_request_error", param: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        error = {"message": message, "type": type_, "param": param or None, "code": code or None}
        return status, {}, json.dumps({"error": error}).encode()

    async def _embed(self, headers: dict[str, str], raw: bytes) -> tuple[int, dict[str, str], bytes] | None:
        faults, stats = self.faults, self.stats
        body = json.loads(raw)
        self.bodies.append(body)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        stats.texts_received += len(texts)
        if faults.answers != 0 and (faults.status or faults.hang_up or faults.bad_json or faults.body is not None):
            faults.answers -= 1 if faults.answers > 0 else 0
            if faults.hang_up:
                return None
            if faults.bad_json:
                return 200, {}, b'{"data": [{"embedding"'
            if faults.body is not None:
                return faults.status or 200, dict(faults.headers), json.dumps(faults.body).encode()
            status, _, content = self._error(
                faults.status, faults.message, code=faults.code, type_=faults.type, param=faults.param
            )
            return status, dict(faults.headers), content
        if faults.key and headers.get("authorization") != f"Bearer {faults.key}":
            given = headers.get("authorization", "").removeprefix("Bearer ")
            return self._error(401, f"Incorrect API key provided: {given}.", code="invalid_api_key")
        if faults.model and body.get("model") != faults.model:
            return self._error(404, "The model does not exist.", code="model_not_found")
        if faults.no_base64 and body.get("encoding_format") == "base64":
            return self._error(400, "'encoding_format' base64 is not supported.", param="encoding_format")
        if not texts or any(not isinstance(t, str) or not t for t in texts):
            return self._error(400, "'$.input' is invalid: empty string.", param="input")
        if len(texts) > faults.max_items:
            return self._error(400, f"'$.input' is invalid: array too long, expected at most {faults.max_items}.")
        tokens = [tokens_of(t) for t in texts]
        if sum(tokens) > faults.max_tokens:
            return self._error(
                400,
                f"Requested {sum(tokens)} tokens, max {faults.max_tokens} tokens per request",
                code="max_tokens_per_request",
            )
        if max(tokens) > faults.max_text_tokens:
            return self._error(400, f"This model's maximum context length is {faults.max_text_tokens} tokens.")
        if faults.token_limit_per_minute and stats.tokens + sum(tokens) > faults.token_limit_per_minute:
            status, _, content = self._error(429, "Rate limit reached.", code="rate_limit_exceeded", type_="tokens")
            return status, {"retry-after": "1"}, content
        marked = [] if faults.harmless else texts
        if any("[[reject]]" in t for t in marked):
            return self._error(400, "One of the inputs cannot be embedded.", param="input")
        if any("[[server]]" in t for t in marked):
            return self._error(500, "The server had an error.", type_="server_error")
        if any("[[slow]]" in t for t in marked):
            await asyncio.sleep(3600)
        stats.texts += len(texts)
        stats.tokens += sum(tokens)
        self.texts.extend(texts)
        self._seen.update(texts)
        stats.distinct = len(self._seen)
        return 200, {}, self._vectors(body, texts, sum(tokens))

    def _vectors(self, body: dict[str, Any], texts: list[str], tokens: int) -> bytes:
        faults = self.faults
        dimensions = faults.dimensions or body.get("dimensions") or self.default_dimensions
        as_text = body.get("encoding_format") == "base64" and not faults.floats
        data = []
        for index, text in enumerate(texts):
            raw = self._cache.get((text, dimensions))
            if raw is None:
                raw = self._cache[text, dimensions] = vector_of(text, dimensions).tobytes()
            if faults.nan or ("[[nan]]" in text and not faults.harmless):
                raw = np.full(dimensions, np.nan, dtype="<f4").tobytes()
            found: Any = base64.b64encode(raw).decode() if as_text else np.frombuffer(raw, "<f4").tolist()
            item = {"object": "embedding", "index": index, "embedding": found}
            if faults.no_index:
                del item["index"]
            data.append(item)
        if faults.drop:
            data = data[: -faults.drop]
        if faults.shuffle:
            data.reverse()
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json.dumps({"object": "list", "model": body.get("model"), "data": data, "usage": usage}).encode()


@pytest.fixture
async def openai_server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer() as server:
        yield server


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A local OpenAI-compatible embeddings server.")
    parser.add_argument("--port", type=int, default=9999)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--dimensions", type=int, default=1536)
    args = parser.parse_args()
    async with OpenAIServer(port=args.port, latency=args.latency, dimensions=args.dimensions) as server:
        print(server.url, flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
