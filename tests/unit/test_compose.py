"""docker-compose.yml, the Dockerfile, Prometheus' configuration and Grafana's dashboard: sound, and of one mind.

What is run from them stands in tests/acceptance/test_compose.py. No container engine is needed for either.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from api.access import keys_of
from tests.plugins import compose
from tests.plugins.compose import ROOT, Image, Missing, Service
from walvec.cli.names import ROLES
from walvec.definitions import document
from walvec.runtime.config import load_settings, unknown_variables
from walvec.runtime.measures import ALL
from walvec.runtime.metrics import Metrics

SERVICES = compose.load()
OURS = {name: service for name, service in SERVICES.items() if service.ours}
PROMETHEUS = yaml.safe_load((ROOT / "config/prometheus/prometheus.yml").read_text())
GRAFANA = ROOT / "config/grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards/walvec.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *((f"{panel['title']} ({target['refId']})", target["expr"]) for panel in PANELS for target in panel["targets"]),
    *((f"annotation {a['name']}", a["expr"]) for a in DASHBOARD["annotations"]["list"] if "expr" in a),
]
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool here (Debian's package `prometheus` has it)")


def ids(service: Service) -> str:
    return service.name


def each(services: dict[str, Service]) -> Any:
    return pytest.mark.parametrize("service", services.values(), ids=ids)


# ------------------------------------------------------------------------------------------------ docker-compose.yml


def test_the_file_follows_the_compose_specification() -> None:
    schema = json.loads(
        (files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text("utf-8")
    )
    validator = jsonschema.validators.validator_for(schema)(schema)
    written = yaml.safe_load(compose.FILE.read_text())
    filled = compose.interpolate(written, compose.variables())
    for found in (written, filled):
        assert [f"{e.json_path}: {e.message}" for e in validator.iter_errors(found)] == []
    broken = yaml.safe_load(compose.FILE.read_text())
    broken["services"]["cdc"]["comand"] = ["cdc"]
    assert not validator.is_valid(broken)  # the schema is one that finds something


def test_every_variable_is_in_the_example_or_has_a_default() -> None:
    given = compose.variables()
    required, optional = set(), set()
    for match in compose.VARIABLE.finditer(compose.FILE.read_text()):
        (optional if match["how"] == ":-" else required).add(match["name"])
    assert required == set(given)
    shown = {line[1:].split("=")[0] for line in compose.EXAMPLE.read_text().splitlines() if re.match(r"#\w+=", line)}
    assert optional == shown


@pytest.mark.parametrize("name", sorted(compose.variables()))
def test_a_missing_secret_is_refused_with_the_way_to_set_it(name: str) -> None:
    with pytest.raises(Missing, match=f"{name}: copy .env.example to .env"):
        compose.load({key: value for key, value in compose.variables().items() if key != name})


def test_a_password_can_stand_in_a_connection_string() -> None:
    for name, value in compose.variables().items():
        assert re.fullmatch(r"[A-Za-z0-9-]+", value), name


def test_each_role_is_a_service_from_one_image() -> None:
    assert {name: s.definition["command"] for name, s in OURS.items() if name != "apply"} == {r: [r] for r in ROLES}
    assert len({json.dumps([s.definition["image"], s.definition["build"]]) for s in OURS.values()}) == 1
    assert {n: s.replicas for n, s in OURS.items()} == {"cdc": 2, "embedder": 2, "sink": 2, "api": 1, "apply": 1}


@each(OURS)
def test_our_services_are_confined_and_get_time_to_drain(service: Service) -> None:
    found = service.definition
    assert found["read_only"] is True
    assert found["tmpfs"] == ["/tmp"]
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["init"] is True
    assert "user" not in found  # the image's own
    assert service.grace_seconds >= 30


@each({name: service for name, service in OURS.items() if name in ("cdc", "embedder", "sink")})
def test_what_is_scaled_has_no_fixed_name_or_port(service: Service) -> None:
    assert not {"container_name", "ports", "hostname"} & set(service.definition)


@each(SERVICES)
def test_nothing_is_open_to_other_machines(service: Service) -> None:
    for port in service.definition.get("ports", []):
        assert port.startswith("127.0.0.1:"), port


@each(SERVICES)
def test_images_have_a_fixed_version(service: Service) -> None:
    name, _, tag = service.definition["image"].rpartition(":")
    assert name
    assert tag == "local" if service.ours else re.search(r"\d+\.\d+\.\d+", tag)


@each(SERVICES)
def test_what_is_waited_for_has_a_health_check(service: Service) -> None:
    for name, how in service.definition.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert SERVICES[name].check
    if service.name != "apply":
        assert service.check


@each(SERVICES)
def test_what_is_mounted_exists_and_is_read_only(service: Service) -> None:
    for place, path in service.mounts.items():
        assert path.exists(), path
        assert f":{place}:ro" in " ".join(service.definition["volumes"])


def test_named_volumes_are_declared() -> None:
    declared = set(yaml.safe_load(compose.FILE.read_text())["volumes"])
    used = {
        v.split(":")[0] for s in SERVICES.values() for v in s.definition.get("volumes", []) if not v.startswith(".")
    }
    assert declared == used


@each({name: service for name, service in OURS.items() if name in ROLES})
def test_the_settings_of_a_role_are_walvecs(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    image = Image.read().environment
    for name, value in (image | service.environment).items():
        if name.startswith("WALVEC_"):
            monkeypatch.setenv(name, value)
    settings = load_settings()
    assert unknown_variables(service.environment) == []
    assert settings.log.kind == "kafka"
    assert settings.secret_key is not None  # shared: what one role encrypts, the others read
    assert settings.control_database.url == settings.pgvector.url != None  # noqa: E711
    assert settings.kafka.bootstrap_servers in SERVICES["kafka"].environment["KAFKA_ADVERTISED_LISTENERS"]
    assert settings.metrics.host == "0.0.0.0"
    assert str(settings.metrics.port) in Image.read().values("EXPOSE")[0].split()
    if service.name == "api":
        assert settings.api.host == "0.0.0.0"
        assert keys_of(settings) == [service.environment["WALVEC_API_KEY"]]  # that of the commands in the container


def test_the_health_checks_ask_where_the_roles_answer() -> None:
    for name in ROLES:
        port = "WALVEC_API__PORT" if name == "api" else "WALVEC_METRICS__PORT"
        assert f"'127.0.0.1', {SERVICES[name].environment[port]}," in SERVICES[name].check[-1]
        assert "'/health/ready'" in SERVICES[name].check[-1]


def test_the_broker_listens_where_it_says() -> None:
    found = SERVICES["kafka"].environment

    def listeners(key: str) -> dict[str, str]:
        return dict(part.split("://") for part in found[key].split(","))

    bound, advertised = listeners("KAFKA_LISTENERS"), listeners("KAFKA_ADVERTISED_LISTENERS")
    assert set(bound) == set(dict(p.split(":") for p in found["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")))
    assert set(bound) - set(advertised) == {found["KAFKA_CONTROLLER_LISTENER_NAMES"]}
    assert {name: at.split(":")[1] for name, at in advertised.items()}.items() <= {
        name: at.split(":")[1] for name, at in bound.items()
    }.items()
    assert found["KAFKA_INTER_BROKER_LISTENER_NAME"] in advertised
    (published,) = SERVICES["kafka"].definition["ports"]
    assert published.split(":")[2] == advertised["HOST"].split(":")[1]


def test_the_definitions_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = SERVICES["apply"]
    for name, value in apply.environment.items():
        monkeypatch.setenv(name, value)
    (path,) = (apply.mounts[word] for word in apply.definition["command"] if word in apply.mounts)
    found = document.load(path).wire()
    assert [table["name"] for table in found["vector_tables"]] == ["products"]


# ------------------------------------------------------------------------------------------------ Dockerfile


def test_the_image_is_small_and_belongs_to_an_ordinary_user() -> None:
    image = Image.read()
    build, final = image.stages
    assert build[0][1].split()[0] == final[0][1] == "python:${PYTHON}-slim-bookworm"
    names = [name for name, _ in final]
    (user,) = image.values("USER")
    assert user.split(":")[0].isdigit()  # a number, so that an orchestrator can see that it is not root
    assert int(user.split(":")[0]) != 0
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    assert not any(re.search(r"\b(pip|apt-get|gcc|make)\b", line) for line in image.values("RUN"))
    assert image.values("COPY") == ["--from=build /opt/walvec /opt/walvec"]
    assert image.entrypoint == ["walvec"]
    assert image.values("STOPSIGNAL") == ["SIGTERM"]


def test_every_install_is_pinned_and_builds_nothing() -> None:
    lines = " && ".join(Image.read().values("RUN", stage=0))
    installs = re.findall(r"pip (?:--python \S+ )?install ([^&]*)", lines)
    assert installs
    for install in installs:
        assert "--constraint constraints.txt" in install or "--no-deps" in install
    assert "--only-binary :all:" in lines


def test_the_context_has_the_product_and_nothing_else() -> None:
    found = compose.context()
    assert all(path.exists() for path in found)
    packages = {path.name for path in found if path.is_dir()}
    assert packages == {"api", "cdc", "embedder", "sink", "walvec"}
    assert {path.name for path in found if path.is_file()} == {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
    }


# ------------------------------------------------------------------------------------------------ Prometheus


def test_prometheus_finds_every_replica_of_every_role() -> None:
    found = {}
    for job in PROMETHEUS["scrape_configs"]:
        (by_name,) = job["dns_sd_configs"]
        (service,) = by_name["names"]
        found[job["job_name"]] = service
        assert by_name["type"] == "A"
        assert str(by_name["port"]) == SERVICES[service].environment["WALVEC_METRICS__PORT"]
    assert found == {f"walvec-{role}": role for role in ROLES}


def test_prometheus_reads_the_alerts() -> None:
    place = "/etc/prometheus"
    mounted = SERVICES["prometheus"].mounts[place]
    assert f"--config.file={place}/prometheus.yml" in SERVICES["prometheus"].definition["command"]
    for name in ("prometheus.yml", *PROMETHEUS["rule_files"]):
        assert (mounted / name).is_file()


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_alerts() -> None:
    done = subprocess.run(
        [str(PROMTOOL), "check", "config", ROOT / "config/prometheus/prometheus.yml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------ Grafana


def test_the_dashboard_is_provisioned_with_its_source() -> None:
    mounts = SERVICES["grafana"].mounts
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert host in SERVICES
    assert SERVICES[host].definition["ports"][0].endswith(f":{port}")
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/walvec.yml").read_text())["providers"]
    assert mounts[provider["options"]["path"]] == GRAFANA / "dashboards"
    for kind in ("datasources", "dashboards"):
        assert mounts[f"/etc/grafana/provisioning/{kind}"] == GRAFANA / "provisioning" / kind
    home = SERVICES["grafana"].environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (mounts[str(Path(home).parent)] / Path(home).name).is_file()
    used = {json.dumps(o) for o in _datasources(DASHBOARD)}
    own, grafanas = (
        json.dumps({"type": "prometheus", "uid": source["uid"]}),
        '{"type": "grafana", "uid": "-- Grafana --"}',
    )
    assert used == {own, grafanas}


def _datasources(node: Any) -> list[Any]:
    if isinstance(node, list):
        return [found for inner in node for found in _datasources(inner)]
    if not isinstance(node, dict):
        return []
    return [value for key, value in node.items() if key == "datasource"] + _datasources(list(node.values()))


def test_the_dashboard_is_one_that_grafana_can_provision() -> None:
    assert DASHBOARD["uid"] == "walvec"
    assert "__inputs" not in DASHBOARD  # of an export, which asks somebody before it can be used
    assert "__requires" not in DASHBOARD
    assert "id" not in DASHBOARD
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    assert {panel["type"] for panel in DASHBOARD["panels"]} <= {"row", "stat", "timeseries", "status-history"}
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"], panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters))


def test_panels_do_not_lie_on_each_other() -> None:
    def cells(panel: Any) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        return set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))

    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        for cell in cells(panel):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]


def test_the_dashboard_answers_four_questions() -> None:
    rows: dict[str, set[str]] = {}
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            current = rows.setdefault(panel["title"], set())
        else:
            current |= {name for target in panel["targets"] for name, _ in _metrics(target["expr"])}
    wanted = {
        "Is it fresh?": {"walvec_commit_to_stored_seconds", "walvec_lag_seconds", "walvec_lag_records"},
        "Is it healthy?": {"walvec_table_state", "walvec_dead_letters_open", "walvec_retries_total"},
        "What does it cost?": {"walvec_texts_sent_total", "walvec_texts_saved_total", "walvec_provider_tokens_total"},
        "Is the source safe?": {"walvec_slot_retained_bytes", "walvec_feedback_age_seconds", "walvec_slot_status"},
    }
    assert list(rows) == list(wanted)
    for question, names in wanted.items():
        assert names <= rows[question]


KNOWN = {metric.name: metric for metric in ALL}
OF_PROMETHEUS = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}
OF_TARGETS = {"job", "instance"}


def _metrics(expression: str) -> list[tuple[str, str]]:
    """(name without a histogram's suffix, text between its braces) of every metric."""
    found = []
    for name, selector in re.findall(r"\b((?:walvec|process)_\w+|up|ALERTS)\b(?:\{([^}]*)\})?", expression):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        histogram = base in KNOWN and KNOWN[base].kind == "histogram"
        assert not (name in KNOWN and KNOWN[name].kind == "histogram"), f"{name} has no series of this name"
        found.append((base if histogram else name, selector))
    return found


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_the_dashboard_asks_for_what_is_exported(where: str, expression: str) -> None:
    body = Metrics("cdc").exposition()[0].decode()
    process = set(re.findall(r"^# TYPE (process_\w+)", body, re.MULTILINE))
    found = _metrics(re.sub(r'alertname=~"[^"]*"', "alertname", expression))
    assert found
    grouping = {n.strip() for part in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for n in part.split(",")}
    labels = {"le"} | OF_TARGETS
    for name, selector in found:
        if name in KNOWN:
            own = set(KNOWN[name].labels)
        else:
            assert name in OF_PROMETHEUS or name in process, f"nothing exports {name}"
            own = OF_PROMETHEUS.get(name, set())
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert asked <= own | OF_TARGETS, f"{name} has the labels {sorted(own)}"
        labels |= own
    assert grouping <= labels
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval", "__range"}
    assert set(re.findall(r"\$(\w+)", expression)) <= known


def test_the_variables_ask_for_labels_that_exist() -> None:
    for variable in DASHBOARD["templating"]["list"]:
        asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
        assert asked is not None
        assert asked[2] in KNOWN[asked[1]].labels


@needs_promtool
def test_promtool_can_read_every_expression(tmp_path: Path) -> None:
    def plain(text: str) -> str:
        return re.sub(r"\$__\w+", "5m", text).replace("$table", ".*").replace("$connection", ".*")

    rules = [{"record": f"panel:{i}", "expr": plain(text)} for i, (_, text) in enumerate(EXPRESSIONS)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([str(PROMTOOL), "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
