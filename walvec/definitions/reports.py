"""What several processes of one role say of one subject, as one report.

Counts are added up, latencies take the worst, everything else is the newest word; a standby has the word only while
nobody reads. A process that has been silent for `SILENT_SECONDS` is gone, and its report with it, unless it is the
last: so whoever lives repeats itself every `REPEAT_SECONDS` though nothing changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SILENT_SECONDS = 60.0
REPEAT_SECONDS = 20.0
_COUNTS = frozenset(
    ("texts_sent", "texts_saved", "texts_cut", "requests", "tokens", "retries", "applied", "refused", "rejected")
)
_READS_STALE_SECONDS = 10.0

Report = tuple[str, str, Mapping[str, Any], float]
"""(role, subject id, report, age in seconds)."""


def merged(reports: Iterable[Report]) -> list[Report]:
    """One report for each role and subject, in the order in which they are first met."""
    groups: dict[tuple[str, str], list[tuple[Mapping[str, Any], float]]] = {}
    for role, subject, report, age in reports:
        groups.setdefault((role, subject), []).append((report, age))
    return [(role, subject, *_one(found)) for (role, subject), found in groups.items()]


def _one(found: list[tuple[Mapping[str, Any], float]]) -> tuple[Mapping[str, Any], float]:
    found.sort(key=lambda entry: (_stands_by(*entry), entry[1]))
    newest, age = found[0]
    out = dict(newest)
    for other, other_age in found[1:]:
        if other_age <= SILENT_SECONDS and not _stands_by(other, 0):
            for name, value in other.items():
                out[name] = _both(name, out.get(name), value)
    return out, age


def _stands_by(report: Mapping[str, Any], age: float) -> bool:
    return report.get("state") == "standby" or ("state" in report and age > _READS_STALE_SECONDS)


def _both(name: str, newer: Any, older: Any) -> Any:
    if newer is None or older is None:
        return older if newer is None else newer
    if name in _COUNTS:
        if isinstance(newer, Mapping):
            return {k: newer.get(k, 0) + older.get(k, 0) for k in {**newer, **older}}
        return newer + older
    if name.startswith("latency_"):
        return max(newer, older)
    return newer


@dataclass(slots=True)
class Told:
    """What this process said last of a subject."""

    report: Mapping[str, object] = field(default_factory=dict)
    at: float = 0.0

    def news(self, report: Mapping[str, object]) -> bool:
        """Whether it must be told: it is new, or so old that this process would be taken for gone."""
        return report != self.report or time.monotonic() - self.at > REPEAT_SECONDS

    def say(self, report: Mapping[str, object]) -> None:
        self.report, self.at = report, time.monotonic()
