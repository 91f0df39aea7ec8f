"""One walvec per data directory: a file lock that the kernel releases with the process, so none is ever stale.

Next: `embedded_postgres.py`, which is started while the lock is held.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from walvec.contracts.errors import ConfigError


class DataDirectoryLock:
    """Held from `acquire` to `release`, or to the end of the process, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._path = data_dir / "walvec.lock"
        self._file: int | None = None

    def acquire(self) -> None:
        prepare_data_dir(self._data_dir)
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unwritable(self._data_dir, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "pid unknown"
            os.close(handle)
            raise ConfigError(
                f"The data directory {self._data_dir} is in use by another walvec ({holder}).",
                "Stop that one, or choose another directory with WALVEC_DATA_DIR.",
            ) from None
        except OSError as error:
            os.close(handle)
            raise unwritable(self._data_dir, error) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
        self._file = handle

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> DataDirectoryLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def prepare_data_dir(data_dir: Path) -> None:
    """Makes the directory and proves that it can be written. Raises ConfigError."""
    try:
        if not data_dir.is_dir():
            data_dir.mkdir(parents=True, mode=0o755 if os.geteuid() == 0 else 0o700)
        probe = data_dir / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise unwritable(data_dir, error) from error


def unwritable(data_dir: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"The data directory {data_dir} cannot be written: {error.strerror or error}.",
        "Give this user the right to write there, or choose another directory with WALVEC_DATA_DIR.",
    )
