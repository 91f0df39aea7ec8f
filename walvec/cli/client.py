"""Questions to a running walvec over HTTP. Law: a failure is `Refused` (the API said no) or `Unreachable`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import httpx

from walvec.contracts.errors import WalvecError
from walvec.runtime import config

_RESTART_SECONDS = 1.0  # a supervised API that was killed is back about then
_BUSY = (502, 503, 504)


class Unreachable(WalvecError):
    """Nobody answers at the address."""

    kind = "unreachable"


class Refused(WalvecError):
    """The API's own error. `body`: its envelope."""

    kind = "refused"

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        error = body.get("error", {})
        super().__init__(error.get("message", f"the API answered {status}."), error.get("resolution", ""))
        self.status = status
        self.code = error.get("code", "")
        self.body = body


def default_url() -> str:
    """WALVEC_URL, else where this directory's settings say that the API listens."""
    named = os.environ.get("WALVEC_URL")
    if named:
        return named
    settings = config.load_settings(None).api
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - read, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


@dataclass(slots=True)
class Identity:
    """What --api-key and --environment said, above the environment's variables."""

    api_key: str | None = None
    environment: str | None = None


given = Identity()


def headers() -> dict[str, str]:
    found = {"Authorization": f"Bearer {api_key()}"}
    environment = given.environment or os.environ.get("WALVEC_ENVIRONMENT")
    return found | ({"X-Environment-Id": environment} if environment else {})


def api_key() -> str:
    """--api-key, WALVEC_API_KEY, else the first key of this directory's settings; on loopback any word may do."""
    named = given.api_key or os.environ.get("WALVEC_API_KEY")
    if named:
        return named
    keys = config.load_settings(None).api.keys
    return keys[0].get_secret_value() if keys else "local"


class Client:
    """One address. `patience`: seconds during which an API that does not answer is asked again."""

    def __init__(self, url: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = (url or default_url()).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            self.url = f"http://{self.url}"
        host = urlsplit(self.url).hostname or ""
        local = host == "localhost" or host.startswith("127.") or host == "::1"
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers(),
            timeout=httpx.Timeout(60, connect=5),
            transport=transport,
            trust_env=not local,  # a proxy of the environment does not know this machine's ports
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        return self.ask("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Mapping[str, Any] | None = None, **more: Any) -> Any:
        return self.ask("POST", path, json=body or {}, **more)

    def ask(
        self,
        method: str,
        path: str,
        *,
        patience: float = _RESTART_SECONDS,
        timeout: float | None = None,
        **request: Any,
    ) -> Any:
        """Parsed JSON. Only what was never received is sent again. Raises Refused, Unreachable."""
        return self._read(self._send(method, path, patience, timeout, **request))

    def text(self, path: str, **params: Any) -> str:
        """What is answered, as it stands."""
        answer = self._send("GET", path, _RESTART_SECONDS, None, params=params)
        if answer.status_code >= 400:
            self._read(answer)
        return answer.text

    def _send(self, method: str, path: str, patience: float, timeout: float | None, **request: Any) -> httpx.Response:
        until = time.monotonic() + patience
        while True:
            try:
                return self._http.request(
                    method, path, timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else timeout, **request
                )
            except (httpx.ConnectError, httpx.ConnectTimeout) as e:
                if time.monotonic() < until:
                    Event().wait(0.1)
                    continue
                raise self._unreachable() from e
            except httpx.HTTPError as e:
                raise Unreachable(
                    f"the API at {self.url} broke off its answer ({type(e).__name__}).", "Ask again; see its log."
                ) from e

    def wait(self, path: str, body: Mapping[str, Any], *, timeout: float) -> Any:
        """For `drain` and `verify`, which may be asked twice: goes on through restarts of the API until `timeout`
        seconds have passed. An API that was never there is waited for only as long as a restart may take."""
        until = time.monotonic() + timeout
        seen = False
        while True:
            left = max(0.0, until - time.monotonic())
            try:
                return self.ask(
                    "POST",
                    path,
                    json={**body, "timeout": left},
                    timeout=left + 30,
                    patience=left if seen else min(left, 10.0),
                )
            except Unreachable:
                if time.monotonic() >= until or not (seen or self._answers()):
                    raise
            except Refused as e:
                if e.status not in _BUSY or time.monotonic() >= until:
                    raise
            seen = True
            Event().wait(0.2)

    @contextmanager
    def lines(
        self, path: str, *, method: str = "GET", body: Mapping[str, Any] | None = None, **params: Any
    ) -> Iterator[Iterator[Any]]:
        """A stream of JSON objects, one per line. Raises Refused, also where the stream ends in an error."""
        wanted = {k: v for k, v in params.items() if v is not None}
        patience = httpx.Timeout(None, connect=5)
        try:
            with self._http.stream(method, path, params=wanted, json=body, timeout=patience) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    self._read(answer)
                yield (_whole(json.loads(line)) for line in answer.iter_lines() if line)
        except (httpx.ConnectError, httpx.ConnectTimeout) as e:
            raise self._unreachable() from e
        except httpx.HTTPError as e:
            raise Unreachable(f"the API at {self.url} ended the stream.", "Ask again; see its log.") from e

    def _answers(self) -> bool:
        try:
            self._http.get("/health/live", timeout=2)
        except httpx.ConnectError:
            return False
        except httpx.HTTPError:
            return True
        return True

    def _unreachable(self) -> Unreachable:
        return Unreachable(
            f"nobody answers at {self.url}.", "Start walvec with `walvec up`, or name its address with --url."
        )

    def _read(self, answer: httpx.Response) -> Any:
        if answer.status_code == 204 or not answer.content:
            return {}
        try:
            body = answer.json()
        except ValueError as e:
            raise Unreachable(
                f"what answers at {self.url} is not walvec's API (status {answer.status_code}).", "Check --url."
            ) from e
        if answer.status_code >= 400:
            raise Refused(answer.status_code, body if isinstance(body, dict) else {})
        return body


def _whole(line: Any) -> Any:
    if isinstance(line, dict) and set(line) == {"error"}:
        raise Refused(200, line)
    return line
