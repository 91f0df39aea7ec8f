"""The control database of some settings: the configured one, or the embedded server's. Used by `roles`, `direct`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SecretStr

from walvec.runtime.embedded_postgres import EmbeddedPostgres
from walvec.runtime.secret_files import secret_keys
from walvec.runtime.settings import DatabaseSettings, Settings

if TYPE_CHECKING:
    from walvec.definitions.ports import Control
    from walvec.definitions.secrets import Secrets


async def open_control(settings: Settings, secrets: Secrets | None = None) -> Control:
    """The control database of these settings, migrated."""
    from walvec.definitions import postgres
    from walvec.definitions import secrets as sealed

    url = settings.control_database.url
    assert url is not None, "with_embedded comes first"
    return await postgres.open_control(
        url.get_secret_value(),
        environment=settings.environment,
        secret_key=secrets or sealed.Secrets(*secret_keys(settings), reread=lambda: secret_keys(settings)),
    )


def needs_embedded(settings: Settings) -> bool:
    """Whether the embedded Postgres stands for a database that was not configured."""
    return settings.control_database.url is None or (settings.pgvector.url is None and settings.store == "pgvector")


def with_embedded(settings: Settings) -> Settings:
    """The settings with the embedded server's address where none was given. Raises ControlUnavailable without one."""
    if not needs_embedded(settings):
        return settings
    url = DatabaseSettings(url=SecretStr(EmbeddedPostgres(settings.data_dir).dsn()))
    return settings.model_copy(
        update={
            "control_database": settings.control_database if settings.control_database.url else url,
            "pgvector": settings.pgvector if settings.pgvector.url else url,
        }
    )
