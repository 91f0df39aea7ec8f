"""Every code of a failure: its status, what it means, and what cures it. One table for answers, docs and /errors.

Next: `problems` finds the code of an exception, `documented` which operation answers with it, `errors` serves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Code(NamedTuple):
    status: int
    means: str
    cure: str


_NAME = "Take another name."
_AGAIN = "Ask again after Retry-After seconds; walvec reconnects by itself."
_LOOK = "List what there is, and ask with the right X-Environment-Id."

CODES: Mapping[str, Code] = {
    "unauthorized": Code(
        401, "the API key is missing or wrong.", "Send Authorization: Bearer <key>; `walvec keys create` makes one."
    ),
    "key_revoked": Code(401, "the API key was revoked.", "Use another key; `walvec keys create` makes one."),
    "permission_denied": Code(
        403,
        "a read-only key may only GET and query; without a key a browser may not ask for another site.",
        "Ask with a key whose permission is full.",
    ),
    "org_deleting": Code(403, "the organization is being deleted.", "Use another organization's key."),
    "source_table_access_denied": Code(
        403, "the connection's user may not read the source table.", "GRANT SELECT ON the table TO the user;"
    ),
    "resource_not_found": Code(404, "there is nothing at this path.", "See /docs for what is served."),
    "org_not_found": Code(404, "the organization does not exist, or is not the key's own.", _LOOK),
    "api_key_not_found": Code(404, "the organization has no such API key.", "GET /v1/api-keys lists them."),
    "environment_not_found": Code(404, "the environment does not exist, or belongs to somebody else.", _LOOK),
    "connection_not_found": Code(404, "the connection does not exist in this environment.", _LOOK),
    "embedding_provider_not_found": Code(404, "the embedding provider does not exist in this environment.", _LOOK),
    "vector_table_not_found": Code(404, "the vector table does not exist in this environment.", _LOOK),
    "task_not_found": Code(404, "the task does not exist in this environment.", "GET /v1/tasks lists them."),
    "dead_letter_not_found": Code(404, "the vector table has no such dead letter.", "List its dead letters."),
    "method_not_allowed": Code(405, "the path has no such method.", "Allow says which it has."),
    "request_timeout": Code(408, "the body did not come whole in time.", "Send it again, all of it at once."),
    "organization_conflict": Code(409, "the name is taken, or it is the default organization.", _NAME),
    "environment_conflict": Code(
        409,
        "the name is taken, or connections and vector tables are in the environment.",
        "Take another name; delete first what is in it.",
    ),
    "connection_conflict": Code(
        409, "the name is taken, or vector tables use the connection.", "Take another name; delete them first."
    ),
    "embedding_provider_conflict": Code(
        409, "the name is taken, or vector tables use the provider.", "Take another name; delete them first."
    ),
    "vector_table_conflict": Code(409, "the name is taken.", _NAME),
    "backfill_in_progress": Code(
        409, "a backfill of this vector table is open.", "Wait for its task, or cancel that one."
    ),
    "swap_in_progress": Code(409, "the new generation is taking over right now.", "Ask again in a moment."),
    "nothing_to_abort": Code(409, "no new generation is being built.", "GET …/generations shows them."),
    "nothing_to_roll_back": Code(409, "no former generation is kept.", "GET …/generations shows them."),
    "task_not_cancellable": Code(409, "the task cannot be cancelled.", "The message says why."),
    "sync_already_paused": Code(409, "the vector table is paused already.", "Nothing is to be done."),
    "sync_paused": Code(409, "the vector table is paused: nothing is applied.", "Resume it: POST …/sync/resume."),
    "sync_error": Code(409, "the vector table is in error: nothing is applied.", "See last_error of its sync/status."),
    "sync_not_paused": Code(409, "the vector table is not paused.", "Nothing is to be done."),
    "not_drained": Code(
        409, "the table could not be drained in time; the message says what holds it up.", "Ask again, or wait longer."
    ),
    "repair_failed": Code(409, "the repair did not end well; the message says why.", "Mend that, and verify again."),
    "idempotency_in_progress": Code(
        409, "a request with this idempotency key is being served.", "Ask again after Retry-After seconds."
    ),
    "slot_in_use": Code(
        409, "somebody else reads the connection's replication slot.", "Stop the other reader, or wait for it."
    ),
    "slot_lost": Code(409, "the server lost the connection's replication slot.", "The tables are read again."),
    "source_table_changed": Code(
        409, "the source table changed in a way that the definition does not fit.", "Change the vector table."
    ),
    "conflict": Code(409, "somebody else changed the same thing at the same time.", "Look again, then repeat."),
    "precondition_failed": Code(
        412, "it was changed since the version that If-Match names.", "GET it again, and repeat with its new ETag."
    ),
    "payload_too_large": Code(
        413, "the body is larger than walvec takes.", "Send less, or set api.max_body_bytes or api.max_apply_bytes."
    ),
    "unsupported_media_type": Code(415, "the body is not JSON.", "Send it with Content-Type: application/json."),
    "validation_error": Code(
        422, "the request does not fit; the message names the fields.", "Correct the fields that are named."
    ),
    "idempotency_key_reused": Code(
        422, "the idempotency key belongs to another request.", "Make a new key for every new request."
    ),
    "connection_not_ready": Code(
        422, "the connection is not tested, or the source refused it.", "POST /v1/connections/{id}/test says why."
    ),
    "vector_table_not_ready": Code(422, "no backfill was asked for yet.", "POST /v1/vector-tables/{id}/backfill"),
    "store_rejected": Code(422, "the store refused what was asked.", "The message says why."),
    "rate_limit_exceeded": Code(
        429, "too many requests; Retry-After says when to ask again.", "Ask again after Retry-After seconds."
    ),
    "request_failed": Code(400, "the request could not be read.", "Send HTTP as /docs describes it."),
    "internal_error": Code(500, "walvec failed in an unexpected way.", "Look for the request_id in the API's log."),
    "not_supported": Code(501, "walvec does not do this.", "See /docs for what is served."),
    "embedding_provider_rejected": Code(
        502, "the embedding provider refused walvec's request.", "Check the provider's api_key, bill and model."
    ),
    "source_unavailable": Code(503, "the source database does not answer.", _AGAIN),
    "store_unavailable": Code(503, "the store does not answer.", _AGAIN),
    "log_unavailable": Code(503, "the log does not answer.", _AGAIN),
    "log_damaged": Code(503, "the log is damaged.", "See docs/operations.md; a rebackfill is the cure."),
    "control_unavailable": Code(503, "the control database does not answer.", _AGAIN),
    "embedding_provider_unavailable": Code(503, "the embedding provider does not answer.", _AGAIN),
    "shutting_down": Code(503, "this process is ending.", _AGAIN),
    "drain_timeout": Code(504, "it was not searchable within the time-out.", "Ask again, or wait longer."),
}


def docs_url(code: str) -> str:
    return f"/errors/{code}"
