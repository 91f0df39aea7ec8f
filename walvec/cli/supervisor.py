"""`walvec up`: settings into a running system: embedded Postgres, four roles that come back, applied definitions.

Law: a role that ends is started again, with back-off up to 10 seconds, for ever; only a definition or a setting that no
waiting mends ends `up` with an error. SIGTERM ends everything within 30 seconds. Next: `roles.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from walvec.cli import apply_definitions, roles
from walvec.cli.control import needs_embedded
from walvec.cli.names import EXIT_CONFIG, EXIT_DAMAGED, ROLES
from walvec.contracts.errors import ConfigError, LogDamaged, WalvecError
from walvec.runtime import readiness
from walvec.runtime.embedded_postgres import EmbeddedPostgres
from walvec.runtime.lifecycle import OWN_KEY, SUPERVISOR, pause, signals
from walvec.runtime.lock import DataDirectoryLock
from walvec.runtime.secret_files import secret_keys
from walvec.runtime.settings import Settings

logger = logging.getLogger(__name__)

_MAX_PAUSE_SECONDS = 10.0
_HEALTHY_SECONDS = 10.0
_CHILD_GRACE_SECONDS = 18.0
_SERVER_GRACE_SECONDS = 6.0
_PORT_PATIENCE_SECONDS = 8.0
_CHECK_SECONDS = 10.0
_PIDS = "roles.json"


class Supervisor:
    """One `walvec up`."""

    def __init__(
        self, settings: Settings, *, file: Path | None, apply: Sequence[Path], in_process: bool, rebackfill: bool
    ) -> None:
        self._settings = settings
        self._file = file
        self._apply = [path.absolute() for path in apply]
        self._in_process = in_process
        self._rebackfill = rebackfill
        self._server = EmbeddedPostgres(settings.data_dir) if needs_embedded(settings) else None
        self._own_key = secrets.token_urlsafe(32)
        if in_process:
            os.environ[OWN_KEY] = self._own_key
        self._stop = asyncio.Event()
        self._failure: WalvecError | None = None
        self._ready = False
        self._children: dict[str, asyncio.subprocess.Process] = {}

    def main(self) -> None:
        """Blocks until a signal. Raises WalvecError when `up` cannot go on."""
        apply_definitions.check_files(self._apply)
        with DataDirectoryLock(self._settings.data_dir):
            asyncio.run(self._run())

    async def _run(self) -> None:
        with signals(self._stop):
            try:
                await self._wait_for_port()
                metrics_port("api", self._settings)  # refused before anything is started
                secret_keys(self._settings)  # made once, before four roles ask for it
                if self._rebackfill:
                    await asyncio.to_thread(apply_definitions.set_damaged_log_aside, self._settings)
                else:
                    await asyncio.to_thread(apply_definitions.check_log, self._settings, seconds=_CHECK_SECONDS)
                if self._apply:
                    readiness.announce(self._settings.data_dir)
                else:
                    readiness.finished(self._settings.data_dir)
                if self._server is not None:
                    await asyncio.to_thread(self._server.start)
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._keep(role)) for role in ROLES]
                    if self._server is not None:
                        tasks.append(group.create_task(self._keep_server(self._server)))
                    opening = group.create_task(self._open())
                    await self._stop.wait()
                    opening.cancel()
                    await self._end_children()
            finally:
                readiness.finished(self._settings.data_dir)
                if self._server is not None:
                    await asyncio.to_thread(self._server.stop, "fast", _SERVER_GRACE_SECONDS)
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: WalvecError) -> None:
        if not self._stop.is_set():  # asked to stop: then nothing is a failure any more
            self._failure = error
        self._stop.set()

    # -- roles -----------------------------------------------------------------------------------------------------

    async def _keep(self, role: str) -> None:
        """Starts the role again whenever it ends."""
        seconds = 0.1
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            began = loop.time()
            code = await (self._run_task(role) if self._in_process else self._run_child(role))
            if self._stop.is_set():
                return
            if code == EXIT_CONFIG and not self._ready:
                self._fail(ConfigError(f"The role {role} cannot start with these settings.", "Its message is above."))
                return
            if code == EXIT_DAMAGED and (damage := await self._damage()) is not None:
                self._fail(damage)
                return
            if loop.time() - began > _HEALTHY_SECONDS:
                seconds = 0.1
            logger.warning(
                "role ended, starting it again",
                extra={"action": "restart", "subject": role, "exit": code, "pause_seconds": round(seconds, 1)},
            )
            await pause(self._stop, seconds)
            seconds = min(seconds * 2, _MAX_PAUSE_SECONDS)

    async def _damage(self) -> WalvecError | None:
        """A log that was only taken away is made anew by the roles: the tables are read again then."""
        try:
            await asyncio.to_thread(apply_definitions.check_log, self._settings)
        except LogDamaged as error:
            return error
        except WalvecError as error:
            logger.warning("the log cannot be checked now", extra={"action": "check", "reason": str(error)})
        return None

    async def _run_child(self, role: str) -> int:
        command = [sys.executable, "-m", "walvec", role]
        if self._file is not None:
            command += ["-c", str(self._file.absolute())]
        environment = {
            **os.environ,
            SUPERVISOR: str(os.getpid()),
            "WALVEC_DATA_DIR": str(self._settings.data_dir),
            "WALVEC_API__PORT": str(self._settings.api.port),
        }
        if role == "api":
            environment[OWN_KEY] = self._own_key
        if (port := metrics_port(role, self._settings)) is not None:
            environment["WALVEC_METRICS__PORT"] = str(port)
        # a session of its own: Ctrl-C reaches the supervisor alone, which ends the roles in order
        child = await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        self._children[role] = child
        self._write_pids()
        if self._stop.is_set():
            child.send_signal(signal.SIGTERM)
        try:
            return await child.wait()
        finally:
            self._children.pop(role, None)

    def _write_pids(self) -> None:
        path = self._settings.data_dir / _PIDS
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({role: child.pid for role, child in self._children.items()}))
        fresh.replace(path)

    async def _run_task(self, role: str) -> int:
        port = metrics_port(role, self._settings)
        settings = self._settings.model_copy(
            update={"metrics": self._settings.metrics.model_copy(update={"port": port})}
        )
        try:
            await roles.run_role(role, settings, self._stop)
        except ConfigError as error:
            typer.echo(f"walvec {role}: {error}", err=True)
            return EXIT_CONFIG
        except LogDamaged as error:
            typer.echo(f"walvec {role}: {error}", err=True)
            return EXIT_DAMAGED
        except Exception:  # what ends a role must not end the others
            logger.exception("role failed", extra={"action": "restart", "subject": role})
            return 1
        return 0

    async def _end_children(self) -> None:
        children = list(self._children.values())
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        waiting = [asyncio.ensure_future(child.wait()) for child in children]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=_CHILD_GRACE_SECONDS)
            if late:
                logger.warning("roles do not end, killing them", extra={"action": "kill", "count": len(late)})
                for child in children:
                    with contextlib.suppress(ProcessLookupError):
                        child.kill()

    # -- the embedded server ---------------------------------------------------------------------------------------

    async def _keep_server(self, server: EmbeddedPostgres) -> None:
        address = server.dsn()
        while not await pause(self._stop, 1.0):
            if await asyncio.to_thread(server.running) is not None:
                continue
            logger.warning("the embedded server ended, starting it again", extra={"action": "restart"})
            try:
                found = await asyncio.to_thread(server.start)
            except WalvecError as error:
                logger.warning("the embedded server does not start", extra={"action": "retry", "reason": str(error)})
                continue
            if found != address:  # its port was taken meanwhile: the roles must learn the new one
                address = found
                for child in self._children.values():
                    child.send_signal(signal.SIGTERM)

    # -- opening ---------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Waits for the API, applies the definitions, and says hello."""
        url = api_url(self._settings)
        api = apply_definitions.OwnApi(self._own_key, url, self._stop)
        try:
            await api.wait("/health/live")
            for path in self._apply:
                await api.apply(path)
            if self._rebackfill:
                await api.rebackfill_all()
            readiness.finished(self._settings.data_dir)
            await api.wait("/health")
        except WalvecError as error:
            self._fail(error)
            return
        finally:
            await api.close()
        if not self._stop.is_set():
            self._ready = True
            typer.echo(self._banner(url))

    async def _wait_for_port(self) -> None:
        """The API's port is free, or gets free soon (orphans of a killed supervisor end by themselves)."""
        host, port = self._settings.api.host, self._settings.api.port
        if port == 0:
            with socket.socket() as probe:
                probe.bind((host, 0))
                chosen = self._settings.api.model_copy(update={"port": int(probe.getsockname()[1])})
            self._settings = self._settings.model_copy(update={"api": chosen})
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PORT_PATIENCE_SECONDS
        while (reason := _occupied(host, port)) is not None:
            if loop.time() > deadline or await pause(self._stop, 0.2):
                raise ConfigError(
                    f"The API cannot listen on {host}:{port}: {reason}.",
                    "Stop what listens there, or choose another port with WALVEC_API__PORT.",
                )

    def _banner(self, url: str) -> str:
        lines = [
            "",
            f"  walvec is up        {url}   (API: {url}/docs)",
            f"  data                {self._settings.data_dir}",
        ]
        if self._server is not None:
            lines.append(f"  embedded Postgres   127.0.0.1:{self._server.port}, password in postgres.password there")
        lines += [
            "  next                walvec apply -f definitions.yaml",
            '                      walvec status   ·   walvec search TABLE "some words"',
            "  stop                Ctrl-C",
            "",
        ]
        return "\n".join(lines)


def metrics_port(role: str, settings: Settings) -> int | None:
    """Of a role under `walvec up`: the four share one setting, and take it and the three ports after it."""
    first = settings.metrics.port
    if not first:
        return first
    port = first + list(ROLES).index(role)
    if port > 65535:
        raise ConfigError(
            f"There is no port {port} for the metrics of {role}.",
            "Under walvec up, WALVEC_METRICS__PORT is the first of four: set it to 65532 or less.",
        )
    return port


def role_pids(data_dir: Path) -> dict[str, int]:
    """Process of each role, as the supervisor last wrote it down."""
    try:
        found: dict[str, int] = json.loads((data_dir / _PIDS).read_text())
    except (OSError, ValueError):
        return {}
    return found


def api_url(settings: Settings) -> str:
    """Where this machine reaches the API."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.api.host, settings.api.host)  # noqa: S104
    return f"http://[{host}]:{settings.api.port}" if ":" in host else f"http://{host}:{settings.api.port}"


def _occupied(host: str, port: int) -> str | None:
    """Why the port cannot be listened on, or None."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None
