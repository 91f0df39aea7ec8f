"""Secrets that walvec makes itself and keeps in the data directory, readable by its owner alone.

Next: `walvec.definitions.postgres`, which encrypts provider keys and passwords with the secret key.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable
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


def secret_key(settings: Settings) -> str:
    """The configured secret key, or the one that was generated into the data directory."""
    if settings.secret_key is not None and settings.secret_key.get_secret_value():
        return settings.secret_key.get_secret_value()
    prepare_data_dir(settings.data_dir)
    return private_file(settings.data_dir / "secret.key", lambda: secrets.token_urlsafe(32))


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read or written: {error.strerror or error}.",
        "Run as the user who owns the data directory, or choose another one with WALVEC_DATA_DIR.",
    )
