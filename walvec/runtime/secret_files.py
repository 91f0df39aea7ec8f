"""Secrets that walvec makes itself and keeps in the data directory, readable by its owner alone.

Next: `walvec.definitions.postgres`, which encrypts provider keys and passwords with the secret key.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from walvec.contracts.errors import ConfigError
from walvec.runtime.lock import prepare_data_dir
from walvec.runtime.settings import Settings


def private_file(path: Path, make: Callable[[], str]) -> str:
    """The file's text; made, mode 0600, when it is not there. Two processes that race get the same one."""
    place: Callable[[str, Path], None] = os.link  # whoever comes first wins; a half-written file is never seen
    try:
        text = path.read_text().strip()
        if text:
            return text
        place = os.replace  # an empty file is no secret
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        with os.fdopen(handle, "w") as file:
            file.write(make() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            place(fresh, path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        return path.read_text().strip()
    except OSError as error:
        raise _unreadable(path, error) from error


def secret_keys(settings: Settings) -> list[str]:
    """The configured secret key and those before it, or what was generated into the data directory."""
    if settings.secret_key is not None and settings.secret_key.get_secret_value():
        former = [k.get_secret_value() for k in settings.secret_keys_previous]
        return [settings.secret_key.get_secret_value(), *(k for k in former if k)]
    return KeyFile(settings.data_dir).keys()


class KeyFile:
    """The generated key, one line; while a rotation is under way the new one is below it."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._path = data_dir / "secret.key"

    def keys(self) -> list[str]:
        """Made when there is none."""
        prepare_data_dir(self._data_dir)
        return private_file(self._path, lambda: secrets.token_urlsafe(32)).split()

    @contextlib.contextmanager
    def rotation(self) -> Iterator[tuple[list[str], str]]:
        """(the keys so far, a new one). The new one is in the file before the body uses it, and alone there once the
        body has ended well: whenever the machine stops, the file opens what is stored."""
        handle = os.open(self._data_dir / "secret.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            former, new = self.keys(), secrets.token_urlsafe(32)
            self._write([*former, new])
            yield former, new
            self._write([new])
        finally:
            os.close(handle)

    def _write(self, keys: list[str]) -> None:
        try:
            handle, fresh = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._data_dir)  # mode 0600
            with os.fdopen(handle, "w") as file:
                file.write("".join(f"{key}\n" for key in keys))
                file.flush()
                os.fsync(file.fileno())
            owner = self._path.stat()
            os.chown(fresh, owner.st_uid, owner.st_gid)
            os.replace(fresh, self._path)
            directory = os.open(self._data_dir, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise _unreadable(self._path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read or written: {error.strerror or error}.",
        "Run as the user who owns the data directory, or choose another one with WALVEC_DATA_DIR.",
    )
