"""The definitions file: YAML -> Document, checked as far as a file can be checked without its databases.

Every complaint names its place (`vector_tables[0].columns[1].filter_type`) and never shows a value, which may be a
secret. Next: `api.plan` makes a plan of it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import psycopg
import yaml
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from walvec.contracts.errors import ConfigError
from walvec.definitions.model import FilterType, Mode, Role, StoreKind
from walvec.runtime.settings import BaseUrl

Place = tuple[str | int, ...]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, hide_input_in_errors=True)


class ConnectionSpec(_Part):
    """One source database: `url`, or its parts."""

    name: str = Field(min_length=1, max_length=100)
    provider: Literal["postgresql"] = "postgresql"
    mode: Mode = "managed"
    url: SecretStr | None = None
    host: str | None = None
    port: int | None = Field(None, ge=1, le=65535)
    database: str | None = None
    user: str | None = None
    password: SecretStr | None = None
    ssl_mode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None
    on_slot_loss: Literal["rebackfill", "halt"] = "rebackfill"

    @model_validator(mode="after")
    def _address(self) -> Self:
        parts = [
            n for n in ("host", "port", "database", "user", "password", "ssl_mode") if getattr(self, n) is not None
        ]
        if self.url is not None and parts:
            raise ValueError(f"give either `url` or its parts, not both (remove `{parts[0]}`)")
        if self.url is None and (self.host is None or self.database is None):
            raise ValueError("where is the database? Give `url`, or `host` and `database`")
        if self.url is not None:
            url = _libpq(self.url.get_secret_value())
            try:
                said = conninfo_to_dict(url)
            except psycopg.ProgrammingError:
                raise ValueError("`url` is not a connection string; write postgresql://user:password@host/db") from None
            if _misread(url, said):
                raise ValueError(
                    "`url` has no host and port that can be meant; write special characters of the password as %40 for "
                    "@, %2F for /, %3A for :, or give `host`, `user` and `password` by themselves"
                )
        return self

    @property
    def dsn(self) -> str:
        """For libpq. Holds the password."""
        if self.url is not None:
            return _libpq(self.url.get_secret_value())
        return make_dsn(
            host=self.host,
            port=self.port,
            database=self.database,
            user=self.user,
            password=None if self.password is None else self.password.get_secret_value(),
            ssl_mode=self.ssl_mode,
        )


def _misread(url: str, said: Mapping[str, Any]) -> bool:
    """Whether a part of the password is taken for the host, the port or the database, which others are shown."""
    address, escaped = "://" in url, "%40" in url
    hosts, ports = (str(said.get(name) or "").split(",") for name in ("host", "port"))
    return (
        any(port.strip() and not re.fullmatch("[0-9]{1,5}", port.strip()) for port in ports)
        or any("@" in host[0 if address and not escaped else 1 :] for host in hosts)
        or (address and not escaped and "@" in str(said.get("dbname") or ""))
    )


def _libpq(url: str) -> str:
    """Drops the driver that SQLAlchemy's addresses name: postgresql+psycopg://…"""
    return re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url.strip())


def make_dsn(
    *,
    host: str | None,
    port: int | None,
    database: str | None,
    user: str | None,
    password: str | None,
    ssl_mode: str | None,
) -> str:
    """A connection string of its parts."""
    parts = {"host": host, "port": port, "dbname": database, "user": user, "password": password, "sslmode": ssl_mode}
    return make_conninfo("", **{k: v for k, v in parts.items() if v is not None})


def same_dsn(one: str, other: str) -> bool:
    """Whether two connection strings say the same, however they are spelled."""
    return conninfo_to_dict(one) == conninfo_to_dict(other)


SECRETS = ("password", "sslpassword", "oauth_client_secret")
"""Parts of a connection string that nobody is shown."""


def with_stored_secrets(new: str, old: str) -> str:
    """A secret that is not given stays as it is stored, but is never sent to another server, or for another user.

    Raises ConfigError when it would be.
    """
    given, stored = conninfo_to_dict(new), conninfo_to_dict(old)
    absent = {name: stored[name] for name in SECRETS if name in stored and name not in given}
    if not absent:
        return new
    place = ("host", "hostaddr", "port", "user")
    defaults = {"port": "5432"}
    if any(given.get(n, defaults.get(n)) != stored.get(n, defaults.get(n)) for n in place):
        raise ConfigError(
            "the connection has another host, port or user, and its password is not given.",
            "Give the password for the new address (an empty one if it needs none).",
        )
    return make_conninfo(new, **absent)


def with_parts(
    stored: str,
    *,
    host: str | None = None,
    port: int | None = None,
    database: str | None = None,
    user: str | None = None,
    password: str | None = None,
    ssl_mode: str | None = None,
) -> str:
    """A connection string with other parts, and without the secrets that are not given."""
    parts = {k: v for k, v in conninfo_to_dict(stored).items() if k not in SECRETS}
    if host is not None:
        parts.pop("hostaddr", None)
    given = {"host": host, "port": port, "dbname": database, "user": user, "password": password, "sslmode": ssl_mode}
    return make_conninfo("", **{**parts, **{k: v for k, v in given.items() if v is not None}})


def database_of(dsn: str) -> str:
    """Name of the database that it leads to; empty where libpq decides."""
    given = conninfo_to_dict(dsn)
    return str(given.get("dbname") or given.get("user") or "")


def same_server(one: str, other: str) -> bool:
    """Whether two connection strings spell the same place."""
    a, b = conninfo_to_dict(one), conninfo_to_dict(other)
    return all(a.get(n) == b.get(n) for n in ("host", "hostaddr", "port"))


class ProviderSpec(_Part):
    name: str = Field(min_length=1, max_length=100)
    provider: str = Field(min_length=1)
    api_key: SecretStr | None = None
    base_url: BaseUrl | None = None
    default_model: str | None = None
    limits: dict[str, Any] = Field(default_factory=dict)


class ColumnSpec(_Part):
    name: str = Field(min_length=1)
    role: Role
    ordinal: int | None = None
    name_prefix: str = ""
    filter_type: FilterType | None = None
    alias: str | None = None


class IndexSpec(_Part):
    """`hnsw` with pgvector's own parameters, or `none`: exact search."""

    kind: Literal["hnsw", "none"] = "hnsw"
    m: int | None = Field(None, ge=2, le=100)
    ef_construction: int | None = Field(None, ge=4, le=1000)


class SourceSpec(_Part):
    """A topic that an existing Debezium writes."""

    kafka_topic: str = Field(min_length=1, max_length=249, pattern=r"^[a-zA-Z0-9._-]+$")
    unavailable_value: str = Field("__debezium_unavailable_value", min_length=1)
    slot: str | None = Field(None, pattern=r"^[a-z0-9_]{1,63}$")


class VectorTableSpec(_Part):
    name: str = Field(min_length=1, max_length=100)
    connection: str
    embedding_provider: str
    source_table: str = Field(min_length=1)
    primary_key_column: str | list[str] | None = None
    columns: tuple[ColumnSpec, ...]
    embedding_model: str | None = None
    embedding_dimensions: int | None = Field(None, ge=1, le=16000)
    store: StoreKind | None = None
    mode: Mode | None = None
    sync_mode: Literal["batch", "cdc"] = "cdc"
    backfill: Literal["auto", "manual"] = "auto"
    separator: str = "\n"
    index: IndexSpec = Field(default_factory=lambda: IndexSpec.model_validate({}))
    source: SourceSpec | None = None
    keep_previous: int = Field(3600, ge=0, le=2_592_000)
    keep_embedding_columns: bool = False

    @field_validator("primary_key_column")
    @classmethod
    def _key(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise ValueError("names each key column once, and at least one")
        return value

    @field_validator("columns")
    @classmethod
    def _columns(cls, value: tuple[ColumnSpec, ...]) -> tuple[ColumnSpec, ...]:
        twice = [c for c, n in Counter((c.name, c.role) for c in value).items() if n > 1]
        if twice:
            raise ValueError(f"column {twice[0][0]!r} stands twice with role {twice[0][1]}")
        if not any(c.role == "embedding" for c in value):
            raise ValueError("no column has role embedding; give at least one whose text is embedded")
        return value


class Document(_Part):
    """A definitions file. `wire()` is its JSON form with the secrets in clear, `parse` the way back."""

    connections: tuple[ConnectionSpec, ...] = ()
    embedding_providers: tuple[ProviderSpec, ...] = ()
    vector_tables: tuple[VectorTableSpec, ...] = ()

    @field_validator("connections", "embedding_providers", "vector_tables", mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        return () if value is None else value  # `connections:` with nothing below it

    @field_validator("connections", "embedding_providers", "vector_tables")
    @classmethod
    def _names(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = [name for name, n in Counter(part.name for part in value).items() if n > 1]
        if twice:
            raise ValueError(f"the name {twice[0]!r} stands twice")
        return value

    def wire(self) -> dict[str, Any]:
        """Only for the way to the API: shows the secrets."""
        plain: dict[str, Any] = _reveal(self.model_dump(exclude_unset=True))
        return plain


def _reveal(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Mapping):
        return {k: _reveal(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_reveal(v) for v in value]
    return value


def load(path: Path | str, environment: Mapping[str, str] | None = None) -> Document:
    """Reads a file. Raises ConfigError with the place of everything that is wrong in it."""
    origin = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{origin} cannot be read: {e.strerror}.", "Check the path and its rights.") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{origin} is not UTF-8.", "Save it as UTF-8.") from e
    return loads(text, origin, environment)


def loads(text: str, origin: str = "the definitions", environment: Mapping[str, str] | None = None) -> Document:
    """YAML text (of one or more documents) -> Document, with `${VAR}` taken from `environment`."""
    try:
        raw = yaml.load(text, _Loader)  # noqa: S506 — a SafeLoader
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{origin}{place}: {e.problem or 'not YAML'}.", "Mend the YAML there.") from None
    except yaml.YAMLError:
        raise ConfigError(f"{origin} is not YAML.", "Look for control characters in it.") from None
    variables = os.environ if environment is None else environment
    try:
        expanded = {} if raw is None else expand(raw, variables, origin)
    except RecursionError:
        raise ConfigError(f"{origin} is nested without end.", "Take out the alias that refers to itself.") from None
    return parse(expanded, origin)


def parse(raw: Any, origin: str = "the definitions") -> Document:
    """Plain data -> Document. Raises ConfigError."""
    if not isinstance(raw, Mapping):
        raise ConfigError(
            f"{origin} must be a mapping.", "Its keys are connections, embedding_providers and vector_tables."
        )
    try:
        return Document.model_validate(raw)
    except ValidationError as e:
        complaints = [_complaint(error["loc"], error) for error in e.errors(include_input=False, include_url=False)]
        head = complaints[0] if len(complaints) == 1 else "\n" + "\n".join(f"  {c}" for c in complaints)
        raise ConfigError(f"{origin}: {head}", "") from None  # pydantic's own error would show the input


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key that stands twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|(?P<bad>\{))"
)


def expand(value: Any, variables: Mapping[str, str], origin: str, place: Place = ()) -> Any:
    """`${VAR}` and `${VAR:-default}` in every string; `$$` is a dollar.

    Done after parsing, so that no value can break the YAML.
    """
    if isinstance(value, Mapping):
        return {k: expand(v, variables, origin, (*place, str(k))) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(v, variables, origin, (*place, n)) for n, v in enumerate(value)]
    return _VARIABLE.sub(_replacement(variables, origin, place), value) if isinstance(value, str) else value


def _replacement(variables: Mapping[str, str], origin: str, place: Place) -> Callable[[re.Match[str]], str]:
    def replacement(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match["dollar"]:
            return "$"
        if match["bad"]:
            raise ConfigError(
                f"{origin}: {spelled(place)}: `${{` without a variable's name.", "Write ${NAME}, or $$ for a dollar."
            )
        found = variables.get(name)
        if default is not None:
            return found or default
        if found is None:
            raise ConfigError(
                f"{origin}: {spelled(place)}: the environment variable {name} is not set.",
                f"Set it, or write ${{{name}:-default}}.",
            )
        return found

    return replacement


def spelled(place: Sequence[str | int]) -> str:
    """("vector_tables", 0, "columns", 1) -> `vector_tables[0].columns[1]`."""
    out = ""
    for part in place:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out or "(top)"


_PARTS: dict[str, type[BaseModel]] = {
    "connections": ConnectionSpec,
    "embedding_providers": ProviderSpec,
    "vector_tables": VectorTableSpec,
    "columns": ColumnSpec,
    "index": IndexSpec,
    "source": SourceSpec,
}


def _complaint(place: Place, error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        owner = next((_PARTS[p] for p in reversed(place[:-1]) if isinstance(p, str) and p in _PARTS), Document)
        key = str(place[-1])
        known = sorted(owner.model_fields)
        near = difflib.get_close_matches(key, known, 1, 0.6)
        hint = f"did you mean `{near[0]}`?" if near else "known are " + ", ".join(known) + "."
        return f"{spelled(place[:-1])}: unknown key `{key}`; {hint}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{spelled([p for p in place if p not in ('str', 'list[str]')])}: {message}."
