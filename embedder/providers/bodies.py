"""An HTTP answer's body, read up to a limit: a server that never ends costs a request, not the memory.

What counts is the decoded size: a few compressed bytes may stand for gigabytes. Next: `answers`.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable

from embedder.providers.port import ProviderSuspect

ACCEPTED = "gzip"
"""Not deflate, which servers spell in two ways; the one that is meant is read where it comes unasked."""
FAILURE_BYTES = 256 * 1024
"""Of an answer that is no success: its message is all that is wanted of it."""
_BASE = 1024 * 1024
_PER_NUMBER = 48  # one of JSON is 26 characters at most, with comma and space; some servers indent each
_FEWEST_NUMBERS = 2048  # a model that gives more than the wanted dimensions shall be told so
_PER_TEXT = 1024


def most_bytes(texts: int, dimensions: int) -> int:
    """More than any answer with that many vectors needs, however it is written."""
    return _BASE + texts * (_PER_TEXT + _PER_NUMBER * max(dimensions, _FEWEST_NUMBERS))


class BodyTooLarge(Exception):
    """`start`: what was read before the limit."""

    def __init__(self, start: bytes) -> None:
        super().__init__("the body is larger than the limit")
        self.start = start


class Body:
    """Takes chunks as they come. Raises BodyTooLarge, and ProviderSuspect for what cannot be decoded."""

    def __init__(self, limit: int, encoding: str | None) -> None:
        self._left = limit
        self._parts: list[bytes] = []
        coding = (encoding or "identity").strip().lower()
        if coding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise ProviderSuspect(f"the provider answered in the encoding {coding[:40]!r}.", "answer")
        # 47: gzip or zlib, whichever it is
        self._decoder = None if coding == "identity" else zlib.decompressobj(47)

    def feed(self, chunk: bytes) -> None:
        found = chunk if self._decoder is None else self._decoded(self._decoder, chunk)
        self._parts.append(found[: self._left])
        if len(found) > self._left:
            raise BodyTooLarge(b"".join(self._parts))
        self._left -= len(found)

    def _decoded(self, decoder: zlib._Decompress, chunk: bytes) -> bytes:
        try:
            return decoder.decompress(chunk, self._left + 1)
        except zlib.error as e:
            raise ProviderSuspect("the provider's answer cannot be decompressed.", "answer") from e

    def whole(self) -> bytes:
        if self._decoder is not None and self._parts and not self._decoder.eof:
            raise ProviderSuspect("the provider's answer ends before its compressed data does.", "answer")
        return b"".join(self._parts)


async def read(chunks: AsyncIterable[bytes], limit: int, encoding: str | None) -> bytes:
    """Raw chunks -> the decoded body. Raises as `Body`, and whatever the chunks raise."""
    body = Body(limit, encoding)
    async for chunk in chunks:
        body.feed(chunk)
    return body.whole()
