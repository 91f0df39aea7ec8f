"""How the tests are spread over processes (`pytest -n 3 --dist loadfile`), and what is said of a failure at once.

What takes longest begins first, so that no process is left with a long file when the others are done. A file stays in
one process, with the servers of its module, but for the tests that are named here: each of these is on its own.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

SECONDS: dict[str, int] = {
    "tests/acceptance/test_kafka_faults.py::test_hands_on_the_log": 120,
    "tests/acceptance/test_kafka_faults.py::test_a_cluster_loses_brokers": 110,
    "tests/acceptance/test_compose.py": 100,
    "tests/acceptance/test_debezium.py": 90,
    "tests/acceptance/test_kafka_faults.py::test_machines_die_hang_and_come_back": 90,
    "tests/integration/test_kafka_roles.py": 200,
    "tests/acceptance/test_source_faults.py": 180,
    "tests/contract/test_log_kafka.py": 150,
    "tests/integration/test_kafka_log.py": 140,
    "tests/acceptance/test_cases.py": 120,
    "tests/acceptance/test_commands.py": 120,
    "tests/acceptance/test_bad_input.py": 110,
    "tests/acceptance/test_provider_faults.py": 100,
    "tests/acceptance/test_thin_path.py": 90,
    "tests/acceptance/test_schema_changes.py": 80,
    "tests/acceptance/test_schemathesis.py": 80,
    "tests/acceptance/test_replay.py": 80,
    "tests/acceptance/test_kafka_tools.py": 70,
    "tests/integration/test_generations_faults.py": 70,
    "tests/acceptance/test_own_faults.py": 60,
    "tests/acceptance/test_types.py": 50,
    "tests/acceptance/test_life.py": 50,
    "tests/integration/runtime/test_embedded_postgres.py": 50,
    "tests/integration/test_bridge.py": 50,
    "tests/integration/test_api_conventions.py": 50,
    "tests/acceptance/test_embedd_guide.py": 40,
    "tests/acceptance/test_metrics.py": 40,
    "tests/acceptance/test_tenancy.py": 40,
    "tests/integration/test_equality.py": 40,
    "tests/acceptance/test_read_your_writes.py": 30,
    "tests/acceptance/test_kill.py": 30,
    "tests/integration/test_life_control.py": 30,
    "tests/contract/test_log.py": 25,
    "tests/integration/test_api_commands.py": 25,
}
"""Of whole files, or of each case of a test: rough, from `pytest --durations`; what is short is left out."""


def unit(nodeid: str) -> str:
    """What is handed to a process in one piece."""
    return nodeid if _test(nodeid) in SECONDS else nodeid.partition("::")[0]


def seconds(nodeid: str) -> int:
    return SECONDS.get(_test(nodeid)) or SECONDS.get(nodeid.partition("::")[0], 0)


def _test(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: -seconds(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Units(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

    return Units(config, log)


class Failures:
    """Names each failure when it happens: the report at the end is lost with a run that is cut off."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = (crash.message if crash else report.longreprtext).strip().partition("\n")[0]
            self._terminal.write_line(f"FAILED {report.nodeid} ({report.when}): {said[:300]}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if (terminal := config.pluginmanager.get_plugin("terminalreporter")) is not None:
        config.pluginmanager.register(Failures(terminal), "named failures")
