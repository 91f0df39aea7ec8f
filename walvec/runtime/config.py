"""A file of settings and the environment into `Settings`; every mistake names its place and its cure.

Precedence: environment, then `walvec.yaml` (or the file given with -c), then the defaults. `${VAR}` and
`${VAR:-default}` in the file are expanded, `$${` is a literal `${`. Next: `walvec.cli`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from walvec.contracts.errors import ConfigError
from walvec.runtime.settings import Settings, settings_from

DEFAULT_FILE = Path("walvec.yaml")
_PREFIX = "WALVEC_"
_OTHERS = ("WALVEC_URL", "WALVEC_API_KEY", "WALVEC_SUPERVISOR_PID", "WALVEC_SUPERVISOR_KEY")
"""No settings: of commands, and our own."""
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def load_settings(file: Path | None = None) -> Settings:
    """Settings of this process. A file that was named must exist; `walvec.yaml` may. Raises ConfigError."""
    path = file if file is not None else (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    values: Mapping[str, Any] = {}
    text = ""
    if path is not None:
        text = read_text(path)
        values = parse_mapping(text, path)
        values = expand(values, path)
    try:
        settings = settings_from(dict(values))
    except ValidationError as error:
        raise ConfigError(*_explain(error, values, text, path)) from error
    except SettingsError as error:
        named = re.search(r'field "(\w+)"', str(error))
        what = f"environment, {_PREFIX}{named[1].upper()}" if named else "environment"
        raise ConfigError(
            f"{what}: the value cannot be read.",
            "A section's settings are spelled one by one, as in WALVEC_LOG__KIND=local.",
        ) from error
    except TypeError as error:
        raise ConfigError(
            f"{path}: the top level must be a mapping of settings: {error}.", "See docs/settings.md."
        ) from error
    return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().absolute()})


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Check the path given with -c.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from error


def parse_mapping(text: str, path: Path) -> dict[str, Any]:
    """The mapping that a YAML document is; an empty document is an empty mapping."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.", "Mend the line it names.") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(
            f"{path}: the top level must be a mapping of settings.", "Write lines like `data_dir: ./data`."
        )
    return values


def expand(value: Any, path: Path, where: str = "") -> Any:
    """`${VAR}` from the environment in every string."""
    if isinstance(value, Mapping):
        return {key: expand(inner, path, f"{where}.{key}" if where else str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand(inner, path, f"{where}[{index}]") for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        if name is None:
            return "${"
        found = os.environ.get(name)
        if found is None and default is None:
            raise ConfigError(
                f"{path}: `{where}` needs the environment variable {name}, which is not set.",
                f"Set it, or write ${{{name}:-default}}.",
            )
        return found if found is not None else default

    return _VARIABLE.sub(replace, value)


def suggest(name: str, known: Sequence[str]) -> str:
    """A cure for an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    listed = ", ".join(sorted(known))
    return f"Did you mean `{close[0]}`?" if close else f"Known here: {listed}."


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Environment variables that look like settings, and are none: worth a warning."""
    known = set(Settings.model_fields)
    found = []
    for name in environ:
        if name.startswith(_PREFIX) and name not in _OTHERS:
            head = name.removeprefix(_PREFIX).lower().split("__")[0]
            if head not in known:
                found.append(name)
    return sorted(found)


def _explain(error: ValidationError, values: Mapping[str, Any], text: str, path: Path | None) -> tuple[str, str]:
    """Message and cure of the first mistake, with its place."""
    mistake = error.errors()[0]
    location = tuple(mistake["loc"])
    dotted = ".".join(str(part) for part in location)
    line = _line_of(text, location) if _is_in(values, location) else None
    if line is not None:
        place = f"{path}, line {line}"
    else:
        place = "environment, " + _PREFIX + "__".join(str(part) for part in location).upper()
    if mistake["type"] == "extra_forbidden":
        return f"{place}: unknown setting `{dotted}`.", suggest(str(location[-1]), _names_at(location[:-1]))
    if mistake["type"] == "model_type":
        return (
            f"{place}: `{dotted}` is a section of settings, not a value.",
            "Its settings are spelled one by one, as in WALVEC_LOG__KIND=local, or `log: {kind: local}` in a file.",
        )
    return (
        f"{place}: `{dotted}` is wrong: {mistake['msg']}.",
        "Correct the value; docs/settings.md lists what is allowed.",
    )


def _is_in(values: Any, location: tuple[int | str, ...]) -> bool:
    for part in location:
        if isinstance(values, Mapping) and part in values:
            values = values[part]
        else:
            return not isinstance(values, Mapping)  # the mistake may be that there should be a mapping
    return True


def _names_at(location: tuple[int | str, ...]) -> list[str]:
    """Setting names of the section at a location."""
    section: Any = Settings
    for part in location:
        if get_origin(section) is dict:
            section = get_args(section)[1]
            continue
        field = section.model_fields.get(str(part))
        section = None if field is None else field.annotation
        if get_origin(section) is not dict and not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _line_of(text: str, location: tuple[int | str, ...]) -> int | None:
    node = yaml.compose(text) if text else None
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
