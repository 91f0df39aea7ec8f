"""Every operation of the API: its name, its answer, the codes of its failures. Next: `openapi` writes /openapi.json.

A route without an entry here, or an entry without a route, fails a test; so does an answer that its model does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from api import codes
from api.answers import accounts, activity, definitions, search
from api.answers.parts import Page

CODES: Mapping[str, tuple[int, str]] = {name: (code.status, code.means) for name, code in codes.CODES.items()}


@dataclass(frozen=True, slots=True)
class Operation:
    """`answer`: None = no content. `codes`: of failures, beyond those that every operation has. `headers`: of a good
    answer, beyond those that every one has. `environment`: works in one. `reads`: a read-only key may ask it although
    it is no GET. `also`: other statuses with the same kind of answer. `media`: content type of the answer (NDJSON: of
    each line). `also_as`: content types that can be asked for instead."""

    id: str
    summary: str
    answer: type[BaseModel] | None
    status: int = 200
    codes: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    environment: bool = True
    reads: bool = False
    also: Mapping[int, str] | None = None
    media: str = "application/json"
    also_as: tuple[str, ...] = ()


PARAMETERS: Mapping[str, str] = {
    "table_id": "Id or name of the vector table.",
    "connection_id": "Id or name of the connection.",
    "provider_id": "Id or name of the embedding provider.",
    "provider": "Kind of source: postgresql.",
    "task_id": "Id of the task.",
    "org_id": "Id of the organization.",
    "environment_id": "Id or name of the environment.",
    "key_id": "Id of the API key.",
    "user_id": "Id of a person.",
    "token": "Of an invitation.",
    "letter_id": "Number of the dead letter.",
    "limit": "Items per page.",
    "cursor": "next_cursor of the page before.",
    "target_id": "Only of this vector table, by id or name.",
    "task_type": "Only of this type.",
    "status": "Only in this status.",
    "table": "Only of this vector table, by id or name.",
    "ids": "Only these.",
    "topic": "Which of the vector table's topics.",
    "from": "earliest, latest, an age (10m) or an offset. Default: latest when following, else earliest.",
    "follow": "Go on with what is appended.",
    "key": "Only records with this key.",
    "partition": "Only this partition.",
}
"""What a parameter means, wherever it stands."""
_SOURCE = ("source_unavailable", "connection_not_ready")
_TABLE = ("vector_table_not_found",)
_LOG = ("log_unavailable", "log_damaged")
_WAIT = ("shutting_down",)

_PEOPLE = {
    ("POST", "/v1/auth/otp"): "request_login_code",
    ("POST", "/v1/auth/verify"): "log_in",
    ("POST", "/v1/auth/refresh"): "refresh_login",
    ("GET", "/v1/organizations/{org_id}/members"): "list_members",
    ("DELETE", "/v1/organizations/{org_id}/members/{user_id}"): "remove_member",
    ("POST", "/v1/organizations/{org_id}/leave"): "leave_organization",
    ("POST", "/v1/organizations/{org_id}/transfer-ownership"): "transfer_ownership",
    ("GET", "/v1/organizations/{org_id}/invitations"): "list_invitations",
    ("POST", "/v1/organizations/{org_id}/invitations"): "invite",
    ("POST", "/v1/organizations/invitations/{token}/accept"): "accept_invitation",
    ("GET", "/v1/billing/subscription"): "get_subscription",
}
"""What needs people, who are no part of walvec."""

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    **{
        place: Operation(
            name, "Not supported: walvec keeps no people", None, 501, ("not_supported",), environment=False
        )
        for place, name in _PEOPLE.items()
    },
    ("POST", "/v1/organizations"): Operation(
        "create_organization",
        "Create an organization, its environment prod and its first API key",
        accounts.OrganizationMade,
        201,
        ("organization_conflict",),
        environment=False,
    ),
    ("GET", "/v1/organizations"): Operation(
        "list_organizations", "List organizations", Page[accounts.Organization], environment=False
    ),
    ("GET", "/v1/organizations/{org_id}"): Operation(
        "get_organization", "Get an organization", accounts.Organization, codes=("org_not_found",), environment=False
    ),
    ("DELETE", "/v1/organizations/{org_id}"): Operation(
        "delete_organization",
        "Delete an organization with all that it holds",
        accounts.Organization,
        202,
        ("org_not_found", "organization_conflict"),
        environment=False,
    ),
    ("POST", "/v1/environments"): Operation(
        "create_environment",
        "Create an environment",
        accounts.Environment,
        201,
        ("environment_conflict",),
        environment=False,
    ),
    ("GET", "/v1/environments"): Operation(
        "list_environments", "List environments", Page[accounts.Environment], environment=False
    ),
    ("GET", "/v1/environments/{environment_id}"): Operation(
        "get_environment",
        "Get an environment",
        accounts.Environment,
        codes=("environment_not_found",),
        environment=False,
    ),
    ("DELETE", "/v1/environments/{environment_id}"): Operation(
        "delete_environment",
        "Delete an empty environment",
        None,
        204,
        ("environment_not_found", "environment_conflict"),
        environment=False,
    ),
    ("POST", "/v1/api-keys"): Operation(
        "create_api_key", "Create an API key", accounts.KeyMade, 201, environment=False
    ),
    ("GET", "/v1/api-keys"): Operation(
        "list_api_keys", "List API keys, revoked ones too", Page[accounts.ApiKey], environment=False
    ),
    ("DELETE", "/v1/api-keys/{key_id}"): Operation(
        "revoke_api_key", "Revoke an API key", None, 204, ("api_key_not_found",), environment=False
    ),
    ("GET", "/health"): Operation(
        "health",
        "Is walvec there, and is what it was started with applied?",
        activity.Health,
        also={503: "Not yet."},
    ),
    ("GET", "/health/live"): Operation("live", "Does the process answer?", activity.Health),
    ("GET", "/health/ready"): Operation(
        "ready",
        "Do the control database and the log answer?",
        activity.Readiness,
        also={503: "One of them does not."},
    ),
    ("POST", "/v1/providers/{provider}/connections"): Operation(
        "create_connection",
        "Create a connection",
        definitions.Connection,
        201,
        ("connection_conflict", "not_supported"),
    ),
    ("GET", "/v1/connections"): Operation("list_connections", "List connections", Page[definitions.Connection]),
    ("GET", "/v1/connections/{connection_id}"): Operation(
        "get_connection",
        "Get a connection",
        definitions.ConnectionWithSource,
        codes=("connection_not_found",),
    ),
    ("POST", "/v1/connections/{connection_id}/test"): Operation(
        "test_connection",
        "Test a connection",
        definitions.Tested,
        codes=("connection_not_found",),
    ),
    ("PUT", "/v1/connections/{connection_id}"): Operation(
        "change_connection",
        "Change a connection",
        definitions.Connection,
        codes=("connection_not_found", "connection_conflict", *_SOURCE),
    ),
    ("DELETE", "/v1/connections/{connection_id}"): Operation(
        "delete_connection",
        "Delete a connection",
        None,
        204,
        ("connection_not_found", "connection_conflict"),
    ),
    ("GET", "/v1/connections/{connection_id}/doctor"): Operation(
        "check_connection",
        "Check every precondition of a connection",
        definitions.Doctor,
        codes=("connection_not_found", *_SOURCE),
    ),
    ("POST", "/v1/embedding-providers"): Operation(
        "create_embedding_provider",
        "Create an embedding provider",
        definitions.Provider,
        201,
        ("embedding_provider_conflict", "not_supported"),
    ),
    ("GET", "/v1/embedding-providers"): Operation(
        "list_embedding_providers", "List embedding providers", Page[definitions.Provider]
    ),
    ("GET", "/v1/embedding-providers/models"): Operation(
        "list_models", "List kinds of provider with their models", definitions.Catalogue
    ),
    ("GET", "/v1/embedding-providers/catalogue"): Operation(
        "list_catalogue", "The same as …/models", definitions.Catalogue
    ),
    ("PUT", "/v1/embedding-providers/{provider_id}"): Operation(
        "change_embedding_provider",
        "Change an embedding provider",
        definitions.Provider,
        codes=("embedding_provider_not_found", "embedding_provider_conflict", "not_supported"),
    ),
    ("GET", "/v1/embedding-providers/{provider_id}"): Operation(
        "get_embedding_provider",
        "Get an embedding provider",
        definitions.Provider,
        codes=("embedding_provider_not_found",),
    ),
    ("DELETE", "/v1/embedding-providers/{provider_id}"): Operation(
        "delete_embedding_provider",
        "Delete an embedding provider",
        None,
        204,
        ("embedding_provider_not_found", "embedding_provider_conflict"),
    ),
    ("POST", "/v1/vector-tables"): Operation(
        "create_vector_table",
        "Create a vector table",
        definitions.VectorTable,
        201,
        (
            "connection_not_found",
            "embedding_provider_not_found",
            "vector_table_conflict",
            "source_table_access_denied",
            *_SOURCE,
            *_LOG,
            "store_unavailable",
            "store_rejected",
        ),
        ("ETag",),
    ),
    ("GET", "/v1/vector-tables"): Operation("list_vector_tables", "List vector tables", Page[definitions.VectorTable]),
    ("GET", "/v1/vector-tables/{table_id}"): Operation(
        "get_vector_table", "Get a vector table", definitions.VectorTable, codes=_TABLE, headers=("ETag",)
    ),
    ("PUT", "/v1/vector-tables/{table_id}"): Operation(
        "change_vector_table",
        "Change a vector table; what changes its vectors builds a new generation",
        definitions.VectorTable,
        codes=(
            *_TABLE,
            *_SOURCE,
            *_LOG,
            "embedding_provider_not_found",
            "vector_table_conflict",
            "swap_in_progress",
            "source_table_changed",
            "source_table_access_denied",
            "conflict",
            "precondition_failed",
            "store_unavailable",
            "store_rejected",
        ),
        headers=("ETag",),
    ),
    ("GET", "/v1/vector-tables/{table_id}/generations"): Operation(
        "list_generations", "List a vector table's generations", definitions.Generations, codes=_TABLE
    ),
    ("POST", "/v1/vector-tables/{table_id}/rebuild/abort"): Operation(
        "abort_rebuild",
        "Give up the generation that is being built",
        definitions.VectorTable,
        codes=(*_TABLE, "nothing_to_abort", "swap_in_progress", "conflict"),
        headers=("ETag",),
    ),
    ("POST", "/v1/vector-tables/{table_id}/rollback"): Operation(
        "roll_back",
        "Bring the previous generation back",
        definitions.VectorTable,
        codes=(*_TABLE, "nothing_to_roll_back", "swap_in_progress", "conflict"),
        headers=("ETag",),
    ),
    ("DELETE", "/v1/vector-tables/{table_id}"): Operation(
        "delete_vector_table", "Delete a vector table", None, 204, _TABLE
    ),
    ("GET", "/v1/vector-tables/{table_id}/schema"): Operation(
        "get_source_schema",
        "Get the source table's schema",
        definitions.Schema,
        codes=(*_TABLE, *_SOURCE, "source_table_access_denied"),
    ),
    ("POST", "/v1/vector-tables/{table_id}/backfill"): Operation(
        "backfill",
        "Trigger a backfill",
        activity.BackfillRequested,
        codes=(*_TABLE, "backfill_in_progress", "swap_in_progress", "conflict"),
    ),
    ("GET", "/v1/vector-tables/{table_id}/sync/status"): Operation(
        "get_sync_status",
        "Get the sync status, or wait for an LSN",
        activity.SyncState,
        codes=(*_TABLE, *_SOURCE, *_WAIT),
    ),
    ("POST", "/v1/vector-tables/{table_id}/sync/drain"): Operation(
        "drain_vector_table",
        "Wait until what was committed is searchable",
        activity.TableDrained,
        codes=(*_TABLE, *_SOURCE, *_WAIT, "vector_table_not_ready", "sync_paused", "sync_error", "drain_timeout"),
    ),
    ("POST", "/v1/vector-tables/{table_id}/sync/pause"): Operation(
        "pause_sync", "Pause sync", activity.SyncChanged, codes=(*_TABLE, "sync_already_paused")
    ),
    ("POST", "/v1/vector-tables/{table_id}/sync/resume"): Operation(
        "resume_sync",
        "Resume sync, or go on after an error",
        activity.SyncChanged,
        codes=(*_TABLE, *_SOURCE, "sync_not_paused", "source_table_access_denied"),
    ),
    ("POST", "/v1/vector-tables/{table_id}/query"): Operation(
        "query",
        "Search by meaning",
        search.Found,
        reads=True,
        codes=(
            *_TABLE,
            "vector_table_not_ready",
            "embedding_provider_rejected",
            "embedding_provider_unavailable",
            "store_unavailable",
            "store_rejected",
        ),
    ),
    ("GET", "/v1/vector-tables/{table_id}/dead-letters"): Operation(
        "list_dead_letters", "List dead letters", activity.Letters, codes=_TABLE
    ),
    ("GET", "/v1/vector-tables/{table_id}/dead-letters/{letter_id}"): Operation(
        "get_dead_letter", "Get a dead letter", activity.WholeLetter, codes=(*_TABLE, "dead_letter_not_found")
    ),
    ("POST", "/v1/vector-tables/{table_id}/dead-letters/replay"): Operation(
        "replay_dead_letters", "Try dead letters again", activity.Tasks, codes=(*_TABLE, "dead_letter_not_found")
    ),
    ("DELETE", "/v1/vector-tables/{table_id}/dead-letters/{letter_id}"): Operation(
        "drop_dead_letter", "Drop a dead letter", activity.Dropped, codes=(*_TABLE, "dead_letter_not_found")
    ),
    ("DELETE", "/v1/vector-tables/{table_id}/dead-letters"): Operation(
        "drop_dead_letters", "Drop dead letters", activity.Dropped, codes=(*_TABLE, "dead_letter_not_found")
    ),
    ("GET", "/v1/tasks"): Operation("list_tasks", "List tasks, the newest first", Page[activity.Task], codes=_TABLE),
    ("GET", "/v1/tasks/{task_id}"): Operation("get_task", "Get a task", activity.Task, codes=("task_not_found",)),
    ("POST", "/v1/tasks/{task_id}/cancel"): Operation(
        "cancel_task", "Cancel a task", activity.Task, codes=("task_not_found", "task_not_cancellable")
    ),
    ("GET", "/v1/topics"): Operation("list_topics", "List the log's topics", activity.Topics, codes=_LOG),
    ("GET", "/v1/vector-tables/{table_id}/tail"): Operation(
        "tail",
        "Read the log's records, one JSON object per line",
        activity.Record,
        codes=(*_TABLE, *_LOG),
        media="application/x-ndjson",
    ),
    ("POST", "/v1/vector-tables/{table_id}/replay"): Operation(
        "replay",
        "Append what the log's changes hold once more; one JSON object of progress per line",
        activity.Replayed,
        codes=(*_TABLE, *_LOG),
        media="application/x-ndjson",
    ),
    ("GET", "/v1/status"): Operation("list_status", "What every vector table is doing", activity.Statuses),
    ("GET", "/v1/status/{table_id}"): Operation(
        "get_status", "What a vector table is doing", activity.Statuses, codes=_TABLE
    ),
    ("POST", "/v1/drain"): Operation(
        "drain", "Wait until what is committed now is searchable", activity.Drained, codes=(*_TABLE, *_WAIT)
    ),
    ("POST", "/v1/vector-tables/{table_id}/verify"): Operation(
        "verify",
        "Compare source and store",
        activity.Verified,
        codes=(*_TABLE, *_SOURCE, *_WAIT, "not_drained", "repair_failed", "store_unavailable"),
    ),
    ("GET", "/v1/export"): Operation(
        "export",
        "Write the definitions as a document",
        definitions.ExportedDocument,
        also_as=("application/yaml",),
    ),
    ("POST", "/v1/apply"): Operation(
        "apply",
        "Make a definitions document true",
        definitions.Applied,
        codes=(
            *_SOURCE,
            *_LOG,
            "store_unavailable",
            "store_rejected",
            "source_table_access_denied",
            "source_table_changed",
            "vector_table_conflict",
            "swap_in_progress",
            "backfill_in_progress",
            "conflict",
        ),
    ),
}
