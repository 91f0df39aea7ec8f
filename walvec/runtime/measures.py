"""The names of all metrics, each below the question that it answers; docs/metrics.md describes them to users.

A role counts in plain data where it works (per batch, never per row) and makes samples of it when it is scraped.
Labels are few: vector tables, connections and providers by their names, stages, and words of fixed lists.
Next: `walvec.runtime.metrics` writes samples down for Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from walvec.contracts.histograms import Histogram

Kind = Literal["counter", "gauge", "histogram"]

ALL: list[Metric] = []
"""In the order of docs/metrics.md."""


class Sample(NamedTuple):
    metric: Metric
    value: float | Histogram
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One name. `roles` export it; a sample has one text per label, in their order."""

    name: str
    kind: Kind
    roles: tuple[str, ...]
    labels: tuple[str, ...]
    help: str

    def __post_init__(self) -> None:
        ALL.append(self)

    def of(self, value: float | Histogram, *labels: str) -> Sample:
        if len(labels) != len(self.labels):
            raise AssertionError(f"{self.name} has the labels {self.labels}, not {labels}")
        return Sample(self, value, labels)


def _counter(name: str, roles: str, labels: str, text: str) -> Metric:
    return Metric(name, "counter", tuple(roles.split()), tuple(labels.split()), text)


def _gauge(name: str, roles: str, labels: str, text: str) -> Metric:
    return Metric(name, "gauge", tuple(roles.split()), tuple(labels.split()), text)


def _histogram(name: str, roles: str, labels: str, text: str) -> Metric:
    return Metric(name, "histogram", tuple(roles.split()), tuple(labels.split()), text)


# -------------------------------------------------------------------------------------------------- every role

# Which version runs where?
BUILD_INFO = _gauge(
    "walvec_build_info", "cdc embedder sink api", "role version python", "Always 1; the labels say what runs."
)
# Does what this role stands on answer it: is it the broker, the control database, or we?
DEPENDENCY_UP = _gauge(
    "walvec_dependency_up",
    "cdc embedder sink api",
    "dependency",
    "1 if the log or the control database answered this role within 3 s of the scrape, else 0.",
)
# How often did this role wait for something that was away, and for what?
RETRIES = _counter(
    "walvec_retries_total",
    "cdc embedder sink api",
    "kind",
    "Attempts of this process that failed because something was out of reach, by kind: log_unavailable (the broker), "
    "control_unavailable, store_unavailable, source_unavailable, source_rejected. Each is tried again.",
)

# -------------------------------------------------------------------------------------------------- cdc: the stream

# Is anybody reading the source's write-ahead log?
STREAMING = _gauge(
    "walvec_streaming",
    "cdc",
    "connection",
    "1 while this process reads the connection's slot; 0 while it is the standby or connects anew.",
)
# How many row changes come from the source?
CHANGES_READ = _counter(
    "walvec_changes_read_total",
    "cdc",
    "connection",
    "Row changes of source tables with a vector table, as the stream delivered them.",
)
# How far has the stream come, and where is it held up: at the source, in the log, at the confirmation?
WAL_POSITION = _gauge(
    "walvec_wal_position_bytes",
    "cdc",
    "connection position",
    "Positions in the write-ahead log (LSN as a number): received, durable in the log, confirmed to the source.",
)
# Does the source still hear from us? (It ends a silent session after wal_sender_timeout, 60 s by default.)
FEEDBACK_AGE = _gauge(
    "walvec_feedback_age_seconds",
    "cdc",
    "connection",
    "Since the last status message was sent to the source; no series while not streaming.",
)
# Does the stream carry what is written to the source, even when the tables are idle?
HEARTBEAT_AGE = _gauge(
    "walvec_heartbeat_age_seconds",
    "cdc",
    "connection",
    "Since our own last message came back through the write-ahead log (one is sent every 5 s); no series while not "
    "streaming.",
)
# How long does the write-ahead log take from the source to us?
HEARTBEAT_LATENCY = _gauge(
    "walvec_heartbeat_latency_seconds",
    "cdc",
    "connection",
    "From sending our own last message to reading it from the stream (two clocks when they run on two machines).",
)
# Is the log slower than the source?
IN_FLIGHT_BYTES = _gauge(
    "walvec_in_flight_bytes", "cdc", "connection", "Bytes of records handed to the log and not durable yet."
)
# For how much of the time was the source not read because the log was slower?
BACKPRESSURE = _counter(
    "walvec_backpressure_seconds_total",
    "cdc",
    "connection",
    "Time in which the stream was not read on because too much was in flight to the log.",
)
# How often does the session with the source break, and why?
RECONNECTS = _counter(
    "walvec_source_reconnects_total",
    "cdc",
    "connection kind",
    "Stream sessions that ended or could not begin, by kind of error; slot_in_use is the standby's normal answer.",
)
# Were changes lost, so that tables had to be read again?
GAPS = _counter(
    "walvec_gaps_total",
    "cdc",
    "connection",
    "Gaps found at the start of a session (slot lost, log lost, other timeline); each opened rebackfills.",
)
# How fast does a backfill read?
BACKFILL_ROWS = _counter(
    "walvec_backfill_rows_read_total", "cdc", "table", "Rows that backfills read from the source and wrote to the log."
)
# How long from COMMIT until the change can be read from the log?
COMMIT_TO_LOG = _histogram(
    "walvec_commit_to_log_seconds",
    "cdc",
    "table",
    "From the oldest COMMIT of an append to its durability in the log; one value per append.",
)
# How long does the log take to make an append durable (Kafka: all in-sync replicas)?
LOG_APPEND = _histogram(
    "walvec_log_append_seconds", "cdc", "table", "From the call to durability; one value per append of the stream."
)

# -------------------------------------------------------------------------------------------------- stages

# How much work comes into a stage?
RECORDS_READ = _counter(
    "walvec_records_read_total", "embedder sink", "table stage", "Records that a stage has polled from the log."
)
# How much work does a stage hand on?
RECORDS_WRITTEN = _counter(
    "walvec_records_written_total",
    "cdc embedder",
    "table stage",
    "Records that a stage has made durable in the log: cdc and backfill in .changes, embedder in .vectors.",
)
# Do stages work in batches that are large enough to be cheap, small enough to be quick?
BATCH_RECORDS = _histogram(
    "walvec_batch_records",
    "cdc embedder sink",
    "table stage",
    "Records per append (cdc) or per poll (embedder, sink).",
)
# What could not be processed, and in which way?
DEAD_LETTERS = _counter(
    "walvec_dead_letters_total",
    "cdc embedder sink",
    "table kind",
    "Dead letters written, by kind: decode, provider, store, too_large.",
)

# -------------------------------------------------------------------------------------------------- embedder

# How long does a change wait in the log and for its vector?
LOG_TO_EMBEDDED = _histogram(
    "walvec_log_to_embedded_seconds",
    "embedder",
    "table",
    "From the append of a polled batch's oldest record until all of the batch's vectors are durable in the log; "
    "one value per batch.",
)
# How many rows got a vector?
ROWS_EMBEDDED = _counter(
    "walvec_rows_embedded_total", "embedder", "table", "Rows for which a vector was written, paid for or found."
)
# What is paid for?
TEXTS_SENT = _counter(
    "walvec_texts_sent_total", "embedder", "table", "Texts sent to the provider, again after a failure included."
)
# What was not paid for, and why not?
TEXTS_SAVED = _counter(
    "walvec_texts_saved_total",
    "embedder",
    "table reason",
    "Texts that were not sent: unchanged (the row's text is the one that is stored), superseded (the store has a newer "
    "version), coalesced (a later change of the row is in the same batch), same_batch (another row or batch sends the "
    "same text now), store_hash (the store has a vector of the same text), memory (it was sent a moment ago).",
)
# Are texts cut at the provider's limit?
TEXTS_CUT = _counter(
    "walvec_texts_cut_total", "embedder", "table", "Texts of which only the head was sent, since they are too long."
)
# About how many tokens does a table send?
TOKENS_ESTIMATED = _counter(
    "walvec_tokens_estimated_total", "embedder", "table", "Tokens of the texts sent, estimated from their length."
)
# How many tokens does the provider count (and bill)?
TOKENS = _counter(
    "walvec_provider_tokens_total",
    "embedder",
    "provider model dimensions",
    "Tokens as the provider's answers count them; no series for providers that do not tell.",
)
# Why are requests sent again?
PROVIDER_RETRIES = _counter(
    "walvec_provider_retries_total",
    "embedder",
    "table class",
    "Requests that failed, by class: wait (rate limit, overload, network), stop (key, bill, model), input (this text), "
    "answer (not what was asked for).",
)
# How long does the provider take, and how do its answers end?
PROVIDER_REQUEST = _histogram(
    "walvec_provider_request_seconds",
    "embedder",
    "provider model dimensions outcome",
    "Duration of requests to the provider, by outcome: ok, wait, stop, input, answer.",
)
# Are requests filled?
PROVIDER_TEXTS = _histogram(
    "walvec_provider_request_texts", "embedder", "provider model dimensions", "Texts per request."
)
# Is the provider's limit of concurrent requests used?
PROVIDER_IN_FLIGHT = _gauge(
    "walvec_provider_in_flight_requests",
    "embedder",
    "provider model dimensions",
    "Requests that wait for an answer now.",
)
# How many texts wait for the provider?
PROVIDER_QUEUED = _gauge(
    "walvec_provider_queued_texts",
    "embedder",
    "provider model dimensions",
    "Texts that are wanted and not answered yet.",
)
# Does the provider refuse until a person acts?
PROVIDER_STOPPED = _gauge(
    "walvec_provider_stopped",
    "embedder",
    "provider model dimensions",
    "1 while the provider says stop (key, bill, model); it is asked again at most 60 s apart.",
)

# -------------------------------------------------------------------------------------------------- sink

# How many vectors, claims and deletes reach the store?
VECTORS_APPLIED = _counter("walvec_vectors_applied_total", "sink", "table", "Records that changed the store.")
# How many are late or repeated? (After a restart or a replay that is normal.)
VECTORS_REFUSED = _counter(
    "walvec_vectors_refused_total",
    "sink",
    "table",
    "Records that the guard passed over: the store, or a later record of the same batch, is as new or newer.",
)
# How often was a text believed to be stored, and was not?
CLAIMS_SENT_BACK = _counter(
    "walvec_claims_sent_back_total",
    "sink",
    "table",
    "Claims that did not hold and went back to the embedder as forced changes.",
)
# How long does the store take?
STORE_APPLY = _histogram(
    "walvec_store_apply_seconds", "sink", "table", "Duration of a batch's write, retries included."
)
# How long from COMMIT until the vector can be searched?
COMMIT_TO_STORED = _histogram(
    "walvec_commit_to_stored_seconds",
    "sink",
    "table",
    "From COMMIT at the source to the store, end to end; one value per streamed change, none for backfilled rows.",
)

# -------------------------------------------------------------------------------------------------- api: the observer
# The api role looks at the log, the control database and the sources from outside, so that these are right while any
# other role is down. Several api processes give the same values: take max by (…).

# Is work waiting, and before which stage?
LAG_RECORDS = _gauge(
    "walvec_lag_records",
    "api",
    "table stage",
    "Records that a stage (bridge, embedder, sink) has not committed; 0 when idle.",
)
# How old is the oldest change that is not in the store?
LAG_SECONDS = _gauge(
    "walvec_lag_seconds",
    "api",
    "table stage",
    "Age of the oldest record that a stage (bridge, embedder, sink) has not committed; 0 when idle, growing while a "
    "role is down.",
)
# What is a table doing?
TABLE_STATE = _gauge(
    "walvec_table_state",
    "api",
    "table state",
    "1 for the state that the table is in, 0 for the others: pending, backfilling, synced, paused, blocked, error, "
    "pending_rebackfill.",
)
# How many changes wait for somebody to mend them?
DEAD_LETTERS_OPEN = _gauge("walvec_dead_letters_open", "api", "table", "Dead letters in the table's list now.")
# How far is a backfill?
BACKFILL_DONE = _gauge(
    "walvec_backfill_rows_done", "api", "table", "Rows that the open backfill has read; no series without one."
)
# When will it be done? (done / estimated, and the rate of done)
BACKFILL_ESTIMATED = _gauge(
    "walvec_backfill_rows_estimated",
    "api",
    "table",
    "Rows that the open backfill is estimated to have, never below what is done.",
)
# Does the source answer, seen from the api role?
SOURCE_UP = _gauge("walvec_source_up", "api", "connection", "1 if the source answered the api role, else 0.")
# Will the source's disk fill up because of our slot?
SLOT_RETAINED = _gauge(
    "walvec_slot_retained_bytes", "api", "connection", "Write-ahead log that the source keeps for the slot."
)
# How much has the source written that walvec has not confirmed?
SLOT_UNCONFIRMED = _gauge(
    "walvec_slot_unconfirmed_bytes", "api", "connection", "Write-ahead log behind the slot's confirmed position."
)
# Does anybody read the slot, as the source sees it?
SLOT_ACTIVE = _gauge("walvec_slot_active", "api", "connection", "1 while a session reads the slot, else 0.")
# Is the slot about to be given up by the source?
SLOT_STATUS = _gauge(
    "walvec_slot_status",
    "api",
    "connection status",
    "1 for the slot's wal_status, 0 for the others: reserved, extended, unreserved, lost, missing.",
)
# Is a cdc role alive, whoever it is? (It reports every second.)
CDC_REPORT_AGE = _gauge(
    "walvec_cdc_report_age_seconds", "api", "connection", "Since a cdc role last reported on the connection."
)
# How large is the log, and which table's?
LOG_BYTES = _gauge("walvec_log_bytes", "api", "table topic", "Bytes of a topic: changes, vectors, dead.")
# How near is the local log to its limit, at which cdc waits?
LOG_LIMIT = _gauge("walvec_log_limit_bytes", "api", "", "Setting log.max_bytes of the local log; no series on Kafka.")
# Can the observer's values be believed?
OBSERVATION_AGE = _gauge(
    "walvec_observation_age_seconds", "api", "", "Age of the values that the api role observed; above 0 if it is slow."
)
# What could the observer not see?
OBSERVATION_FAILURES = _counter(
    "walvec_observation_failures_total",
    "api",
    "what",
    "Looks that failed or took too long, by what was looked at: log, control_database, source.",
)
