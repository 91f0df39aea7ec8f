"""Says across processes that definitions are being applied: `GET /health` is not 200 before they are.

The supervisor announces, the API asks. A killed supervisor's mark means nothing, since it carries its pid.
"""

from __future__ import annotations

import os
from pathlib import Path


def _mark(data_dir: Path) -> Path:
    return data_dir / "applying"


def announce(data_dir: Path) -> None:
    """From now on `applying` is true, until `finished` or the end of this process."""
    _mark(data_dir).write_text(f"{os.getpid()}\n")


def finished(data_dir: Path) -> None:
    _mark(data_dir).unlink(missing_ok=True)


def applying(data_dir: Path) -> bool:
    """True while the definitions that `walvec up --apply` named are not applied yet."""
    try:
        pid = int(_mark(data_dir).read_text())
        os.kill(pid, 0)
    except (OSError, ValueError) as error:
        return isinstance(error, PermissionError)
    return True
