"""The table of roles: every target exists and takes what the composition gives it."""

import importlib
import inspect

import pytest

from walvec.cli.names import ROLES

PORTS = {
    "cdc": {"control", "log"},
    "embedder": {"control", "log", "lookup", "rows"},
    "sink": {"control", "log", "stores"},
    "api": {"control", "log", "source", "store", "models"},
}


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_has_the_signature_that_it_is_run_with(role: str) -> None:
    run = importlib.import_module(ROLES[role]).run
    parameters = inspect.signature(run).parameters
    assert list(parameters)[:2] == ["settings", "stop"]
    assert {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == PORTS[role] | {"metrics"}
    assert inspect.iscoroutinefunction(run)
