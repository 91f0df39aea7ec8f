"""Debezium's Postgres connector in a Kafka Connect standalone worker: what writes a topic that walvec reads.

`DebeziumConnect(dsn, kafka, "prefix", ["public.docs"])` as a context manager. Its offsets lie in a file that a restart
finds again, so that `kill()` and `start()` deliver again what was sent after the last flush of that file.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
import pytest

from tests.plugins import jars, processes
from tests.plugins.kafka import KafkaCluster
from tests.plugins.ports import free_ports

JSON = "org.apache.kafka.connect.json.JsonConverter"
STRING = "org.apache.kafka.connect.storage.StringConverter"
START_SECONDS = 90.0


class DebeziumConnect:
    """One worker with one connector.

    `tables` are "schema.table" names; slot and publication are named after `prefix`, the topics are
    "<prefix>.<schema>.<table>". `options` are the connector's properties and override what is set here;
    `worker` those of Connect.
    """

    def __init__(
        self,
        dsn: str,
        kafka: KafkaCluster,
        prefix: str,
        tables: Sequence[str],
        options: Mapping[str, str] | None = None,
        *,
        schemas: bool = False,
        worker: Mapping[str, str] | None = None,
    ) -> None:
        self.prefix = prefix
        self.slot = self.publication = f"dbz_{prefix.replace('.', '_')}"
        self._dsn = dsn
        self._kafka = kafka
        self._schemas = "true" if schemas else "false"
        self._directory = processes.directory("walvec-connect-")
        self._log = self._directory / "connect.log"
        self._worker = dict(worker or {})
        self._options = {**self._connection(), "table.include.list": ",".join(tables), **(options or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = 0

    def __enter__(self) -> DebeziumConnect:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def topic(self, table: str) -> str:
        return f"{self.prefix}.{table}"

    def start(self, *, wait: bool = True, **options: str) -> DebeziumConnect:
        """Starts the worker, and waits until it streams (the snapshot is done then). Raises RuntimeError.

        `options` change the connector's properties from now on, underscores being dots.
        """
        assert not self.running
        self._options |= {name.replace("_", "."): value for name, value in options.items()}
        [self._rest] = free_ports(1)
        worker = self._file("worker.properties", self._worker_properties())
        connector = self._file("connector.properties", self._options)
        plugins = jars.folder("debezium")
        command = jars.java([jars.folder("connect")], heap="384m", level="info")
        # Connect takes folders of folders; a link keeps it from scanning what else is in the cache.
        (self._directory / "plugins").mkdir(exist_ok=True)
        link = self._directory / "plugins" / "debezium"
        if not link.exists():
            link.symlink_to(plugins)
        main = "org.apache.kafka.connect.cli.ConnectStandalone"
        self._process = processes.spawn([*command, main, str(worker), str(connector)], self._log)
        if wait:
            self.wait_streaming()
        return self

    def stop(self) -> None:
        """An orderly end: its offsets are written."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as kill -9; the server may need a moment to see that the slot is free (a start waits for it)."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
        processes.removed(self._directory)

    def forget_offsets(self) -> None:
        """As a lost offset file: the next start takes a snapshot again."""
        assert not self.running
        (self._directory / "offsets").unlink(missing_ok=True)

    def wait_streaming(self, timeout: float = START_SECONDS) -> None:
        """Until the connector's slot is read. Raises RuntimeError with Connect's log when a task fails."""
        self.wait(self._streams, timeout)

    def wait(self, done: Callable[[], bool], timeout: float = START_SECONDS) -> None:
        """Until `done()`; ends early with Connect's log when the worker or a task has failed."""
        deadline = time.monotonic() + timeout
        while not done():
            if not self.running:
                raise RuntimeError(f"Kafka Connect ended:\n{self.tail()}")
            failed = [task for task in self.states() if task["state"] == "FAILED"]
            if failed:
                raise RuntimeError(f"the connector failed: {failed[0].get('trace', '')[:3000]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"Kafka Connect is not where it should be after {timeout:.0f} s:\n{self.tail()}")
            time.sleep(0.1)

    def states(self) -> list[dict[str, Any]]:
        """Connector and tasks as the worker's REST side tells them; nothing before it is up."""
        url = f"http://127.0.0.1:{self._rest}/connectors/{self.prefix}/status"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return []
        return [found["connector"], *found["tasks"]]

    def tail(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-20000:] if self._log.exists() else ""

    def _streams(self) -> bool:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            found = connection.execute(
                "SELECT 1 FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid"
                " WHERE s.slot_name = %s AND r.state = 'streaming'",
                (self.slot,),
            ).fetchone()
        return found is not None and [task["state"] for task in self.states()] == ["RUNNING", "RUNNING"]

    def _connection(self) -> dict[str, str]:
        server = urlsplit(self._dsn)
        return {
            "name": self.prefix,
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "tasks.max": "1",
            "topic.prefix": self.prefix,
            "database.hostname": str(server.hostname),
            "database.port": str(server.port or 5432),
            "database.user": unquote(server.username or ""),
            "database.password": unquote(server.password or ""),
            "database.dbname": server.path.lstrip("/"),
            "plugin.name": "pgoutput",
            "slot.name": self.slot,
            "publication.name": self.publication,
            "publication.autocreate.mode": "filtered",
            "poll.interval.ms": "20",
            "slot.retry.delay.ms": "500",
            "slot.max.retries": "40",
            "topic.creation.enable": "true",
            "topic.creation.default.partitions": "1",
            "topic.creation.default.replication.factor": "1",
        }

    def _worker_properties(self) -> dict[str, str]:
        return {
            "bootstrap.servers": self._kafka.internal_servers,
            "listeners": f"HTTP://127.0.0.1:{self._rest}",
            "key.converter": JSON,
            "key.converter.schemas.enable": self._schemas,
            "value.converter": JSON,
            "value.converter.schemas.enable": self._schemas,
            "offset.storage.file.filename": str(self._directory / "offsets"),
            "offset.flush.interval.ms": "1000",
            "topic.creation.enable": "true",
            "plugin.path": str(self._directory / "plugins"),
            "plugin.discovery": "service_load",
            **self._worker,
        }

    def _file(self, name: str, properties: Mapping[str, str]) -> Path:
        path = self._directory / name
        escaped = (f"{key}={value}".replace("\\", "\\\\") for key, value in properties.items())
        path.write_text("\n".join(escaped), encoding="utf-8")
        path.chmod(0o600)  # the password is in it
        return path

    def _end(self, sig: signal.Signals) -> None:
        if self._process is not None:
            processes.end(self._process, sig)
            self._process = None


@contextmanager
def installed() -> Iterator[None]:
    """Skips, or fails where CI=true, without Java and the connector's jars."""
    try:
        for name in ("connect", "debezium"):
            jars.folder(name)
        jars.java([])
    except jars.Unavailable as error:
        jars.skip_or_fail(error)
    yield


@pytest.fixture
def debezium() -> Iterator[Callable[..., DebeziumConnect]]:
    """`debezium(dsn, kafka, "prefix", ["public.docs"], {…})`: a connector that has not been started yet."""
    made: list[DebeziumConnect] = []

    def make(*arguments: Any, **options: Any) -> DebeziumConnect:
        made.append(DebeziumConnect(*arguments, **options))
        return made[-1]

    with installed():
        yield make
    for connect in made:
        connect.close()
