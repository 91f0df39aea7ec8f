"""Settings to the log they ask for. Next: `local.log`, `kafka.log`."""

from __future__ import annotations

from walvec.runtime.settings import Settings
from walvec.transport.local import open_local_log
from walvec.transport.ports import Log


def open_log(settings: Settings) -> Log:
    """Raises ConfigError, LogDamaged, LogUnavailable."""
    if settings.log.kind == "kafka":
        from walvec.transport.kafka import open_kafka_log

        return open_kafka_log(settings.kafka)
    return open_local_log(settings.data_dir, settings.log)
