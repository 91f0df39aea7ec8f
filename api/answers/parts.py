"""What several answers share: the strict base, pages, errors."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


class Answer(BaseModel):
    """Every field is always there, and there are no others; null where there is nothing to say."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, serialize_by_alias=True)


Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-03-13T10:00:00.000Z"])]
OrgId = Annotated[str, Field(description="Organization that it belongs to.", examples=["org_5f1c3a9d7b2e4860"])]
EnvironmentId = Annotated[str, Field(description="Environment that it belongs to.", examples=["env_0a1b2c3d4e5f6071"])]
ConnectionId = Annotated[str, Field(description="Its connection.", examples=["conn_6f0d2a4b8c1e3957"])]
ProviderId = Annotated[str, Field(description="Its embedding provider.", examples=["emb_1d3f5b7a9c2e4068"])]
TableId = Annotated[str, Field(description="The vector table.", examples=["vt_ae85b45b6c7d8e9f"])]
TaskId = Annotated[str, Field(description="The task.", examples=["task_0f1e2d3c4b5a6978"])]
CreatedAt = Annotated[Time, Field(description="When it was made, UTC.")]
FreeForm = Annotated[dict[str, Any], Field(json_schema_extra={"additionalProperties": True})]
SyncStatus = Annotated[
    Literal["pending", "backfilling", "synced", "paused", "error", "blocked", "pending_rebackfill"],
    Field(
        description="pending: no backfill was asked for yet. backfilling: the first read of all rows is under way. "
        "synced: changes follow. paused: changes are collected, not applied. error: a person must mend `last_error`. "
        "blocked: it waits and heals by itself. pending_rebackfill: a new generation is being built beside this one."
    ),
]


class Pagination(Answer):
    limit: int
    """Items per page, as asked for."""
    has_more: bool
    """Whether there is a next page."""
    next_cursor: str | None
    """`cursor` of the next page; null on the last one."""


class Page(Answer, Generic[T]):
    model_config = ConfigDict(use_attribute_docstrings=False)  # its source is not found where it is filled in

    data: list[T] = Field(description="This page's items, in a stable order.")
    pagination: Pagination


class ErrorBody(Answer):
    code: str
    """What went wrong, for programs."""
    message: str
    """What went wrong, for people. Holds no value of the request."""
    resolution: str
    """What mends it."""
    docs_url: str
    """Where this code is explained."""
    request_id: str = Field(examples=["req_3b1f8a0c9d7e4526"])
    """The answer's X-Request-Id; also in the log."""


class Error(Answer):
    """Every failure has this one shape."""

    error: ErrorBody
