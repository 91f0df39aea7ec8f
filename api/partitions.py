"""A partitioned table and one of its partitions cannot both feed vector tables through one connection.

Their publication has both, and Postgres then tells every change of the partition under the partitioned table's name
alone (`publish_via_partition_root`): the partition's own vector table would stand still. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from walvec.contracts.errors import DefinitionError
from walvec.contracts.sources import SourceTable
from walvec.definitions.model import VectorTable


def check_partitions(table: VectorTable, found: SourceTable, others: Iterable[VectorTable], *, new: bool) -> None:
    """`found`: its source table. `new`: it is not defined yet; one that is keeps its place above a partition's.

    Raises DefinitionError. What comes by a topic of others (`source`) is in no publication, and stands beside both.
    """
    if table.source is not None:
        return
    for other in others:
        if other.id == table.id or other.connection_id != table.connection_id or other.source is not None:
            continue
        place = (other.source_schema, other.source_table)
        if place in found.above:
            raise _refused(table, other, partition=table, root=other)
        if new and place in found.below:
            raise _refused(table, other, partition=other, root=table)


def _refused(table: VectorTable, other: VectorTable, *, partition: VectorTable, root: VectorTable) -> DefinitionError:
    leaf = f"{partition.source_schema}.{partition.source_table}"
    whole = f"{root.source_schema}.{root.source_table}"
    return DefinitionError(
        f"vector tables {table.name!r} and {other.name!r} cannot both be fed by one connection: {leaf}, source table "
        f"of {partition.name!r}, is a partition of {whole}, that of {root.name!r}: Postgres tells its changes as "
        f"changes of {whole} alone.",
        f"Use {root.name!r} for the rows of {leaf} too, delete one of the two, or define one over another connection.",
    )
