"""The rules of the guarantee: each is named in the code that holds it, and has its counterexample as a test.

`rule <name>` stands in a comment or docstring of the product, `test_…<name with underscores>…` in a test.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("cdc", "embedder", "sink", "api", "walvec")
RULES = (
    "confirm-durable",
    "commit-after-output",
    "guard",
    "strict-guard",
    "tombstones",
    "floor",
    "visibility",
    "memory",
    "toast-visible",
    "claim-check",
    "claim-back",
    "dead-delete",
    "replay-stamp",
    "sweep",
    "sweep-drained",
    "start-horizon",
    "snapshot-xmax",
    "one-snapshot",
    "stamp-ordinal",
    "collapse-position",
    "claim-text",
    "claim-atomic",
    "claim-advance",
    "tombstone-absent",
    "forced-delete",
    "replay-above",
    "progress-after",
    "lowest-stored",
    "restart-on-loss",
    "sweep-floor",
    "purge-horizon",
    "epoch",
    "known-generation",
    "since-routed",
    "never-back",
    "fed-or-read",
    "stalled-before-passed",
)
_HELD = re.compile(r"\brule\s+([a-z]+(?:-[a-z]+)*)", re.IGNORECASE)
_TEST = re.compile(r"def (test_\w+)\(")


@lru_cache
def held() -> dict[str, set[str]]:
    """Rule -> the product's files that name it."""
    out: dict[str, set[str]] = {}
    for package in PRODUCT:
        for path in (ROOT / package).rglob("*.py"):
            joined = re.sub(r"\n\s*(?:#|--)?\s*", " ", path.read_text())
            for name in _HELD.findall(joined):
                out.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return out


@lru_cache
def counterexamples() -> dict[str, set[str]]:
    """Rule -> tests that bear its name; a longer rule's name does not count for the shorter one within it."""
    out: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for test in _TEST.findall(path.read_text()):
            rest = test
            for rule in sorted(RULES, key=len, reverse=True):
                name = rule.replace("-", "_")
                if re.search(rf"_{name}(?:_|$)", rest):
                    out.setdefault(rule, set()).add(test)
                    rest = rest.replace(name, "")
    return out


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_named_in_the_code_that_holds_it(rule: str) -> None:
    assert held().get(rule), f'write "rule {rule}" where it is held'


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_has_its_counterexample(rule: str) -> None:
    assert counterexamples().get(rule), f"no test is named after {rule}"


def test_no_other_name_is_called_a_rule() -> None:
    assert {n for n in held() if "-" in n} <= set(RULES)
