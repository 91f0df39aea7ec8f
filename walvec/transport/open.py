"""Settings to the log they ask for. Next: `local.log`."""

from __future__ import annotations

from walvec.contracts.errors import ConfigError
from walvec.runtime.settings import Settings
from walvec.transport.local import open_local_log
from walvec.transport.ports import Log


def open_log(settings: Settings) -> Log:
    """Raises ConfigError, LogDamaged, LogUnavailable."""
    if settings.log.kind == "kafka":
        raise ConfigError("The Kafka log is not built in this version.", "Set WALVEC_LOG__KIND=local, or leave it out.")
    return open_local_log(settings.data_dir, settings.log)
