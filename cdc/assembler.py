"""Replication frames -> records with positions, and what else the stream tells. Pure.

It knows the relations that the server announced and the tables that are wanted, and counts ordinals: within a
transaction INSERT and DELETE take one, an UPDATE takes two when it carries an old tuple, else one; TRUNCATE takes one
per relation; rows of tables that nobody wants count too, so that a replay gives the same numbers whatever is wanted
by then. Rule stamp-ordinal: changes count from 1, 0 belongs to stamps. Next: `cdc.encoder` writes the records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cdc import pgoutput
from cdc.encoder import Batch, Rejected, RowEncoder, TablePlan, Transaction, Unfit
from cdc.pgoutput import (
    COMMIT,
    DELETE,
    INSERT,
    KEEPALIVE,
    NEW,
    U32,
    UPDATE,
    WAL,
    WAL_HEADER,
    WHOLE_ROW,
    Begin,
    Commit,
    LogicalMessage,
    Relation,
    Truncate,
    Tuple,
    read_new,
    read_old,
    read_old_and_new,
)
from walvec.contracts.errors import DecodeError, TableChanged

Encoder = RowEncoder | Unfit

_UNWRITABLE = (DecodeError, TableChanged, TypeError, ValueError, IndexError)
_KIND = WAL_HEADER
_OID = WAL_HEADER + 1
_ROW = WAL_HEADER + 5


@dataclass(slots=True)
class Fed:
    """What a run of frames brought, beside records.

    `commits`: (xid, commit LSN). `reached`: LSN up to which the stream is complete, 0 = no news. `changed`: tables that
    stopped, also those found by `route` since the last run. `rows`: those of wanted tables.
    """

    commits: list[tuple[int, int]] = field(default_factory=list)
    reached: int = 0
    reply_wanted: bool = False
    messages: list[LogicalMessage] = field(default_factory=list)
    changed: list[tuple[str, TableChanged]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    rows: int = 0


class Assembler:
    """One session's stream. `routes` says which vector tables are wanted; changes of all others are only counted."""

    def __init__(self, epoch: int, database: str) -> None:
        self._epoch = epoch
        self._database = database
        self._relations: dict[int, Relation] = {}
        self._plans: dict[str, tuple[TablePlan, Batch]] = {}
        self._batches: list[Batch] = []
        self._encoders: dict[int, list[Encoder]] = {}
        self._transaction: Transaction | None = None
        self._ordinal = 0
        self._fed = Fed()

    # ------------------------------------------------------------------ what is wanted

    def route(self, plan: TablePlan, batch: Batch) -> None:
        """Wants this vector table from the next frame on (or wants it otherwise than before)."""
        self.drop(plan.table_id)
        self._plans[plan.table_id] = (plan, batch)
        if batch not in self._batches:
            self._batches.append(batch)
        for relation in self._relations.values():
            if (plan.schema, plan.source_table) == (relation.schema, relation.name):
                encoder: Encoder
                try:
                    encoder = RowEncoder(plan, relation, batch, self._database)
                except TableChanged as e:
                    # the relation may have been mended since it was sent: its next message, or a row without one, tells
                    encoder = Unfit(plan, e)
                self._encoders[relation.oid].append(encoder)

    def drop(self, table_id: str) -> None:
        """Does not want it any more. Records in hand stay in their batch."""
        self._plans.pop(table_id, None)
        for oid, encoders in self._encoders.items():
            self._encoders[oid] = [e for e in encoders if e.plan.table_id != table_id]

    def wants(self, table_id: str) -> bool:
        return table_id in self._plans

    @property
    def within_transaction(self) -> bool:
        return self._transaction is not None

    def batches(self) -> list[Batch]:
        """Those with records in hand."""
        return [batch for batch in self._batches if batch.records]

    # ------------------------------------------------------------------ the stream

    def feed(self, frames: Iterable[bytes]) -> Fed:
        """Takes CopyData frames in order. Raises DecodeError; then the session cannot go on."""
        try:
            for data in frames:
                if data[0] != WAL:
                    self._other_frame(data)
                    continue
                kind = data[_KIND]
                if kind == INSERT:
                    self._ordinal += 1
                    encoders = self._encoders.get(U32(data, _OID)[0])
                    if encoders:
                        self._fed.rows += 1
                        for encoder in encoders:
                            if encoder.transaction is not self._transaction:
                                self._transaction_of(encoder)
                            if not encoder.plain(data, _ROW, self._ordinal, created=True):
                                self._insert(encoder, data)
                elif kind == UPDATE:
                    # the old tuple's marker decides how many ordinals the UPDATE takes, wanted or not
                    alone = data[_ROW] == NEW
                    self._ordinal += 1 if alone else 2
                    encoders = self._encoders.get(U32(data, _OID)[0])
                    if encoders:
                        self._fed.rows += 1
                        for encoder in encoders:
                            if encoder.transaction is not self._transaction:
                                self._transaction_of(encoder)
                            if not alone or not encoder.plain(data, _ROW, self._ordinal, created=False):
                                self._update(encoder, data)
                elif kind == DELETE:
                    self._ordinal += 1
                    encoders = self._encoders.get(U32(data, _OID)[0])
                    if encoders:
                        self._fed.rows += 1
                        for encoder in encoders:
                            if encoder.transaction is not self._transaction:
                                self._transaction_of(encoder)
                            self._delete(encoder, data)
                else:
                    self._message(data, kind)
        except (IndexError, struct.error) as e:
            raise DecodeError("a replication frame is cut short.", "The stream is started again.") from e
        fed, self._fed = self._fed, Fed()
        return fed

    # ------------------------------------------------------------------ rows

    def _transaction_of(self, encoder: Encoder) -> None:
        if self._transaction is None:
            raise DecodeError("a row outside a transaction.", "The stream is started again.")
        encoder.begin(self._transaction)

    def _insert(self, encoder: Encoder, data: bytes) -> None:
        new, end = read_new(data, _ROW)
        if end != len(data):
            raise IndexError
        try:
            encoder.insert(new, self._ordinal)
        except _UNWRITABLE as e:
            self._reject(encoder, new, e)

    def _update(self, encoder: Encoder, data: bytes) -> None:
        old_kind, old, new, end = read_old_and_new(data, _ROW)
        if end != len(data):
            raise IndexError
        try:
            encoder.update(old_kind == WHOLE_ROW, old, new, self._ordinal)
        except _UNWRITABLE as e:
            self._reject(encoder, new, e)

    def _delete(self, encoder: Encoder, data: bytes) -> None:
        old_kind, gone, end = read_old(data, _ROW)
        if end != len(data):
            raise IndexError
        try:
            encoder.delete(old_kind == WHOLE_ROW, gone, self._ordinal)
        except _UNWRITABLE as e:
            self._reject(encoder, gone, e)

    def _reject(self, encoder: Encoder, values: Tuple, error: Exception) -> None:
        if isinstance(encoder, Unfit):
            self._stop(encoder.plan, encoder.reason)
            return
        if not isinstance(error, DecodeError):
            error = DecodeError(f"a row's values are not what their columns' types say ({type(error).__name__}).")
        self._fed.rejected.append(encoder.reject(values, self._ordinal, error))

    # ------------------------------------------------------------------ everything else

    def _other_frame(self, data: bytes) -> None:
        if data[0] != KEEPALIVE:
            raise DecodeError(f"unknown replication frame {data[0]:#x}.", "The stream is started again.")
        keepalive = pgoutput.decode_keepalive(data)
        self._fed.reply_wanted |= keepalive.reply_wanted
        if self._transaction is None:
            self._reached(keepalive.end_lsn)

    def _message(self, data: bytes, kind: int) -> None:
        message = pgoutput.decode(data, WAL_HEADER)
        if isinstance(message, Begin):
            if self._transaction is not None:
                raise DecodeError("a transaction within another.", "The stream is started again.")
            self._transaction = Transaction(self._epoch, message.commit_lsn, message.xid, message.commit_ms)
            self._ordinal = 0
        elif isinstance(message, Commit):
            transaction = self._transaction
            if kind != COMMIT or transaction is None or transaction.commit_lsn != message.commit_lsn:
                raise DecodeError("a COMMIT of another transaction.", "The stream is started again.")
            self._fed.commits.append((transaction.xid, message.commit_lsn))
            self._transaction = None
            self._reached(message.end_lsn)
        elif isinstance(message, Relation):
            self._relation(message)
        elif isinstance(message, Truncate):
            self._truncate(message.oids)
        elif isinstance(message, LogicalMessage):
            self._fed.messages.append(message)
            if not message.transactional and self._transaction is None:
                self._reached(message.lsn)

    def _reached(self, lsn: int) -> None:
        self._fed.reached = max(self._fed.reached, lsn)

    def _truncate(self, oids: Sequence[int]) -> None:
        for oid in oids:
            self._ordinal += 1
            for encoder in self._encoders.get(oid, ()):
                if encoder.transaction is not self._transaction:
                    self._transaction_of(encoder)
                try:
                    encoder.truncate(self._ordinal)
                except TableChanged as e:
                    self._stop(encoder.plan, e)

    def _relation(self, relation: Relation) -> None:
        before = self._relations.get(relation.oid)
        name = (relation.schema, relation.name)
        if before is not None and (before.schema, before.name) != name:
            for plan, _ in list(self._plans.values()):
                if (plan.schema, plan.source_table) == (before.schema, before.name):
                    self._stop(
                        plan,
                        TableChanged(
                            f"{before.schema}.{before.name} was renamed to {relation.schema}.{relation.name}.",
                            f"Name the table in the definition of {plan.name} as it is now, or undo it and resume.",
                        ),
                    )
        for oid, other in list(self._relations.items()):
            if oid != relation.oid and (other.schema, other.name) == name:  # dropped, and made anew under its name
                del self._relations[oid], self._encoders[oid]
        self._relations[relation.oid] = relation
        self._encoders[relation.oid] = []
        for plan, batch in list(self._plans.values()):
            if (plan.schema, plan.source_table) == name:
                self._bind(plan, batch, relation)

    def _bind(self, plan: TablePlan, batch: Batch, relation: Relation) -> None:
        try:
            self._encoders[relation.oid].append(RowEncoder(plan, relation, batch, self._database))
        except TableChanged as e:
            self._stop(plan, e)

    def _stop(self, plan: TablePlan, reason: TableChanged) -> None:
        """This table alone stops; what was written of it before still goes out."""
        self._fed.changed.append((plan.table_id, reason))
        self.drop(plan.table_id)
