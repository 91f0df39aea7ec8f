"""Bodies of requests. Unknown fields are refused with their name, so that a misspelt one is never just ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from walvec.definitions.document import VectorTableSpec


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise ValueError("is not whole Unicode text") from e
    if "\x00" in value:
        raise ValueError("must not contain the character NUL")
    return value


Text = Annotated[str, AfterValidator(_text)]
Name = Annotated[Text, Field(min_length=1, max_length=100)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Credentials(Body):
    """`url` alone, or its parts."""

    url: SecretStr | None = None
    host: Text | None = None
    port: int | None = Field(None, ge=1, le=65535)
    database: Text | None = None
    user: Text | None = None
    password: SecretStr | None = None
    ssl_mode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None


class NewConnection(Body):
    name: Name
    mode: Literal["managed", "platform"]
    credentials: Credentials
    on_slot_loss: Literal["rebackfill", "halt"] = "rebackfill"


class NewProvider(Body):
    name: Name
    provider: Text
    api_key: SecretStr | None = None
    base_url: Text | None = None
    default_model: Text | None = None
    limits: dict[str, Any] = Field(default_factory=dict)


class NewVectorTable(VectorTableSpec):
    """A vector table of the definitions file, with ids for names, and with the documented defaults."""

    connection: str = ""
    embedding_provider: str = ""
    connection_id: str = Field(min_length=1)
    embedding_provider_id: str = Field(min_length=1)
    sync_mode: Literal["batch", "cdc"] = "batch"
    backfill: Literal["auto", "manual"] = "manual"


class Backfill(Body):
    """`sweep`: delete what the source does not have; default: whenever the table was in the store before."""

    sweep: bool | None = None


class Query(Body):
    query: Annotated[Text, Field(min_length=1)]
    limit: int = Field(10, ge=1, le=100)
    min_similarity_score: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    filters: dict[str, Any] | None = None


class Apply(Body):
    document: dict[str, Any]
    dry_run: bool = False
    prune: bool = False


class DrainRequest(Body):
    tables: list[str] | None = None
    timeout: float = Field(300, ge=0, le=86_400, allow_inf_nan=False)


class VerifyRequest(Body):
    repair: bool = False
    timeout: float = Field(300, ge=0, le=86_400, allow_inf_nan=False)


class ReplayFrom(Body):
    """A place in `.changes`: earliest, an age (10m) or an offset."""

    start: Annotated[Text, Field(alias="from", min_length=1)]


class Replay(Body):
    """None = all open letters."""

    ids: list[int] | None = None
