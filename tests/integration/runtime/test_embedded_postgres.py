"""The embedded server: found again, recovered, and never blocked by what a killed one left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.plugins.postgres import OPTIONS, PostgresDatabase
from walvec.contracts.errors import ConfigError
from walvec.runtime.embedded_postgres import EmbeddedPostgres
from walvec.runtime.lock import DataDirectoryLock


def test_has_what_walvec_needs(postgres: PostgresDatabase) -> None:
    rows = postgres.execute("SELECT current_setting('wal_level'), '[1,2]'::vector <-> '[1,4]'::vector")
    assert rows == [("logical", 2.0)]


def test_is_found_running_by_a_second_object(own_postgres: PostgresDatabase) -> None:
    server = own_postgres.server
    other = EmbeddedPostgres(server.data_dir)
    assert other.running() == server.running()
    assert other.start() == server.dsn()
    assert other.running() == server.running()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_recovers_after_a_crash_and_keeps_its_address(own_postgres: PostgresDatabase, number: signal.Signals) -> None:
    server, before = own_postgres.server, own_postgres.dsn
    own_postgres.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
    pid = server.running()
    assert pid is not None
    os.kill(pid, number)
    server.start()
    assert own_postgres.dsn == before
    assert own_postgres.execute("SELECT n FROM kept") == [(7,)]


def test_a_pid_file_that_names_a_stranger_does_not_block(own_postgres: PostgresDatabase) -> None:
    server = own_postgres.server
    pid_file = server.directory / "postmaster.pid"
    text = pid_file.read_text().splitlines()
    server.stop()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        pid_file.write_text("\n".join([str(stranger.pid), *text[1:]]) + "\n")
        server.start()
        assert own_postgres.execute("SELECT 1") == [(1,)]


def test_another_port_is_taken_when_the_old_one_is_occupied(own_postgres: PostgresDatabase) -> None:
    import socket

    server = own_postgres.server
    port = server.port
    server.stop()
    with socket.create_server(("127.0.0.1", port)):
        server.start()
        assert server.port != port
        assert own_postgres.execute("SELECT 1") == [(1,)]


def test_a_killed_initdb_is_begun_again(tmp_path: Path) -> None:
    half = tmp_path / "postgres" / "initdb"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(tmp_path, OPTIONS)
    try:
        with psycopg.connect(server.start()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.stop("immediate")


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "thesis.txt").write_text("words")
    with pytest.raises(ConfigError, match="not empty"):
        EmbeddedPostgres(tmp_path).start()
    assert (tmp_path / "postgres" / "thesis.txt").read_text() == "words"


def test_a_directory_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as failure:
        EmbeddedPostgres(tmp_path / "file" / "data").start()
    assert "WALVEC_DATA_DIR" in failure.value.cure


def test_a_password_is_asked_for(postgres: PostgresDatabase) -> None:
    server = postgres.server
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://postgres:guess@127.0.0.1:{server.port}/{postgres.name}")
    assert (server.data_dir / "postgres.password").stat().st_mode & 0o077 == 0


def test_two_walvecs_do_not_share_a_data_directory(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from walvec.runtime.lock import DataDirectoryLock\n"
        "DataDirectoryLock(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"in use by another walvec \\(pid {holder.pid}"):
            DataDirectoryLock(tmp_path).acquire()
        holder.kill()
        holder.wait()
    with DataDirectoryLock(tmp_path):  # what a killed holder left never blocks
        pass
