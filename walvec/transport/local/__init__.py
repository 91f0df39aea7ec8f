"""The local log: one SQLite file (`<data_dir>/log.db`) that any number of processes append to and read.

`schema` opens it, `batches` packs records, `writer` commits groups of calls, `groups` shares partitions, `consumer`
reads, `wake` tells other processes, `retention` deletes, `log` puts them together behind the port.

Law: nothing blocks the event loop; every write goes through the writer's thread, every read through the reader's.
"""

from walvec.transport.local.log import LocalLog, open_local_log
from walvec.transport.local.schema import check, log_path, move_aside

__all__ = ["LocalLog", "check", "log_path", "move_aside", "open_local_log"]
