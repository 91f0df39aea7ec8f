"""Roles as separate processes, each with an empty data directory of its own, as on machines that share only Kafka, the
control database, the source and the store."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.acceptance.harness import WALVEC, Walvec, pytest_fail, wait_until
from tests.plugins.kafka import KafkaCluster


class Machines(Walvec):
    """`start_role("embedder", 2)` starts a second one. Commands and questions go to the one `api`."""

    def __init__(self, directory: Path, *, dsn: str, control: str, kafka: KafkaCluster | str, **env: str) -> None:
        servers = {"bootstrap.servers": kafka} if isinstance(kafka, str) else kafka.client_properties
        properties = {f"WALVEC_KAFKA__{k.upper().replace('.', '_')}": v for k, v in servers.items()}
        super().__init__(
            directory,
            control=control,
            store=dsn,
            env={
                "WALVEC_SECRET_KEY": "the same on every machine",
                "WALVEC_LOG__KIND": "kafka",
                "PYTHONFAULTHANDLER": "1",  # a crash in the Kafka client says where
                "WALVEC_KAFKA__PARTITIONS": "4",
                **properties,
                **env,
            },
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_role(self, role: str, number: int = 1, **env: str) -> str:
        name = f"{role}-{number}"
        home = self.directory / name
        home.mkdir(exist_ok=True)
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*WALVEC, role],
                env=self.env | {"WALVEC_DATA_DIR": str(home / "data")} | env,
                cwd=home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return name

    def start_all(self, *roles: str) -> None:
        for role in roles or ("api", "cdc", "embedder", "sink"):
            self.start_role(role)
        self.wait_listening()

    def wait_listening(self, timeout: float = 60) -> None:
        def listening() -> bool:
            code = self.processes["api-1"].poll()
            if code is not None:
                pytest_fail(f"the api ended with {code}:\n{self.tail()}")
            return httpx.get(f"{self.url}/health/live", timeout=5).status_code == 200

        wait_until(listening, timeout=timeout, what="GET /health/live = 200")

    def apply(self, document: Mapping[str, object], *args: str) -> subprocess.CompletedProcess[str]:
        return self.run("apply", "-f", str(self.definitions(document)), *args)

    def kill_one(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def end_one(self, name: str) -> int:
        """SIGTERM; its exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=40)

    def log_of(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def tail(self, lines: int = 40) -> str:
        found = [f"{name} ended with {p.poll()}" for name, p in self.processes.items() if p.poll() is not None]
        for path in sorted(self.directory.glob("*.log")):
            found += [f"--- {path.stem}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(found)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        self.processes.clear()


@contextmanager
def machines(directory: Path, *, dsn: str, control: str, kafka: KafkaCluster | str, **env: str) -> Iterator[Machines]:
    directory.mkdir(parents=True, exist_ok=True)
    found = Machines(directory, dsn=dsn, control=control, kafka=kafka, **env)
    try:
        yield found
    finally:
        found.close()
