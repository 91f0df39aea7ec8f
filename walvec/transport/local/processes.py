"""Which processes use the log, and which of them are dead: rows with pid, start and last sign of life.

Law: a process is known by its pid *and* its start, so a reused pid is no trap; a pid of another machine or container
says nothing, there only the lease counts. Times are the machine's monotonic clock, which all its processes share.
Next: `groups` frees what a dead process owned.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessRow:
    id: int
    pid: int
    started: str
    place: str
    port: int
    beat: float


@cache
def place() -> str:
    """Where a pid means something: this boot of this machine, this pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


def started(pid: int) -> str | None:
    """When the process started, as an opaque text; None = there is no such process (a zombie is none)."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in parentheses may hold anything, parentheses too; state and start are fields 3 and 22.
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in "ZXx" else fields[19]
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def is_dead(row: ProcessRow, lease_seconds: float, now: float) -> bool:
    if row.place == place() and started(row.pid) != row.started:
        return True
    # A beat in the future was set before a reboot.
    return not 0 <= now - row.beat <= lease_seconds


def rows(connection: sqlite3.Connection) -> list[ProcessRow]:
    return [
        ProcessRow(*row)
        for row in connection.execute("SELECT id, pid, started, place, port, beat FROM processes ORDER BY id")
    ]


def ports(connection: sqlite3.Connection, but: int | None) -> list[int]:
    """Where those wait who want to hear of a commit."""
    found = connection.execute("SELECT id, port FROM processes WHERE port > 0")
    return [port for identity, port in found if identity != but]


def enrol(connection: sqlite3.Connection, port: int) -> int:
    pid = os.getpid()
    cursor = connection.execute(
        "INSERT INTO processes (pid, started, place, port, beat) VALUES (?, ?, ?, ?, ?)",
        (pid, started(pid) or "", place(), port, time.monotonic()),
    )
    return int(cursor.lastrowid or 0)


def beat(connection: sqlite3.Connection, process: int) -> bool:
    """False: this process was taken for dead and struck off."""
    changed = connection.execute("UPDATE processes SET beat = ? WHERE id = ?", (time.monotonic(), process))
    return changed.rowcount == 1


def strike_off(connection: sqlite3.Connection, process: int) -> set[int]:
    """Removes a process and its members; what they owned is free. Returns the topics concerned."""
    topics = {row[0] for row in connection.execute("SELECT topic FROM members WHERE process = ?", (process,))}
    connection.execute("DELETE FROM members WHERE process = ?", (process,))
    connection.execute("DELETE FROM processes WHERE id = ?", (process,))
    return topics


def bury(connection: sqlite3.Connection, me: int | None, lease_seconds: float) -> set[int]:
    """Strikes off every dead process. Returns the topics concerned."""
    now = time.monotonic()
    topics: set[int] = set()
    for row in rows(connection):
        if row.id != me and is_dead(row, lease_seconds, now):
            topics |= strike_off(connection, row.id)
    return topics
