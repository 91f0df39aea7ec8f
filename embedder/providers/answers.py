"""What an HTTP answer of an OpenAI-compatible server means. Pure but for the wall clock that is passed in.

Three classes: wait, stop, this input. Compatible servers spell them differently, so status, code and words all count.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import numpy as np
import orjson
import pybase64

from embedder.providers.port import ProviderSuspect, check_matrix
from walvec.contracts.errors import ProviderRejectedInput, ProviderStop, ProviderWait, WalvecError

_STOP_CODES = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "billing_hard_limit_reached",
        "billing_not_active",
        "access_terminated",
        "account_deactivated",
        "invalid_api_key",
        "model_not_found",
        "invalid_organization",
        "unsupported_model",
    }
)
_OUR_PARAMETERS = frozenset({"model", "dimensions", "encoding_format"})
_TOKENS = re.compile(r"tokens[ _]per[ _]request|too many tokens|total (number of )?tokens|tokens in batch", re.I)
_TOO_LONG = re.compile(r"context[ _]length|maximum context|too long|input length|max_length|maximum.{0,20}tokens", re.I)
_ITEMS = re.compile(
    r"batch.?size|too many (inputs|items|texts)|array.{0,12}too (long|large)|max.{0,12}(batch|items|inputs)|"
    r"(inputs?|array|list).{0,40}(at most|less than or equal|maximum of|exceed)",
    re.I,
)
_KEY = re.compile(r"\b(sk|al|pa|key)-[A-Za-z0-9_*.\-]{6,}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 3600.0


def scrub(text: str, secret: str | None) -> str:
    """A provider's message as it may be shown: no key in it, and not endless."""
    if secret:
        text = text.replace(secret, "***")
    return _KEY.sub("***", text)[:500]


def _seconds(text: str, now: float) -> float | None:
    text = text.strip()
    try:
        value = float(text)
    except ValueError:
        found = _DURATION.findall(text)
        if not found or "".join(n + u for n, u in found) != text:
            return None
        return sum(float(n) * _UNITS[u] for n, u in found)
    return value - now if value > 1e9 else value


def _usable(value: float | None) -> float | None:
    return min(value, _LONGEST) if value is not None and math.isfinite(value) and value > 0 else None


def retry_after(headers: Mapping[str, str], body: Any, now: float) -> float | None:
    """Seconds the provider asks for, or None. Nonsense (zero, negative, unreadable) is ignored."""
    ms = headers.get("retry-after-ms")
    if ms is not None and (found := _usable((_seconds(ms, now) or 0) / 1000)) is not None:
        return found
    after = headers.get("retry-after")
    if after is not None:
        seconds = _seconds(after, now)
        if seconds is None:
            try:
                seconds = parsedate_to_datetime(after).timestamp() - now
            except (ValueError, TypeError):
                seconds = None
        if (found := _usable(seconds)) is not None:
            return found
    for detail in _details(body):
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and (found := _usable(_seconds(delay, now))) is not None:
            return found
    resets = []
    for what in ("requests", "tokens"):
        reset = headers.get(f"x-ratelimit-reset-{what}")
        if reset is not None and headers.get(f"x-ratelimit-remaining-{what}", "0").strip() in ("0", "-1"):
            resets.append(_usable(_seconds(reset, now)))
    return max((r for r in resets if r is not None), default=None)


def _error(body: Any) -> Mapping[str, Any]:
    found = body.get("error") if isinstance(body, dict) else None
    if isinstance(found, dict):
        return found
    if isinstance(found, str):
        return {"message": found, **{k: body[k] for k in ("code", "type") if k in body}}
    return body if isinstance(body, dict) else {}


def _details(body: Any) -> list[Any]:
    details = _error(body).get("details")
    return details if isinstance(details, list) else []


def _message(error: Mapping[str, Any], raw: bytes) -> str:
    for name in ("message", "detail", "msg"):
        if isinstance(error.get(name), str) and error[name]:
            return str(error[name])
        if error.get(name):
            return json.dumps(error[name])
    return raw[:300].decode("utf-8", "replace").strip()


def failure(
    status: int, headers: Mapping[str, str], raw: bytes, *, items: int, now: float, secret: str | None
) -> WalvecError:
    """The error that an answer with this status stands for."""
    body = parse(raw)
    error = _error(body)
    message = scrub(_message(error, raw), secret)
    said = f'the provider answered {status}: "{message}"' if message else f"the provider answered {status}"
    words = {str(error.get(k)).lower() for k in ("code", "type") if error.get(k) is not None}
    if words & _STOP_CODES:
        return ProviderStop(said, "Check the account's billing and limits, the API key and the model's name.")
    if status == 429 or "rate_limit_exceeded" in words:
        return ProviderWait(said, retry_after=retry_after(headers, body, now))
    if status in (401, 403):
        return ProviderStop(said, "Check the provider's api_key and its rights.")
    if status == 402:
        return ProviderStop(said, "Check the provider's bill.")
    if status in (404, 405) or 300 <= status < 400:
        return ProviderStop(said, "Check the model's name and the provider's base_url (it ends with /v1).")
    if status in (408, 409, 425, 502, 503, 504, 529):
        return ProviderWait(said, retry_after=retry_after(headers, body, now))
    if status >= 500 or status == 424:
        return ProviderSuspect(said, "server", retry_after=retry_after(headers, body, now))
    if "api key" in message.lower() or "api_key" in words:
        return ProviderStop(said, "Check the provider's api_key.")
    if error.get("param") in _OUR_PARAMETERS:
        return ProviderStop(said, "Check embedding_model and embedding_dimensions of the vector table.")
    limit: str | None = None
    told = " ".join((*words, message))
    if _TOKENS.search(told) or "3210" in words:
        limit = "tokens"
    elif status == 413:
        limit = "bytes"
    elif items > 1 and _ITEMS.search(told):
        limit = "items"
    elif items == 1 and _TOO_LONG.search(told):
        limit = "tokens"
    return ProviderRejectedInput(said, limit=limit)


def parse(raw: bytes) -> Any:
    """JSON of a body, or None. NaN and Infinity are read too: they must be seen to be refused."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            return None


class Vectors(NamedTuple):
    """A checked answer. `tokens`: as the provider counts them, None when it does not tell."""

    matrix: np.ndarray
    tokens: int | None


def vectors(raw: bytes, *, count: int, dimensions: int, secret: str | None) -> Vectors:
    """Of an answer with status 200. Raises ProviderSuspect, ProviderWait, ProviderStop."""
    body = parse(raw)
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list):
        error = _error(body)
        message = scrub(_message(error, b""), secret)
        words = {str(error.get(k)).lower() for k in ("code", "type") if error.get(k) is not None}
        if words & _STOP_CODES:
            raise ProviderStop(f'the provider answered 200 with an error: "{message}"', "Check account, key and model.")
        if any("rate" in w or w == "429" for w in words):
            raise ProviderWait(f'the provider answered 200 with an error: "{message}"')
        raise ProviderSuspect(f'the provider answered 200 without vectors: "{message}"', "answer")
    if len(data) != count:
        raise ProviderSuspect(f"the provider answered {len(data)} vectors for {count} texts.", "answer")
    try:
        found = [item["embedding"] for item in _ordered(data)]
        if all(isinstance(f, str) for f in found):
            parts = [pybase64.b64decode(f, validate=True) for f in found]
            size = len(parts[0])
            if size % 4 or any(len(p) != size for p in parts):
                raise ProviderSuspect("the provider answered vectors of different lengths.", "answer")
            matrix = np.frombuffer(b"".join(parts), dtype="<f4").reshape(count, size // 4)
        else:
            matrix = np.array(found, dtype=np.float32)
    except (KeyError, TypeError, ValueError, binascii.Error, OverflowError) as e:
        raise ProviderSuspect(f"the provider's answer cannot be read ({type(e).__name__}).", "answer") from e
    return Vectors(check_matrix(matrix, count, dimensions), _tokens(body))


def _tokens(body: Any) -> int | None:
    usage = body.get("usage")
    found = usage.get("total_tokens") if isinstance(usage, dict) else None
    return found if type(found) is int and found >= 0 else None


def _ordered(data: list[Any]) -> list[Any]:
    """By `index`; without any index as they came. Raises ValueError when the indexes are not 0…n-1."""
    if not any("index" in item for item in data):
        return data
    out: list[Any] = [None] * len(data)
    for item in data:
        index = item["index"]
        if type(index) is not int or not 0 <= index < len(data) or out[index] is not None:
            raise ValueError("indexes")
        out[index] = item
    return out
