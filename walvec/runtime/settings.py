"""Settings of every process: `walvec.yaml` below `WALVEC_…` environment variables (nested with `__`).

Next: `service.run(settings, stop)` of the role that the command line chose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from walvec.runtime.addresses import certificates_of, policy_of


def _http(value: str) -> str:
    if not re.match(r"https?://[^/]", value):
        raise ValueError("must begin with http:// or https://")
    return value


BaseUrl = Annotated[str, AfterValidator(_http)]
"""Where a provider is asked."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DatabaseSettings(Section):
    url: SecretStr | None = None
    """Connection string; None = the embedded Postgres in the data directory."""

    @field_validator("url")
    @classmethod
    def _address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        # the driver that SQLAlchemy's addresses name is dropped
        text = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", value.get_secret_value().strip())
        if not re.match(r"postgres(ql)?://|\w+\s*=", text):
            raise ValueError("not a connection string; write postgresql://user:password@host/db")
        return SecretStr(text)


class QdrantSettings(Section):
    url: str | None = None
    api_key: SecretStr | None = None


class LogSettings(Section):
    kind: Literal["local", "kafka"] = "local"
    partitions: int = Field(4, ge=1, le=256)
    """Partitions of a new topic in the local log."""
    max_bytes: int = Field(4 * 1024**3, ge=16 * 1024**2)
    """Size of the local log's file at which `cdc` is made to wait."""
    retention_seconds: float = Field(3600, ge=0)
    """How long records are kept after every group has consumed them."""
    lease_seconds: float = Field(5.0, gt=0)
    """A consumer that shows no sign of life this long loses its partitions (a dead process loses them at once)."""


class KafkaSettings(Section):
    """Any further key is a property of librdkafka, with dots or underscores; it may be a password, so it is secret."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    bootstrap_servers: str = Field("127.0.0.1:9092", min_length=1)
    partitions: int = Field(8, ge=1, le=10_000)
    """Partitions of a new topic: at most so many embedders or sinks share a table."""
    replication_factor: int = Field(-1, ge=-1, le=100)
    """Copies of a new topic's partitions; -1 = as many as the brokers' default.replication.factor says."""
    min_insync_replicas: int | None = Field(None, ge=1, le=100)
    """Copies that must have a record before it counts as durable; None = the brokers' min.insync.replicas."""
    retention_seconds: float = Field(7 * 24 * 3600, ge=-1)
    """How long a new topic keeps its records, read or not; -1 = for ever. Dead letters are always kept for ever."""
    max_record_bytes: int = Field(8 * 1024**2, ge=64 * 1024, le=1024**3)
    """A new topic's max.message.bytes: what is larger becomes a dead letter."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "lz4"
    group_protocol: Literal["auto", "classic", "consumer"] = "auto"
    """How groups share partitions; auto = `consumer` where the brokers have it."""
    properties: dict[str, SecretStr] = Field(default_factory=dict)
    """Properties of librdkafka, by their names with dots."""

    @model_validator(mode="before")
    @classmethod
    def _properties(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        own = {name: value for name, value in values.items() if name in cls.model_fields and name != "properties"}
        given = values.get("properties", {})
        if not isinstance(given, Mapping):
            return values
        rest = {name: value for name, value in values.items() if name not in cls.model_fields}
        return own | {"properties": {_dotted(name): _spelled(value) for name, value in {**given, **rest}.items()}}


def _dotted(name: Any) -> str:
    return str(name).strip().lower().replace("_", ".")


def _spelled(value: Any) -> Any:
    """As librdkafka wants to read it: everything is text there."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


class ApiSettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Bearer tokens that may ask; without any, the API answers on loopback only. One text holds them as a JSON list,
    or with commas between them."""
    rate_limit: str = "100000/minute"
    """Requests of one organization, over all API processes: `<number>/<second|minute|hour|day>`, or none."""
    backfill_status: Literal["pending", "backfilling"] = "pending"
    """What `status` says in the answer to POST …/backfill: the two documented readings of it."""
    max_body_bytes: int = Field(1024**2, ge=1024)
    max_apply_bytes: int = Field(8 * 1024**2, ge=1024)
    """Of POST /v1/apply alone, where it is above `max_body_bytes`."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Where sources and providers may be: names, *.suffix, addresses, CIDRs, `unix`. None = everywhere but link-local
    and metadata addresses."""

    allowed_certificates: Annotated[tuple[str, ...], NoDecode] = ()
    """Files, and directories of files, that a connection may name in sslrootcert, sslcert, sslkey, sslcrl, sslcrldir.
    None = no file."""

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, value: str) -> str:
        text = value.strip().lower()
        if text != "none" and not re.fullmatch(r"[1-9]\d{0,11}/(second|minute|hour|day)", text):
            raise ValueError("must be like 6000/minute (second, minute, hour, day), or none")
        return text

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        policy_of(value)
        return value

    @field_validator("allowed_certificates")
    @classmethod
    def _certificates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return certificates_of(value)

    @field_validator("keys", "allowed_hosts", "allowed_certificates", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return _several(value)


def _several(value: Any) -> Any:
    """A list that one text holds."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",")] if value.strip() else []
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("neither a JSON list nor values with commas between them") from None


class MetricsSettings(Section):
    port: int | None = Field(None, ge=0, le=65535)
    """Of /metrics and /health; None opens none. Under `walvec up` cdc has it, and each other role the next one."""
    host: str = "127.0.0.1"


class CdcSettings(Section):
    status_interval_seconds: float = Field(1.0, gt=0)
    """How often a flush position is confirmed to Postgres, whatever the reader is doing."""
    heartbeat_interval_seconds: float = Field(5.0, gt=0)
    liveness_timeout_seconds: float = Field(30.0, gt=0)
    """No byte from the server for this long, although it was pinged: reconnect."""
    batch_records: int = Field(2000, ge=1)
    batch_bytes: int = Field(2 * 1024**2, ge=1024)
    backfill_chunk_rows: int = Field(2000, ge=1)
    backfill_max_backlog: int = Field(20_000, ge=1)
    """Records of a table that may wait for the embedder before its backfill pauses: live changes stay first."""


class EmbedderSettings(Section):
    batch_records: int = Field(2000, ge=1)
    batch_bytes: int = Field(4 * 1024**2, ge=1024)
    max_batches: int = Field(4, ge=1)
    """Polled batches that may be in work at once, per vector table."""
    dead_letter_limit: int = Field(100, ge=1)
    """Dead letters in a row that stop a table, or stall the generation that is being built."""
    building_patience_seconds: float = Field(600.0, gt=0)
    """A provider that gives no answer for so long stalls the generation that is being built with it."""


class SinkSettings(Section):
    batch_records: int = Field(2000, ge=1)
    batch_bytes: int = Field(16 * 1024**2, ge=1024)
    purge_interval_seconds: float = Field(60.0, gt=0)


class ProviderAddress(Section):
    base_url: BaseUrl | None = None


class Settings(BaseSettings):
    """All settings of one process. Unknown keys are refused (`walvec.runtime.config` adds the suggestion)."""

    model_config = SettingsConfigDict(env_prefix="WALVEC_", env_nested_delimiter="__", extra="forbid")

    data_dir: Path = Path(".walvec")
    environment: str = Field("prod", pattern=r"^[a-z0-9][a-z0-9_-]{0,49}$")
    secret_key: SecretStr | None = None
    secret_keys_previous: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Those before it: what is stored under them is still read, until `walvec secrets rotate`."""
    store: Literal["pgvector", "qdrant"] = "pgvector"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    control_database: DatabaseSettings = DatabaseSettings()
    pgvector: DatabaseSettings = DatabaseSettings()
    qdrant: QdrantSettings = QdrantSettings()
    log: LogSettings = Field(default_factory=lambda: LogSettings.model_validate({}))
    kafka: KafkaSettings = Field(default_factory=lambda: KafkaSettings.model_validate({}))
    api: ApiSettings = Field(default_factory=lambda: ApiSettings.model_validate({}))
    metrics: MetricsSettings = Field(default_factory=lambda: MetricsSettings.model_validate({}))
    cdc: CdcSettings = Field(default_factory=lambda: CdcSettings.model_validate({}))
    embedder: EmbedderSettings = Field(default_factory=lambda: EmbedderSettings.model_validate({}))
    sink: SinkSettings = Field(default_factory=lambda: SinkSettings.model_validate({}))
    providers: dict[str, ProviderAddress] = Field(default_factory=dict)

    @field_validator("secret_keys_previous", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return _several(value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment above the file: init arguments carry the file's values."""
        return (env_settings, init_settings)


def settings_from(values: dict[str, Any]) -> Settings:
    """Settings from a mapping (a parsed file) below the environment. Raises pydantic.ValidationError."""
    return Settings(**values)
