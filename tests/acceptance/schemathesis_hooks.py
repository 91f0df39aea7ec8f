"""Keeps a run of schemathesis short, and what it asks about in place. See schemathesis.toml."""

import re
from itertools import count
from typing import Any

import schemathesis

_IDEMPOTENCY = re.compile("[!-~]{1,255}")
_counter = count()
KEPT = {"change_vector_table": "items", "change_connection": "source", "change_embedding_provider": "local"}
DELETES = ("delete_vector_table",)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    case.headers.pop("X-Environment-Id", None)  # an invented one is refused before anything else is looked at
    if _IDEMPOTENCY.fullmatch(str(case.headers.get("Idempotency-Key", ""))):
        case.headers["Idempotency-Key"] = f"{case.headers['Idempotency-Key'][:200]}-{next(_counter)}"  # used once
    operation = case.operation.definition.raw["operationId"]
    body, query = case.body, case.query
    if operation == "apply" and isinstance(body, dict) and body.get("prune") is True:
        body["prune"] = False  # would delete what all others ask about
    own = KEPT.get(operation)
    if own in case.path_parameters.values() and isinstance(body, dict) and isinstance(body.get("name"), str):
        body["name"] = own
    if operation in DELETES and "items" in case.path_parameters.values():
        case.path_parameters["table_id"] = "vt_0000000000000000"
    if operation in ("drain", "verify", "drain_vector_table") and isinstance(body, dict):
        body.setdefault("timeout", 0.2)  # the default is minutes
    if operation == "tail" and isinstance(query, dict) and query.get("follow") in (True, "true"):
        query["follow"] = "false"  # never ends
