"""The log's file as this process has opened it: SQLite goes on with one that was deleted, and tells nobody."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from walvec.contracts.errors import LogDamaged


@dataclass(frozen=True, slots=True)
class LogFile:
    path: Path
    inode: int

    @classmethod
    def of(cls, path: Path) -> LogFile:
        """The one that is there now."""
        return cls(path, path.stat().st_ino)

    def check(self) -> None:
        """One that was deleted or replaced must not take records that nobody will ever read, nor tell readers of a
        past that nobody adds to. Raises LogDamaged."""
        try:
            same = self.path.stat().st_ino == self.inode
        except FileNotFoundError:
            same = False
        if not same:
            raise LogDamaged(
                f"The log {self.path} was removed or replaced while it was in use.",
                "Restart walvec; tables whose changes were lost are read again.",
            )
