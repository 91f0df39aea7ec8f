"""A provider's answer is read up to a limit, whatever the server sends."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from embedder.providers import bodies
from embedder.providers.openai import OpenAIProvider
from embedder.providers.port import ProviderSuspect
from walvec.contracts.errors import ProviderStop, ProviderWait

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Stub:
    """A server that answers every request by `answer`; counts the bytes that its clients took."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            await self.answer(writer)
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def asking(answer: Answer, *, timeout: float = 20.0) -> AsyncIterator[tuple[OpenAIProvider, Stub]]:
    stub = Stub(answer)
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    provider = OpenAIProvider("m", 4, api_key=None, base_url=f"http://127.0.0.1:{port}/v1", timeout=timeout)
    try:
        yield provider, stub
    finally:
        await provider.close()
        server.close()
        await server.wait_closed()


def head(status: int = 200, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", "content-type: application/json", *lines, "", ""]).encode()


def without_end(status: int, chunk: bytes, *lines: str, start: bytes = b"") -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head(status, *lines) + start)
        while True:
            writer.write(chunk)
            await writer.drain()

    return answer


def with_body(body: bytes, *lines: str, status: int = 200) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head(status, f"content-length: {len(body)}", *lines) + body)
        await writer.drain()

    return answer


GOOD = json.dumps({"data": [{"index": 0, "embedding": [1.0, 2.0, 3.0, 4.0]}]}).encode()


async def test_an_answer_without_end_is_given_up_and_suspect() -> None:
    async with asking(without_end(200, b" " * 65536)) as (provider, stub):
        with pytest.raises(ProviderSuspect, match="larger than") as told:
            await provider.embed(["a"], kind="document")
        assert told.value.what == "answer"
        await asyncio.wait_for(stub.ended.wait(), 10)  # the connection was closed: nobody goes on reading


async def test_a_failure_without_end_keeps_its_class() -> None:
    async with asking(without_end(429, b"x" * 65536, "retry-after: 7")) as (provider, _):
        with pytest.raises(ProviderWait) as told:
            await provider.embed(["a"], kind="document")
        assert not isinstance(told.value, ProviderSuspect)
        assert told.value.retry_after == 7
    async with asking(without_end(401, b"x" * 65536)) as (provider, _):
        with pytest.raises(ProviderStop):
            await provider.embed(["a"], kind="document")


async def test_an_answer_that_drips_is_not_waited_for_without_end() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head())
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with asking(answer, timeout=0.5) as (provider, _):
        with pytest.raises(ProviderSuspect) as told:
            await asyncio.wait_for(provider.embed(["a"], kind="document"), 10)
        assert told.value.what == "timeout"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_answer_is_read_and_counts_by_what_it_holds(coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zlib.compress
    async with asking(with_body(pack(GOOD), f"content-encoding: {coding}")) as (provider, _):
        found = await provider.embed(["a"], kind="document")
        np.testing.assert_array_equal(found, [[1, 2, 3, 4]])
    bomb = pack(b" " * 64 * 1024 * 1024)
    assert len(bomb) < 100_000
    async with asking(with_body(bomb, f"content-encoding: {coding}")) as (provider, _):
        with pytest.raises(ProviderSuspect, match="larger than"):
            await provider.embed(["a"], kind="document")


@pytest.mark.parametrize(
    ("body", "coding", "said"),
    [
        (gzip.compress(GOOD, mtime=0)[:-9], "gzip", "ends before"),
        (b"no gzip at all", "gzip", "decompressed"),
        (GOOD, "br", "encoding 'br'"),
    ],
)
async def test_an_answer_that_cannot_be_decoded_is_suspect(body: bytes, coding: str, said: str) -> None:
    async with asking(with_body(body, f"content-encoding: {coding}")) as (provider, _):
        with pytest.raises(ProviderSuspect, match=said) as told:
            await provider.embed(["a"], kind="document")
        assert told.value.what == "answer"


@pytest.mark.parametrize(
    ("body", "coding"), [(b"no gzip at all", "gzip"), (gzip.compress(GOOD, mtime=0)[:-9], "gzip"), (b"x", "br")]
)
async def test_a_failure_that_cannot_be_decoded_keeps_its_class(body: bytes, coding: str) -> None:
    async with asking(with_body(body, f"content-encoding: {coding}", status=401)) as (provider, _):
        with pytest.raises(ProviderStop, match="401"):
            await provider.embed(["a"], kind="document")
    async with asking(with_body(body, f"content-encoding: {coding}", "retry-after: 7", status=429)) as (provider, _):
        with pytest.raises(ProviderWait) as told:
            await provider.embed(["a"], kind="document")
        assert (type(told.value), told.value.retry_after) == (ProviderWait, 7)


def test_every_answer_that_is_meant_fits() -> None:
    for texts, dimensions in ((1, 4), (512, 1536), (2048, 3072), (1, 16_000)):
        row = {"object": "embedding", "index": texts, "embedding": [-1.2345678901234567e-08] * dimensions}
        size = texts * (len(json.dumps(row)) + 2) + 1000
        assert size < bodies.most_bytes(texts, dimensions)
        assert bodies.most_bytes(texts, dimensions) < 2 * size + texts * 100_000 + 2_000_000


def test_an_answer_with_a_line_for_each_number_fits() -> None:
    texts, dimensions = 256, 4096
    row = {"object": "embedding", "embedding": [-1.2345678901234567e-08] * dimensions, "index": 0}
    answer = json.dumps({"object": "list", "data": [row] * 2}, indent=4)
    assert len(answer) // 2 * texts < bodies.most_bytes(texts, dimensions)
