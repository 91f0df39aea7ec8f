"""A role's own HTTP server: answers, and never disturbs its role."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from walvec.contracts.errors import LogUnavailable
from walvec.runtime import endpoint as module
from walvec.runtime import measures
from walvec.runtime.endpoint import Endpoint
from walvec.runtime.settings import MetricsSettings


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


@asynccontextmanager
async def served(port: int | None) -> AsyncIterator[tuple[Endpoint, httpx.AsyncClient]]:
    endpoint = Endpoint("sink", MetricsSettings(port=port))
    task = asyncio.create_task(endpoint.run())
    transport = httpx.AsyncHTTPTransport(retries=5)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", transport=transport) as client:
            yield endpoint, client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def answers() -> None:
    return


async def away() -> None:
    raise LogUnavailable("no broker answers at 10.0.0.1:9092.", "Start it.")


async def test_ready_says_what_is_waited_for_and_live_does_not_care(port: int) -> None:
    async with served(port) as (endpoint, client):
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
        assert (await client.get("/health/live")).json() == {"status": "ok"}
        endpoint.health.waits("the control database does not answer.")
        assert "does not answer" in (await client.get("/health/ready")).json()["checks"]["log"]["detail"]
        with endpoint.health.asks({"control_database": answers, "log": away}):
            ready = await client.get("/health/ready")
            assert ready.status_code == 503
            assert ready.json()["checks"] == {
                "control_database": {"ok": True, "detail": ""},
                "log": {"ok": False, "detail": "no broker answers at 10.0.0.1:9092. Start it."},
            }
            text = (await client.get("/metrics")).text
            assert 'walvec_dependency_up{dependency="log"} 0.0' in text
            assert 'walvec_dependency_up{dependency="control_database"} 1.0' in text
        with endpoint.health.asks({"control_database": answers, "log": answers}):
            assert (await client.get("/health/ready")).json()["status"] == "ok"


async def test_a_dependency_that_hangs_is_not_ready(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.05)
    async with served(port) as (endpoint, client):
        with endpoint.health.asks({"control_database": answers, "log": asyncio.Event().wait}):
            ready = await client.get("/health/ready")
        assert ready.json()["checks"]["log"] == {"ok": False, "detail": "no answer within 0.05 s"}


async def test_a_port_that_is_taken_is_told_and_tried_again(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.01)
    logged = asyncio.Event()
    handler = logging.Handler()
    handler.emit = lambda record: logged.set()  # type: ignore[method-assign]
    logger = logging.getLogger("walvec.runtime.endpoint")
    logger.addHandler(handler)
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            task = asyncio.create_task(Endpoint("cdc", MetricsSettings(port=port)).run())
            await asyncio.wait_for(logged.wait(), 5)
            assert "set WALVEC_METRICS__PORT to a free port" in caplog.text
            assert not task.done()
        async with httpx.AsyncClient() as client:
            async with asyncio.timeout(5):
                while True:
                    try:
                        assert (await client.get(f"http://127.0.0.1:{port}/health/live")).status_code == 200
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    finally:
        logger.removeHandler(handler)


async def test_without_a_port_nothing_is_served() -> None:
    endpoint = Endpoint("cdc", MetricsSettings())
    await asyncio.wait_for(endpoint.run(), 1)


async def test_a_defect_in_the_counts_is_an_answer_and_not_the_end(port: int) -> None:
    async with served(port) as (endpoint, client):
        with endpoint.metrics.source(lambda: [measures.STORE_APPLY.of(1, "t")]):
            assert (await client.get("/metrics")).status_code == 500
        assert (await client.get("/metrics")).status_code == 200


async def test_other_questions_are_refused_in_good_order(port: int) -> None:
    async with served(port) as (_, client):
        assert (await client.get("/")).status_code == 404
        assert (await client.post("/metrics")).status_code == 405
        head = await client.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 100_000)
        assert await reader.read() == b""
        writer.close()
        assert (await client.get("/health/live")).status_code == 200
