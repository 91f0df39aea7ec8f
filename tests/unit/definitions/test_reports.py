"""Reports of several processes, told as one."""

from __future__ import annotations

from typing import Any

import pytest

from walvec.definitions.reports import Report, merged


def one(*reports: tuple[dict[str, Any], float]) -> tuple[dict[str, Any], float]:
    found: list[Report] = merged(("role", "subject", report, age) for report, age in reports)
    ((_, _, report, age),) = found
    return dict(report), age


def test_counts_of_live_processes_are_added() -> None:
    a = {"texts_sent": 3, "retries": {"wait": 1}, "blocked": None, "commit_ms": 10}
    b = {"texts_sent": 4, "retries": {"wait": 2, "stop": 1}, "blocked": "no key", "commit_ms": 5}
    assert one((b, 20.0), (a, 0.1)) == (
        {"texts_sent": 7, "retries": {"wait": 3, "stop": 1}, "blocked": "no key", "commit_ms": 10}, 0.1,
    )  # fmt: skip


def test_a_process_that_fell_silent_is_gone_unless_it_is_the_last() -> None:
    assert one(({"applied": 1}, 0.5), ({"applied": 5}, 61.0))[0] == {"applied": 1}
    assert one(({"applied": 5}, 3600.0)) == ({"applied": 5}, 3600.0)


def test_latencies_take_the_worst() -> None:
    slow, fast = {"latency_ms_p99": 9, "latency_ms_p50": 2}, {"latency_ms_p99": 3, "latency_ms_p50": None}
    assert one((fast, 1), (slow, 2))[0] == slow


@pytest.mark.parametrize("standby_age", [0.0, 5.0])
def test_a_standby_has_the_word_only_while_nobody_reads(standby_age: float) -> None:
    reading, standby = {"state": "streaming", "received_lsn": 7}, {"state": "standby", "reason": "slot in use"}
    assert one((standby, standby_age), (reading, 1.0)) == (reading, 1.0)
    assert one((standby, standby_age), (reading, 30.0))[0]["state"] == "standby"


def test_roles_and_subjects_stay_apart() -> None:
    found = merged([("sink", "a", {"applied": 1}, 0.0), ("sink", "b", {"applied": 2}, 0.0), ("cdc", "a", {}, 0.0)])
    assert [(role, subject) for role, subject, _, _ in found] == [("sink", "a"), ("sink", "b"), ("cdc", "a")]
