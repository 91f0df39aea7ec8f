"""A data directory to an open log file: tables, pragmas, damage and what to do about it.

Law: sqlite3's exceptions end here, as LogDamaged, LogUnavailable or ConfigError. A damaged file is kept, never mended
and never deleted. Next: `writer`, `fetching`.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4
from zlib import crc32

from walvec.contracts.errors import ConfigError, LogDamaged, LogUnavailable, NotFound, WalvecError

VERSION = "1"
LOCK_SECONDS = 10
WAL_LIMIT = 64 * 1024**2
"""Size at which the writer empties the write-ahead file of SQLite with some insistence."""

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- AUTOINCREMENT: the number of a deleted topic, member or process never comes back: a late writer hits no other.
CREATE TABLE topics (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL);
CREATE TABLE doomed (topic INTEGER PRIMARY KEY);
CREATE TABLE partitions (topic INTEGER, partition INTEGER, next INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)) WITHOUT ROWID;
CREATE TABLE batches (topic INTEGER NOT NULL, partition INTEGER NOT NULL, base INTEGER NOT NULL, count INTEGER NOT NULL,
    timestamp_ms INTEGER NOT NULL, codec INTEGER NOT NULL, checksum INTEGER NOT NULL, raw_size INTEGER NOT NULL,
    size INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (topic, partition, base));
CREATE TABLE groups (topic INTEGER, name TEXT, PRIMARY KEY (topic, name)) WITHOUT ROWID;
CREATE TABLE offsets (topic INTEGER, name TEXT, partition INTEGER, next INTEGER NOT NULL,
    PRIMARY KEY (topic, name, partition)) WITHOUT ROWID;
CREATE TABLE processes (id INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL, started TEXT NOT NULL,
    place TEXT NOT NULL, port INTEGER NOT NULL, beat REAL NOT NULL);
CREATE TABLE members (id INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, name TEXT NOT NULL,
    process INTEGER NOT NULL);
CREATE INDEX members_of ON members (topic, name);
CREATE TABLE owners (topic INTEGER, name TEXT, partition INTEGER, member INTEGER, generation INTEGER NOT NULL,
    PRIMARY KEY (topic, name, partition)) WITHOUT ROWID;
"""


def log_path(data_dir: Path) -> Path:
    return data_dir / "log.db"


def translate(error: sqlite3.Error, path: Path) -> WalvecError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return LogUnavailable(f"No space is left for the log {path}.", "Free disk space; walvec goes on by itself.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return ConfigError(
            f"The log {path} cannot be written ({error}).",
            "Give this user write access to the data directory, or set WALVEC_DATA_DIR to another one.",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LogUnavailable(f"The log {path} is locked by another process.", "End the process that holds it.")
    return LogUnavailable(f"The log {path} cannot be used now ({error}).", "Check the disk that it is on.")


def damaged(path: Path, reason: str) -> LogDamaged:
    return LogDamaged(
        f"The log {path} is damaged ({reason}). The file is kept as it is.",
        "Stop walvec and run `walvec up --rebackfill`: it moves the file aside and reads all tables again.",
    )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error


def connect(path: Path) -> sqlite3.Connection:
    """A connection for one thread at a time; autocommit, transactions are explicit."""
    connection = sqlite3.connect(
        path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 1000")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
        connection.execute("PRAGMA cache_size = -8192")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def begin(connection: sqlite3.Connection) -> None:
    """Starts a write transaction, waiting for other processes' ones.

    SQLite itself waits in steps of up to 100 ms: a process that commits now and then would starve beside one that
    always does. One millisecond is about a transaction's length.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000}")


def prepare(path: Path) -> str:
    """Makes the file if need be; returns the log's identity."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name("log.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"The data directory {path.parent} cannot be written ({error.strerror}).",
            "Give this user write access to it, or set WALVEC_DATA_DIR to another one.",
        ) from error
    try:
        # Several processes start at once: only one of them makes the tables. The kernel frees the lock of a dead one.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with translated(path):
            return _prepare(path)
    finally:
        os.close(lock)


def _prepare(path: Path) -> str:
    with closing(connect(path)) as connection:
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            os.chmod(path, 0o600)
            connection.execute("PRAGMA page_size = 8192")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES}")
            rows = [("version", VERSION), ("identity", str(uuid4()))]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            connection.execute("COMMIT")
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        if meta.get("version") != VERSION:
            raise ConfigError(
                f"The log {path} has format {meta.get('version')}, this version of walvec knows {VERSION}.",
                "Use the version of walvec that wrote it, or another data directory.",
            )
        # Fails early on a read-only file or disk, and not at the first record.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        return str(meta["identity"])


def check(data_dir: Path, *, seconds: float | None = None) -> None:
    """Reads the whole file, or as much as can be read in so many seconds: its structure, then the records.

    Raises LogDamaged, ConfigError, LogUnavailable; no file is no damage.
    """
    path = log_path(data_dir)
    if not path.exists():
        return
    deadline = None if seconds is None else time.monotonic() + seconds
    with translated(path), closing(connect(path)) as connection:
        connection.set_progress_handler(lambda: deadline is not None and time.monotonic() > deadline, 10_000)
        try:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if answer == "ok":
                answer = _damaged_batch(connection)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            return  # the rest is checked when it is read
    if answer != "ok":
        raise damaged(path, str(answer))


def _damaged_batch(connection: sqlite3.Connection) -> str:
    """`ok`, or where a batch is that does not match its checksum: SQLite itself keeps none of what is inside."""
    if not connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'batches'").fetchone()[0]:
        return "ok"
    for topic, partition, base, checksum, data in connection.execute(
        "SELECT topic, partition, base, checksum, data FROM batches"
    ):
        if crc32(data) != checksum:
            return f"topic {topic}, partition {partition}, offset {base} does not match its checksum"
    return "ok"


def move_aside(data_dir: Path) -> Path:
    """Renames the log's file and its companions; a new log is made at the next start. No process may have it open."""
    path = log_path(data_dir)
    if not path.exists():
        raise NotFound(f"There is no log {path}.", "Check WALVEC_DATA_DIR.")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = path.with_name(f"log.db.aside-{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"log.db.aside-{stamp}-{number}")
    # The write-ahead file first: without its companion the renamed database would miss its newest records.
    for suffix in ("-wal", "-shm", ""):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(target.with_name(target.name + suffix))
    return target


def topic_id(connection: sqlite3.Connection, topic: str) -> tuple[int, int]:
    """Number and partition count. Raises NotFound."""
    row = connection.execute("SELECT id, partitions FROM topics WHERE name = ?", (topic,)).fetchone()
    if row is None:
        raise unknown_topic(topic)
    return int(row[0]), int(row[1])


def unknown_topic(topic: str) -> NotFound:
    return NotFound(f"There is no topic {topic} in the log.", "Apply its vector table again, or check the name.")


def starts(connection: sqlite3.Connection, topic: int) -> dict[int, int]:
    """Earliest kept offset by partition; the next one where nothing is kept."""
    return {
        partition: int(first if first is not None else following)
        for partition, following, first in connection.execute(
            "SELECT p.partition, p.next, (SELECT base FROM batches b WHERE b.topic = p.topic "
            "AND b.partition = p.partition ORDER BY base LIMIT 1) FROM partitions p WHERE p.topic = ?",
            (topic,),
        )
    }
