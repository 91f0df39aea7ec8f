"""Requests to addresses that a user named: each goes to an address that was resolved and looked at just before.

Behind a proxy that the environment names for the address (HTTPS_PROXY, …) the proxy resolves, and restricts.
"""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from walvec.runtime import addresses

_PORTS = {"http": 80, "https": 443}


class Guarded(httpx.AsyncBaseTransport):
    """Raises AddressRefused, UnsupportedProtocol for what is no address on the web, and ConnectError for a name that
    nobody resolves."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if not host or request.url.scheme not in _PORTS:
            raise httpx.UnsupportedProtocol("the address is not one of http or https", request=request)
        try:
            found = await addresses.resolve(host, request.url.port or _PORTS[request.url.scheme])
        except OSError as e:
            raise httpx.ConnectError(f"{host} cannot be resolved", request=request) from e
        for number, address in enumerate(found, 1):
            # the certificate and the Host header stay those of the name
            there = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return await self._inner.handle_async_request(there)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if number == len(found):
                    raise
        raise AssertionError("a host that was resolved has an address")

    async def aclose(self) -> None:
        await self._inner.aclose()


def transport(url: str) -> httpx.AsyncBaseTransport:
    """For a client of a user's address: guarded, or by the proxy alone; never past both."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(parts.netloc):
        return httpx.AsyncHTTPTransport(limits=limits, proxy=proxy if "://" in proxy else f"http://{proxy}")
    return Guarded(httpx.AsyncHTTPTransport(limits=limits))
