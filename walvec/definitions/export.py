"""What is defined, as the definitions file that applies to no difference. Pure. Secrets have no place in it.

The inverse of `document` with `api.reconcile`: names instead of ids, what is at its default left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from psycopg.conninfo import conninfo_to_dict

from walvec.definitions.document import SECRETS
from walvec.definitions.model import Column, Connection, EmbeddingProvider, Snapshot, VectorTable

_PARTS = {"host": "host", "port": "port", "dbname": "database", "user": "user", "sslmode": "ssl_mode"}
HEAD = """\
# Written by `walvec export`; `walvec apply -f` reads it.
# Passwords and API keys are not in it: those that are stored stay as they are when it is applied.
"""
PLACEHOLDERS = """\
# Written by `walvec export --placeholders`; `walvec apply -f` reads it.
# Passwords and API keys are not in it: it takes them from the environment variables that it names.
"""


class Placeholder(str):
    """The name of a variable that stands for a secret: `${NAME}` in the file."""


def document_of(snapshot: Snapshot, *, placeholders: bool = False) -> dict[str, list[dict[str, Any]]]:
    """`placeholders`: a Placeholder where a secret is stored, else nothing."""
    names = _Variables() if placeholders else None

    def sorted_by_name(found: Mapping[str, Any]) -> list[Any]:
        return sorted(found.values(), key=lambda one: one.name)

    return {
        "connections": [_connection(c, names) for c in sorted_by_name(snapshot.connections)],
        "embedding_providers": [_provider(p, names) for p in sorted_by_name(snapshot.providers)],
        "vector_tables": [_table(t, snapshot) for t in sorted_by_name(snapshot.vector_tables)],
    }


def yaml_of(document: Mapping[str, Sequence[Mapping[str, Any]]], *, placeholders: bool = False) -> str:
    """The file's text; a dollar of a value is doubled, since the reader expands `${…}`."""
    text: str = yaml.dump(
        _escaped(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
    return (PLACEHOLDERS if placeholders else HEAD) + text


class _Dumper(yaml.SafeDumper):
    """Writes no anchors: two equal values are written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Line breaks that YAML would fold, and what does not print, stand as escapes."""
    style = '"' if any(not ch.isprintable() for ch in text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _escaped(value: Any) -> Any:
    if isinstance(value, Placeholder):
        return f"${{{value}}}"
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, Mapping):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(v) for v in value]
    return value


class _Variables:
    """Names of environment variables, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, name: str, secret: str) -> Placeholder:
        head = re.sub(r"[^A-Z0-9]+", "_", f"{name}_{secret}".upper()).strip("_")
        head = head if head[:1].isalpha() else f"WALVEC_SECRET_{head}"
        found, n = head, 1
        while found in self._taken:
            n += 1
            found = f"{head}_{n}"
        self._taken.add(found)
        return Placeholder(found)


def _connection(c: Connection, names: _Variables | None) -> dict[str, Any]:
    out: dict[str, Any] = {"name": c.name, "provider": c.provider, "mode": c.mode}
    said = conninfo_to_dict(c.dsn)
    parts = {k: v for k, v in said.items() if k not in SECRETS}
    port = str(parts.get("port", ""))
    simple = parts.keys() <= _PARTS.keys() and {"host", "dbname"} <= parts.keys() and (port == "" or port.isdigit())
    secrets = [k for k in SECRETS if k in said]
    if simple and secrets in ([], ["password"]):
        out |= {_PARTS[k]: int(port) if k == "port" else v for k, v in sorted(parts.items(), key=_in_order)}
        if secrets and names is not None:
            out["password"] = names.of(c.name, "password")
    else:
        out["url"] = _keywords(parts)
    if c.on_slot_loss != "rebackfill":
        out["on_slot_loss"] = c.on_slot_loss
    return out


def _in_order(part: tuple[str, Any]) -> int:
    return list(_PARTS).index(part[0])


def _keywords(parts: Mapping[str, Any]) -> str:
    """libpq's own form, which holds what an address of parts cannot."""

    def quoted(value: Any) -> str:
        return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"

    return " ".join(f"{k}={quoted(v)}" for k, v in parts.items())


def _provider(p: EmbeddingProvider, names: _Variables | None) -> dict[str, Any]:
    out: dict[str, Any] = {"name": p.name, "provider": p.provider}
    if p.api_key is not None and names is not None:
        out["api_key"] = names.of(p.name, "api_key")
    out |= {k: v for k, v in (("base_url", p.base_url), ("default_model", p.default_model)) if v is not None}
    if p.limits:
        out["limits"] = dict(p.limits)
    return out


def _table(t: VectorTable, snapshot: Snapshot) -> dict[str, Any]:
    wanted = t.building or t.active
    out: dict[str, Any] = {
        "name": t.name,
        "connection": snapshot.connections[t.connection_id].name,
        "embedding_provider": snapshot.providers[t.provider_of(wanted)].name,
        "source_table": t.raw_source_table or f"{t.source_schema}.{t.source_table}",
    }
    if t.raw_primary_key is not None:
        key = t.raw_primary_key
        out["primary_key_column"] = key if isinstance(key, str) else list(key)
    out |= {
        "columns": [_column(c) for c in wanted.columns],
        "embedding_model": wanted.embedding_model,
        "embedding_dimensions": wanted.embedding_dimensions,
        "store": t.store,
        "mode": t.mode,
        "sync_mode": t.sync_mode,
        "backfill": t.backfill,
        "separator": wanted.separator,
        "index": dict(wanted.index),
        "keep_previous": t.keep_previous,
        "keep_embedding_columns": wanted.keep_embedding_columns,
    }
    for name, default in (
        ("sync_mode", "cdc"),
        ("backfill", "auto"),
        ("separator", "\n"),
        ("keep_previous", 3600),
        ("keep_embedding_columns", False),
    ):
        if out[name] == default:
            del out[name]
    if out["index"] == {"kind": "hnsw"}:
        del out["index"]
    if t.source is not None:
        out["source"] = {"kafka_topic": t.source.kafka_topic}
        if t.source.unavailable_value != "__debezium_unavailable_value":
            out["source"]["unavailable_value"] = t.source.unavailable_value
        if t.source.slot is not None:
            out["source"]["slot"] = t.source.slot
    return out


def _column(c: Column) -> dict[str, Any]:
    out: dict[str, Any] = {"name": c.name, "role": c.role}
    out |= {k: v for k in ("ordinal", "filter_type", "alias") if (v := getattr(c, k)) is not None}
    return out | ({"name_prefix": c.name_prefix} if c.name_prefix else {})
