"""Metrics: names, their documentation, their alerts, and how samples are written down."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from walvec.contracts.histograms import NUMBERS, SECONDS, Histogram
from walvec.runtime import measures
from walvec.runtime.metrics import Metrics

ROOT = Path(__file__).resolve().parents[3]
ALERTS = ROOT / "config" / "prometheus" / "alerts.yml"
PARTS = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
EXPORTED = {m.name + part: m for m in measures.ALL for part in PARTS[m.kind]}
STATES = {"table_state": "state", "slot_status": "status"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("metric", measures.ALL, ids=lambda m: m.name)
def test_names_follow_the_conventions(metric: measures.Metric) -> None:
    assert re.fullmatch(r"walvec_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if metric.kind == "histogram":
        assert metric.name.endswith(("_seconds", "_records", "_texts"))
    assert metric.help.endswith((".", "records.")), metric.name
    assert metric.roles, metric.name


def test_each_metric_answers_a_question_in_the_code() -> None:
    lines = (ROOT / "walvec" / "runtime" / "measures.py").read_text().splitlines()
    for metric in measures.ALL:
        named = next(n for n, line in enumerate(lines) if f'"{metric.name}"' in line)
        begins = next(n for n in range(named, 0, -1) if re.match(r"[A-Z_]+ = _", lines[n]))
        above = begins - 1
        while lines[above].startswith("# ") and "?" not in lines[above]:
            above -= 1
        assert lines[above].startswith("# "), f"no question above {metric.name}"
        assert "?" in lines[above], f"no question above {metric.name}"


def test_documentation_describes_all_metrics_and_no_others() -> None:
    rows = re.findall(
        r"^\| `(walvec_\w+)` \| (\w+) \| ([\w, ]+) \| ([`\w, ]*) \| (.+?) \| (.+?) \|$",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    told = {
        name: (kind, roles, tuple(labels.replace("`", "").split(", ")) if labels else (), text)
        for name, kind, roles, labels, _, text in rows
    }
    wanted = {
        m.name: (m.kind, "all" if len(m.roles) == 4 else ", ".join(m.roles), m.labels, m.help) for m in measures.ALL
    }
    assert told == wanted


@pytest.mark.parametrize("rule", rules(), ids=lambda r: r["alert"])
def test_alerts_ask_for_what_is_exported_and_say_what_to_do(rule: dict[str, Any]) -> None:
    for name, selector in re.findall(r"\b(walvec_\w+)(\{[^}]*\})?", rule["expr"]):
        assert name in EXPORTED, f"{rule['alert']}: nobody exports {name}"
        for label in re.findall(r"(\w+)\s*=", selector):
            assert label in EXPORTED[name].labels, f"{rule['alert']}: {name} has no label {label}"
    grouped = {label for labels in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) for label in labels.split(", ")}
    for label in grouped - {"job"}:
        assert any(label in EXPORTED[n].labels for n in re.findall(r"\b(walvec_\w+)", rule["expr"])), label
    for label in re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())):
        assert label in grouped | {"job", "instance"}, f"{rule['alert']} speaks of a label that it has not: {label}"
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description", "runbook"} <= rule["annotations"].keys()
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    titles = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {t.lower().replace(" ", "-") for t in titles}


def test_states_that_alerts_ask_for_exist() -> None:
    asked = re.findall(r'walvec_(table_state|slot_status)\{\w+=~?"([^"]+)"', ALERTS.read_text())
    assert asked
    for name, states in asked:
        metric = EXPORTED[f"walvec_{name}"]
        for state in states.split("|"):
            assert re.search(rf"\b{state}\b", metric.help), state


def test_alerts_have_distinct_names() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "command",
    [("check", "rules", ALERTS), ("test", "rules", Path(__file__).with_name("alerts_test.yml"))],
    ids=["check", "test"],
)
def test_promtool_accepts_the_rules_and_they_fire_when_they_should(command: tuple[object, ...]) -> None:
    done = subprocess.run(["promtool", *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------- plain data


@given(st.lists(st.floats(0, 1000, allow_nan=False)), st.sampled_from([SECONDS, NUMBERS]))
def test_a_batch_of_values_counts_like_each_of_them(values: list[float], bounds: tuple[float, ...]) -> None:
    one, many = Histogram(bounds), Histogram(bounds)
    for value in values:
        one.add(value)
    many.add_all(values)
    assert one.counts == many.counts
    assert math.isclose(one.total, many.total, abs_tol=1e-9)
    assert many.count == len(values)


@given(st.floats(0, 2000, allow_nan=False))
def test_a_value_lies_in_the_bucket_that_prometheus_means(value: float) -> None:
    histogram = Histogram(NUMBERS)
    histogram.add(value)
    for place, bound in enumerate(NUMBERS):
        assert (sum(histogram.counts[: place + 1]) == 1) == (value <= bound)


# ---------------------------------------------------------------------------------------------- exposition


def test_samples_of_each_kind_are_written_down_and_end_with_their_source() -> None:
    metrics = Metrics("sink")
    latencies = Histogram()
    latencies.add_all([5.0, 20.0, 700_000.0], unit=0.001)
    told = [
        measures.VECTORS_APPLIED.of(7, 'a "quoted" \\ täble'),
        measures.COMMIT_TO_STORED.of(latencies, "t"),
        measures.DEPENDENCY_UP.of(1, "log"),
    ]
    with metrics.source(lambda: told):
        body, content_type = metrics.exposition()
    assert content_type.startswith("text/plain")
    samples = {
        (s.name, *(v for _, v in sorted(s.labels.items(), reverse=True))): s.value
        for family in text_string_to_metric_families(body.decode())
        for s in family.samples
    }
    assert samples["walvec_vectors_applied_total", 'a "quoted" \\ täble'] == 7
    assert samples["walvec_dependency_up", "log"] == 1
    assert samples["walvec_commit_to_stored_seconds_count", "t"] == 3
    assert samples["walvec_commit_to_stored_seconds_bucket", "t", "0.005"] == 1
    assert samples["walvec_commit_to_stored_seconds_bucket", "t", "600.0"] == 2
    assert samples["walvec_commit_to_stored_seconds_bucket", "t", "+Inf"] == 3
    assert math.isclose(samples["walvec_commit_to_stored_seconds_sum", "t"], 700.025)
    assert b"walvec_vectors_applied_total{" not in metrics.exposition()[0]


def test_a_scraper_that_asks_for_openmetrics_gets_it() -> None:
    body, content_type = Metrics("api").exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_a_sample_without_its_labels_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="has the labels"):
        measures.LAG_RECORDS.of(1, "table")
