"""What the roles of this one process say of themselves. Implements `ports.Reports`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from walvec.definitions.reports import Report


class MemoryReports:
    def __init__(self) -> None:
        self._reports: dict[tuple[str, str], tuple[Mapping[str, Any], float]] = {}

    async def put(self, role: str, subject: str, report: Mapping[str, Any]) -> None:
        self._reports[role, subject] = (dict(report), time.monotonic())

    async def all(self) -> list[Report]:
        now = time.monotonic()
        return [(role, subject, report, now - at) for (role, subject), (report, at) in self._reports.items()]

    def forget(self, subject: str) -> None:
        self._reports = {k: v for k, v in self._reports.items() if k[1] != subject}
