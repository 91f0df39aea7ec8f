"""Settings: precedence, expansion, and mistakes that name their place and cure."""

from pathlib import Path

import pytest

from walvec.contracts.errors import ConfigError
from walvec.runtime.config import load_settings, unknown_variables


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("WALVEC_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "walvec.yaml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def test_without_anything_the_data_directory_is_below_the_current_one() -> None:
    assert load_settings().data_dir == Path.cwd() / ".walvec"


def test_walvec_yaml_is_found_and_the_environment_is_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written("api: {port: 9000, host: 127.0.0.2}\nlog: {partitions: 7}\n")
    monkeypatch.setenv("WALVEC_API__PORT", "9001")
    settings = load_settings()
    assert (settings.api.port, settings.api.host, settings.log.partitions) == (9001, "127.0.0.2", 7)


def test_variables_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASS", "p w")
    path = written("control_database: {url: 'postgresql://u:${PGPASS}@h/${DB:-x}$${'}\n", "own.yaml")
    url = load_settings(path).control_database.url
    assert url is not None
    assert url.get_secret_value() == "postgresql://u:p w@h/x${"


def test_a_missing_variable_is_named() -> None:
    written("control_database:\n  url: ${NOWHERE_TO_BE_FOUND}\n")
    with pytest.raises(ConfigError, match=r"control_database\.url.*NOWHERE_TO_BE_FOUND"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "message", "cure"),
    [
        ("data_dri: x\n", r"line 1: unknown setting `data_dri`", "data_dir"),
        ("log:\n  kind: local\n  partitons: 3\n", r"line 3: unknown setting `log\.partitons`", "partitions"),
        ("api:\n  port: high\n", r"line 2: `api\.port` is wrong", "Correct the value"),
        ("log: 5\n", r"line 1: `log` is a section", "one by one"),
        ("- a\n", "top level must be a mapping", "data_dir"),
        ("a: [\n", "is not YAML", "line"),
    ],
)
def test_mistakes_name_their_place_and_cure(text: str, message: str, cure: str) -> None:
    written(text)
    with pytest.raises(ConfigError, match=message) as failure:
        load_settings()
    assert cure in failure.value.cure


def test_a_mistake_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    written("api: {host: 127.0.0.1}\n")
    monkeypatch.setenv("WALVEC_API__PORT", "high")
    with pytest.raises(ConfigError, match="WALVEC_API__PORT"):
        load_settings()


def test_a_secret_is_not_shown_by_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    written("control_database: {url: [hunter2]}\n")
    with pytest.raises(ConfigError) as failure:
        load_settings()
    assert "hunter2" not in str(failure.value)


def test_a_named_file_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        load_settings(Path("none.yaml"))


def test_a_variable_that_looks_like_a_setting_is_found() -> None:
    assert unknown_variables({"WALVEC_DATA_DRI": "x", "WALVEC_DATA_DIR": "y", "WALVEC_URL": "z"}) == ["WALVEC_DATA_DRI"]
    assert unknown_variables({"WALVEC_API_PORT": "1", "WALVEC_API__PORT": "1"}) == ["WALVEC_API_PORT"]


@pytest.mark.parametrize("text", ["one, two", '["one","two"]'])
def test_api_keys_are_a_list_or_have_commas_between_them(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WALVEC_API__KEYS", text)
    assert [k.get_secret_value() for k in load_settings().api.keys] == ["one", "two"]


@pytest.mark.parametrize("name", ["WALVEC_PGVECTOR__URL", "WALVEC_CONTROL_DATABASE__URL"])
def test_an_address_that_is_none_is_told_by_its_setting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "my database hunter2")
    with pytest.raises(ConfigError, match=name) as failure:
        load_settings()
    assert "hunter2" not in str(failure.value)
    monkeypatch.setenv(name, "postgresql+psycopg://u:p@h/d")
    settings = load_settings()
    found = settings.pgvector.url or settings.control_database.url
    assert found is not None
    assert found.get_secret_value() == "postgresql://u:p@h/d"
