"""Values as the control database's columns hold them. Next: `stored`, `tasks`, `letters`, which write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from psycopg.types.json import Json


def instant(value: datetime) -> str:
    """UTC, ISO 8601 with microseconds and Z."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def now() -> str:
    """This process's clock, as `instant`."""
    return instant(datetime.now(UTC))


def storable(text: str) -> str:
    """Postgres text holds neither NUL nor lone surrogates; a provider's message may."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def as_json(value: Mapping[str, Any]) -> Json:
    return Json(dict(value), dumps=json.dumps)
