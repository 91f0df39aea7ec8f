"""The role `api`: serves `app` until it is told to stop; answers in hand are given, streams and waits end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator

import uvicorn

from api.access import check_open
from api.app import create_app
from api.departures import departing
from api.observer import Observer
from api.ports import Models, SearchStore, Source
from api.removals import running
from api.services import Services
from api.wire import Protocol
from walvec.contracts.errors import ConfigError
from walvec.definitions.ports import Control
from walvec.runtime.lifecycle import pause
from walvec.runtime.metrics import Metrics
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log

log_ = logging.getLogger(__name__)
_GRACE_SECONDS = 5
_PREDECESSOR_SECONDS = 12.0


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's own business: they become `stop`."""
        yield


async def run(
    settings: Settings,
    stop: asyncio.Event,
    *,
    control: Control,
    log: Log,
    source: Source,
    store: SearchStore,
    models: Models,
    metrics: Metrics | None = None,
) -> None:
    """Raises ConfigError when the address cannot be bound or would be open without keys."""
    check_open(settings, await control.definitions.snapshot())
    services = Services(settings, control, log, source, store, models, stop)
    config = uvicorn.Config(
        create_app(services),
        host=settings.api.host,
        port=settings.api.port,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_SECONDS,
        server_header=False,
        http=Protocol,
        proxy_headers=False,  # nothing asks for the client's address
    )
    listening = await _patiently_bound(config, stop)
    if listening is None:
        return
    observer = Observer(services)
    with (metrics or Metrics("api")).source(observer.samples, observer.look):
        ended = asyncio.Event()
        removing = asyncio.create_task(running(services.remover, ended))
        leaving = asyncio.create_task(departing(services.remover, ended))
        try:
            await _serve(config, listening, stop)
        finally:
            ended.set()
            await removing
            await leaving
            await observer.close()
            await services.reach.close()


async def _serve(config: uvicorn.Config, listening: socket.socket, stop: asyncio.Event) -> None:
    server = Server(config)
    log_.info(
        "api listens",
        extra={"action": "listen", "host": config.host, "port": listening.getsockname()[1]},
    )
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    finally:
        stopped.cancel()
        serving.cancel()
        listening.close()


async def _patiently_bound(config: uvicorn.Config, stop: asyncio.Event) -> socket.socket | None:
    """The port may still belong to a predecessor that is ending. None when told to stop meanwhile."""
    until = time.monotonic() + _PREDECESSOR_SECONDS
    while True:
        try:
            return _bound(config)
        except ConfigError:
            if time.monotonic() > until:
                raise
        if await pause(stop, 0.25):
            return None


def _bound(config: uvicorn.Config) -> socket.socket:
    """Bound here, because uvicorn would end the process where the port is taken."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # asyncio turns Nagle's delay off only for sockets that say they are TCP: without it each answer waits for an ACK
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((config.host, config.port))
    except OSError as e:
        found.close()
        raise ConfigError(
            f"the API cannot listen on {config.host}:{config.port}: {e.strerror}.",
            "Stop the program that has the port (another walvec?), or set WALVEC_API__PORT.",
        ) from e
    found.set_inheritable(True)
    return found
