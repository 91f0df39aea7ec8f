"""PostgreSQL 15 as the distribution packages it, without pgvector: the older source (`postgres15`).

One server per session, one fresh database per test. Where it is not installed its tests are skipped, and say so;
`.ci/run` installs it where it can.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.plugins.ports import free_port

PLACES = ("/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin", "/opt/homebrew/opt/postgresql@15/bin")
SETTINGS = {
    "wal_level": "logical",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "shared_buffers": "32MB",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
}


class OlderServer:
    """A cluster in a directory of its own; as root it runs as the package's user."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self._programs = programs
        self._directory = directory
        self._port = free_port()

    def dsn(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self._directory, "postgres", "postgres")
        data = self._directory / "data"
        self._run("initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", str(data))
        with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in {**SETTINGS, "port": str(self._port)}.items())
        self._run("pg_ctl", "-w", "-D", str(data), "-l", str(self._directory / "log"), "start")

    def stop(self) -> None:
        pid_file = self._directory / "data" / "postmaster.pid"
        if pid_file.exists():
            self._run("pg_ctl", "-w", "-m", "immediate", "-D", str(pid_file.parent), "stop")

    def _run(self, program: str, *arguments: str) -> None:
        as_whom: dict[str, Any] = {}
        if os.geteuid() == 0:
            as_whom = {"user": "postgres", "group": "postgres", "extra_groups": []}
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            cwd="/",
            check=False,
            **as_whom,
        )
        assert done.returncode == 0, f"{program}: {done.stderr.decode(errors='replace')}"


@dataclass
class OlderDatabase:
    """A fresh database on the older server."""

    server: OlderServer
    name: str

    @property
    def dsn(self) -> str:
        return self.server.dsn(self.name)

    def execute(self, statement: str, *arguments: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement, arguments or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="session")
def postgres15_server() -> Iterator[OlderServer]:
    programs = next((Path(p) for p in PLACES if (Path(p) / "postgres").is_file()), None)
    if programs is None:
        pytest.skip("PostgreSQL 15 IS NOT INSTALLED, older servers go untested: apt-get install postgresql-15")
    directory = Path(tempfile.mkdtemp(prefix="walvec-pytest15-"))
    server = OlderServer(programs, directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def postgres15(postgres15_server: OlderServer) -> Iterator[OlderDatabase]:
    """A fresh database; its slots, sessions and itself are dropped afterwards."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres15_server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield OlderDatabase(postgres15_server, name)
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
            " WHERE database = %s AND active_pid IS NOT NULL",
            (name,),
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", (name,)
        )
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
