"""OpenAI, and every server that speaks its embeddings API: one request, one answer, no retries of its own.

Retrying is `dispatch`'s business, shared by all tables; what an answer means stands in `answers`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import orjson

from embedder.packing import Limits
from embedder.providers import answers, bodies
from embedder.providers.port import Kind, ProviderSuspect
from walvec.contracts.errors import ProviderRejectedInput, ProviderStop, ProviderWait
from walvec.runtime.addresses import AddressRefused

BASE_URL = "https://api.openai.com/v1"
# model -> (dimensions, whether they can be chosen)
CATALOGUE: dict[str, tuple[int, bool]] = {
    "text-embedding-3-small": (1536, True),
    "text-embedding-3-large": (3072, True),
    "text-embedding-ada-002": (1536, False),
}
LIMITS = Limits(max_items=512, max_tokens=280_000, max_bytes=0, max_in_flight=4, max_text_tokens=8192)
_TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=None)


class OpenAIProvider:
    """`base_url` includes `/v1`, as in OpenAI's own SDK. The key is never part of an error or a log line."""

    def __init__(
        self,
        model: str,
        dimensions: int,
        *,
        api_key: str | None,
        base_url: str,
        limits: Limits = LIMITS,
        timeout: httpx.Timeout | float = _TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._model = model
        self._dimensions = dimensions
        self._secret = api_key
        self._url = base_url.rstrip("/") + "/embeddings"
        self._limits = limits
        self._base64 = True
        self._tokens: int | None = None
        known = CATALOGUE.get(model)
        self._send_dimensions = known is not None and known[1]
        self._unknown = known is None
        # each piece of a body that drips comes in time: the whole of it must, too
        self._body_seconds = timeout.read if isinstance(timeout, httpx.Timeout) else timeout
        self._client = httpx.AsyncClient(
            timeout=timeout,
            transport=transport,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def tokens(self) -> int | None:
        return self._tokens

    async def embed(self, texts: Sequence[str], *, kind: Kind) -> np.ndarray:
        as_base64, with_dimensions = self._base64, self._send_dimensions
        status, headers, raw = await self._post(texts)
        if status != 200:
            error = answers.failure(status, headers, raw, items=len(texts), now=time.time(), secret=self._secret)
            if as_base64 and status in (400, 422) and "encoding_format" in str(error):
                self._base64 = False  # an older compatible server: float lists from now on
                return await self.embed(texts, kind=kind)
            raise error
        try:
            found = answers.vectors(raw, count=len(texts), dimensions=self._dimensions, secret=self._secret)
            if found.tokens is not None:
                self._tokens = (self._tokens or 0) + found.tokens
            return found.matrix
        except ProviderSuspect as e:
            if e.what == "dimensions" and self._unknown and not with_dimensions:
                self._send_dimensions = True  # it gives another size by itself: ask for the wanted one from now on
                return await self.embed(texts, kind=kind)
            raise

    async def _post(self, texts: Sequence[str]) -> tuple[int, httpx.Headers, bytes]:
        body: dict[str, Any] = {"model": self._model, "input": list(texts)}
        if self._base64:
            body["encoding_format"] = "base64"
        if self._send_dimensions:
            body["dimensions"] = self._dimensions
        headers = {"content-type": "application/json", "accept-encoding": bodies.ACCEPTED}
        if self._secret:
            headers["authorization"] = f"Bearer {self._secret}"
        try:
            content = orjson.dumps(body)
        except TypeError as e:
            raise ProviderRejectedInput("the text is not valid Unicode.") from e
        try:
            async with self._client.stream("POST", self._url, content=content, headers=headers) as response:
                raw = await self._read(response, len(texts))
        except (httpx.TimeoutException, TimeoutError) as e:
            raise ProviderSuspect(f"the provider did not answer in time ({type(e).__name__}).", "timeout") from e
        except AddressRefused as e:
            raise ProviderStop(e.message, e.cure) from e
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeError) as e:
            raise ProviderStop(
                f"the provider cannot be asked ({type(e).__name__}).", "Check the provider's base_url and api_key."
            ) from e
        except httpx.HTTPError as e:
            raise ProviderWait(f"the provider cannot be reached ({type(e).__name__}).") from e
        return response.status_code, response.headers, raw

    async def _read(self, response: httpx.Response, texts: int) -> bytes:
        """A failure's body only as far as it is of use: what it means stands in its status and its first words."""
        good = response.status_code == 200
        limit = bodies.most_bytes(texts, self._dimensions) if good else bodies.FAILURE_BYTES
        try:
            async with asyncio.timeout(self._body_seconds):
                return await bodies.read(response.aiter_raw(), limit, response.headers.get("content-encoding"))
        except bodies.BodyTooLarge as e:
            if not good:
                return e.start
            raise ProviderSuspect(
                f"the provider's answer to {texts} texts is larger than {limit} bytes.",
                "answer",
                cure="Check the provider's base_url: it may not be a server of embeddings.",
            ) from None
        except (ProviderSuspect, TimeoutError):
            if good:
                raise
            return b""

    async def close(self) -> None:
        await self._client.aclose()
