"""Which vector tables the stream feeds: definitions -> publication, topics, assembler, horizons.

Law: a table is published first, then routed, then its horizon is taken (rule start-horizon), and only then is it told
to the jobs as routed. Changes that were not published are lost without an error: the task that makes up for them is
durable before the publication is repaired, and before its new marks are. What goes wrong with one table stops that
table. Next: `cdc.streaming` reads what is routed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from cdc import slots
from cdc.assembler import Assembler
from cdc.encoder import Batch, TablePlan
from cdc.session import Session
from cdc.stream import Stream
from cdc.topics import Topics
from walvec.contracts.errors import DefinitionError, NotFound, SourceRejected, TableChanged, WalvecError
from walvec.definitions.model import Connection, VectorTable
from walvec.definitions.ports import Control
from walvec.definitions.rebackfill import read_again
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic

log = logging.getLogger(__name__)

STOPPING = frozenset({TableChanged.kind, SourceRejected.kind, DefinitionError.kind})
"""Kinds of table error under which no change is routed; under others (dead letters) they still reach the log."""


class Routes:
    """The routes of one session. `stopped` outlives it: tables that must be read again once a person mended them."""

    def __init__(
        self,
        connection: Connection,
        control: Control,
        transport: Log,
        stream: Stream,
        stopped: dict[str, int],
        version: int,
    ) -> None:
        self._connection = connection
        self._control = control
        self._log = transport
        self._topics = Topics(control, transport)
        self._stream = stream
        self._stopped = stopped
        self._version = version
        self._plans: dict[str, TablePlan] = {}
        self._marks: Mapping[str, str] | None = None
        self._assembler: Assembler | None = None

    def wanted(self, tables: Sequence[VectorTable]) -> list[VectorTable]:
        return [t for t in tables if not self._is_stopped(t)]

    def _is_stopped(self, table: VectorTable) -> bool:
        if _in_error(table):
            self._stopped.setdefault(table.id, 0)
            return True
        return self._stopped.get(table.id, 0) > self._control.feed.current.version

    def wants_topic(self, topic: str) -> bool:
        tables = self._control.feed.current.streamed_tables(self._connection.id)
        return any(changes_topic(t.storage_name) == topic for t in tables)

    async def publish(self, session: Session, tables: Sequence[VectorTable], *, first: bool) -> dict[str, int]:
        """Makes the publication what the tables need; source table oid by vector table id.

        `first`: nothing has been streamed before, so a table that is published now has lost nothing.
        """
        publication = self._connection.publication
        # durable while the table is stopped: whoever reads when a person has mended it may be another process
        stopped = [t for t in tables if _in_error(t) and t.id not in self._stopped]
        await read_again(self._control, stopped, "the table was stopped")
        wanted = self.wanted(tables)
        names = {(t.source_schema, t.source_table) for t in wanted}
        states = found = await slots.source_tables(session, publication, names)
        whole = await slots.publishes_all(session, publication)
        known = await self._known()
        touched = {t.id for t in wanted if t.id in known and known[t.id] != _mark(found, t)}
        lost = {t.id for t in wanted if t.id in self._stopped}
        if not first:
            suspects = [t for t in wanted if not (whole and _published(found, t)) or t.id in touched]
            lost |= {t.id for t in suspects if await self._was_fed(t)}
        await self._lost([t for t in wanted if t.id in lost])
        remade = await slots.ensure_publication(session, publication, self._version)
        if remade:
            states = await slots.source_tables(session, publication, names)
        added: set[int] = set()
        refused: dict[slots.TableName, WalvecError] = {}
        for name in names:
            state = states.get(name)
            try:
                if state is None:
                    raise _gone(name)
                if not state.published:
                    await slots.publish(session, publication, name, state)
                    added.add(state.oid)
            except (TableChanged, SourceRejected, DefinitionError) as e:
                refused[name] = e
        if added or remade:
            states = await slots.source_tables(session, publication, names)
        oids: dict[str, int] = {}
        late: list[VectorTable] = []
        for table in wanted:
            name = (table.source_schema, table.source_table)
            if name in refused or name not in states:
                await self.stop(table.id, refused.get(name) or _gone(name))
                continue
            oids[table.id] = states[name].oid
            self._stopped.pop(table.id, None)
            if _mark(states, table) != _mark(found, table):
                touched.add(table.id)
                if table.id not in lost and not first and await self._was_fed(table):
                    late.append(table)  # somebody altered the publication after we had looked
        if touched or remade:
            horizon = await slots.transaction_id(session)
            self._stream.table_horizons.update({oid: horizon for t, oid in oids.items() if remade or t in touched})
        try:
            await slots.unpublish(session, publication, names - refused.keys())
        except SourceRejected as e:
            # harmless: the server sends changes that nobody wants
            log.warning("table stays published", extra={"action": "unpublish_refused", "reason": e.message})
        await self._lost(late)
        marks = {t.id: _mark(states, t) for t in wanted if t.id in oids}
        if self._marks is None or marks != self._marks:
            await self._control.progress.put_published(self._connection.id, marks)
            self._marks = marks
        return oids

    async def _known(self) -> Mapping[str, str]:
        """The marks that were last stored; a table without one is taken as it is found."""
        if self._marks is None:
            self._marks = await self._control.progress.published(self._connection.id)
        return self._marks or {}

    async def _lost(self, tables: Sequence[VectorTable]) -> None:
        """Read again, but no chunk before `apply`: one that is read before the repair may miss what follows it."""
        for table in tables:
            self._stream.route(table.id, frozenset())
        await read_again(self._control, tables, "its changes were not published for a while")

    async def _was_fed(self, table: VectorTable) -> bool:
        if table.backfilled or table.id in self._plans:
            return True
        return any(t.progress for t in await self._control.tasks.open_tasks([table.id]))

    def bind(self, assembler: Assembler) -> None:
        """A new session's assembler; `apply` fills it."""
        self._assembler, self._plans = assembler, {}
        for table_id in list(self._stream.routed):
            self._stream.route(table_id, frozenset())

    async def apply(
        self, session: Session, tables: Sequence[VectorTable], oids: dict[str, int], *, read_anyway: bool = False
    ) -> None:
        """Routes the tables that have an oid, drops all others. `read_anyway`: all of them are read again anyway."""
        assert self._assembler is not None
        began: list[tuple[VectorTable, int]] = []
        for table in tables:
            oid = oids.get(table.id)
            if oid is None:
                continue
            plan = TablePlan.of(table)
            if self._plans.get(table.id) != plan or not self._assembler.wants(table.id):
                topic = changes_topic(table.storage_name)
                try:
                    partitions = await self._topics.settle(table, read_anyway=read_anyway)
                except NotFound as e:
                    log.info("table is not routed", extra={"action": "not_routed", "reason": e.message})
                    self._drop(table.id)  # the feed will tell
                    continue
                self._plans[table.id] = plan
                self._assembler.route(plan, Batch(topic, partitions, self._log.keeps_headers))
                began.append((table, oid))
            elif table.id not in self._stream.routed:
                began.append((table, oid))
        for table_id in self._plans.keys() - oids.keys():
            self._drop(table_id)
        if began:
            # rule start-horizon: taken after the route is there, so whoever began before it is waited for
            horizon = await slots.transaction_id(session)
            for table, oid in began:
                if self._stream.live:
                    self._stream.table_horizons[oid] = horizon
                if self._assembler.wants(table.id):
                    self._stream.route(table.id, frozenset(g.number for g in table.live_generations))
                    log.info("table is routed", extra={"action": "routed", "table": table.name})

    async def check_topics(self) -> None:
        """Raises TopicGone when a topic that is routed to was deleted."""
        tables = self._control.feed.current.streamed_tables(self._connection.id)
        await self._topics.check(t for t in tables if t.id in self._plans)

    async def stop(self, table_id: str, error: WalvecError) -> None:
        """This table stops until a person acts; its changes from here on are read again then. What is being built and
        alone needs the column that changed is given up instead."""
        self._drop(table_id)
        table = self._control.feed.current.vector_tables.get(table_id)
        if table is not None and await self._stalls(table, error):
            return
        log.error("table stopped", extra={"action": "table_stopped", "table_id": table_id, "kind": error.kind})
        try:
            await self._control.states.set_error(table_id, error.kind, error.message, error.cure)
        except NotFound:
            return
        await read_again(self._control, [table] if table is not None else [], "the table was stopped")
        self._stopped[table_id] = (await self._control.definitions.snapshot()).version

    async def _stalls(self, table: VectorTable, error: WalvecError) -> bool:
        if table.building is None or not isinstance(error, TableChanged) or error.column is None:
            return False
        building, active = table.building, table.active
        shared = (c for c in (*active.key, *active.used_columns) if c.name == error.column)
        if any(error.recorded in (0, c.type_oid) for c in shared):
            return False
        try:
            if not await self._control.states.set_stalled(table.id, building.number, error.kind, str(error)):
                return False
        except NotFound:
            return False
        extra = {"action": "stalled", "table": table.name, "generation": building.number, "reason": str(error)}
        log.error("generation stalled", extra=extra)
        # until the feed tells, and the active one is routed alone, its changes are not either
        await read_again(self._control, [table], "its columns changed while a generation was built")
        return True

    def _drop(self, table_id: str) -> None:
        self._plans.pop(table_id, None)
        self._stream.route(table_id, frozenset())
        if self._assembler is not None:
            self._assembler.drop(table_id)


def _in_error(table: VectorTable) -> bool:
    return table.error is not None and table.error.get("kind") in STOPPING


def _gone(name: slots.TableName) -> TableChanged:
    return TableChanged(
        f"the source table {name[0]}.{name[1]} does not exist any more.",
        "Make it again or name another one in the definition; then resume the table.",
    )


def _mark(states: Mapping[slots.TableName, slots.SourceTableState], table: VectorTable) -> str:
    state = states.get((table.source_schema, table.source_table))
    return state.mark if state is not None else ""


def _published(states: Mapping[slots.TableName, slots.SourceTableState], table: VectorTable) -> bool:
    """A table that is gone counts: it is stopped for another reason."""
    state = states.get((table.source_schema, table.source_table))
    return state is None or state.published
