"""Kinds of failure. An adapter turns a foreign exception into one of these; nothing above it sees another library's.

Every error says what is wrong (`message`) and what mends it (`cure`): both are shown to the user as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence


class WalvecError(Exception):
    """Base of all expected failures. `kind` is stable and machine-readable."""

    kind = "internal"

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message} {self.cure}".rstrip() if self.cure else self.message


class DecodeError(WalvecError):
    """Bytes that are not what the protocol or the wire format says."""

    kind = "decode"


class ConfigError(WalvecError):
    """Settings or a definitions file that cannot be used."""

    kind = "config"


class DefinitionError(WalvecError):
    """A definition that does not fit the source, the provider or the store."""

    kind = "definition"


class SourceTableDenied(DefinitionError):
    """The connection's user may not read the source table."""

    kind = "source_table_denied"


class SourceUnavailable(WalvecError):
    """The source database cannot be reached now; try again."""

    kind = "source_unavailable"


class SourceRejected(WalvecError):
    """The source answers, and refuses: a right, a setting, a password. A person must mend it."""

    kind = "source_rejected"


class SlotInUse(WalvecError):
    """Another reader holds the slot (55006). Wait: this process is the standby."""

    kind = "slot_in_use"


class SlotLost(WalvecError):
    """The slot is gone or invalidated (42704, 55000): a gap, handled by the `on_slot_loss` policy."""

    kind = "slot_lost"


class TableChanged(WalvecError):
    """A used column was dropped, renamed or retyped: this table stops, the others go on. `column`: where one is to
    blame alone; `recorded`: oid of the type that it does not have any more, 0 when it is gone."""

    kind = "table_changed"

    def __init__(self, message: str, cure: str = "", *, column: str | None = None, recorded: int = 0) -> None:
        super().__init__(message, cure)
        self.column = column
        self.recorded = recorded


class ProviderWait(WalvecError):
    """Rate limit, overload, transport: pause the provider, no row loses an attempt. `retry_after`: seconds or None."""

    kind = "provider_wait"

    def __init__(self, message: str, cure: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, cure)
        self.retry_after = retry_after


class ProviderStop(WalvecError):
    """Bill, key, model: the table is blocked until a person acts; probed slowly, heals by itself."""

    kind = "provider_stop"


class ProviderRejectedInput(WalvecError):
    """Something in this request cannot be embedded: halve down to the culprit, then dead letter.

    `limit` names a request limit the answer taught ("items", "tokens", "bytes"), or None; then nobody is guilty.
    """

    kind = "provider_input"

    def __init__(self, message: str, cure: str = "", limit: str | None = None) -> None:
        super().__init__(message, cure)
        self.limit = limit


class StoreUnavailable(WalvecError):
    """The vector store cannot be reached now; try again."""

    kind = "store_unavailable"


class StoreRejected(WalvecError):
    """The store refuses this data or this definition; trying again changes nothing."""

    kind = "store_rejected"


class ViewTaken(StoreRejected):
    """Another vector table has the view's name, or is just being made with it."""

    kind = "view_taken"


class LogUnavailable(WalvecError):
    """The log cannot be written or read now; try again."""

    kind = "log_unavailable"


class LogDamaged(WalvecError):
    """The local log's file is damaged. It is kept; a rebackfill is the cure."""

    kind = "log_damaged"


class RecordsLost(WalvecError):
    """The place to read from is not kept any more: a gap, handled by a rebackfill. `resume_at`: from where on there is
    something to read again."""

    kind = "records_lost"

    def __init__(self, message: str, cure: str = "", *, topic: str, partition: int, resume_at: int) -> None:
        super().__init__(message, cure)
        self.topic = topic
        self.partition = partition
        self.resume_at = resume_at


class RecordTooLarge(WalvecError):
    """Records that the topic does not take; nothing of their append was sent. `indices`: their places in that append;
    `limit`: bytes of key, value and headers together that fit."""

    kind = "record_too_large"

    def __init__(self, message: str, cure: str = "", *, indices: Sequence[int], limit: int) -> None:
        super().__init__(message, cure)
        self.indices = tuple(indices)
        self.limit = limit


class PartitionLost(WalvecError):
    """The partition belongs to another consumer now; what is in hand is given up."""

    kind = "partition_lost"


class ControlUnavailable(WalvecError):
    """The control database cannot be reached now; try again."""

    kind = "control_unavailable"


class NotFound(WalvecError):
    """No such connection, provider, vector table, task or letter."""

    kind = "not_found"


class Conflict(WalvecError):
    """It exists already, or is in a state that does not allow this. `code`: which of them, for a program."""

    kind = "conflict"

    def __init__(self, message: str, cure: str = "", *, code: str = "conflict") -> None:
        super().__init__(message, cure)
        self.code = code


class PreconditionFailed(WalvecError):
    """It is not what the caller has seen any more: somebody else changed it meanwhile."""

    kind = "precondition_failed"
