"""Images behind http(s) URLs: bounded in size and time, tried again, and never from inside the private network.

An address is checked when its connection is made and again on the connected socket, so that neither a redirect nor a
name that changes its address between two look-ups leads past the check.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from vlmdata.sample import Problem

__all__ = ["Downloader"]

_MAX_REDIRECTS = 5
_READ_BYTES = 1 << 16
_FIRST_PAUSE_S = 0.5
_RETRIED_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_USER_AGENT = "vlmdata (image set builder)"


class _PrivateAddressError(Exception):
    """The address is not one of the public internet."""


def _refuse_private(address: str) -> None:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if not parsed.is_global or parsed.is_multicast:
        raise _PrivateAddressError(address)


def _refuse_private_host(host: str, port: int) -> None:
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        _refuse_private(str(address[0]))


class _PublicHTTPConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        _refuse_private_host(self._dns_host, self.port)
        connected = super()._new_conn()
        _refuse_private(connected.getpeername()[0])
        return connected


class _PublicHTTPSConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        _refuse_private_host(self._dns_host, self.port)
        connected = super()._new_conn()
        _refuse_private(connected.getpeername()[0])
        return connected


class _PublicHTTPPool(HTTPConnectionPool):
    ConnectionCls = _PublicHTTPConnection


class _PublicHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _PublicHTTPSConnection


@dataclass(frozen=True, slots=True)
class _Retry:
    """A failure that may pass; `after_s` is what the server asked for."""

    problem: Problem
    after_s: float | None = None


class Downloader:
    """Fetches images; keeps connections open between calls. Safe to use from several threads.

    Args:
        timeout_s: for the connection, for each read, and (four times as long) for the whole download.
        retries: how many times a failure that may pass is tried again.
        allow_private: do not check addresses.
        max_bytes: longest body that is read.
    """

    def __init__(self, *, timeout_s: float, retries: int, allow_private: bool, max_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._retries = retries
        self._max_bytes = max_bytes
        self._pool = urllib3.PoolManager(retries=False, timeout=timeout_s, maxsize=16, block=False)
        if not allow_private:
            self._pool.pool_classes_by_scheme = {"http": _PublicHTTPPool, "https": _PublicHTTPSPool}

    def fetch(self, url: str) -> bytes | Problem:
        """Return the body behind a URL, or why there is none (`image_url_refused` or `image_download_failed`)."""
        pause_s, attempts = _FIRST_PAUSE_S, 0
        while True:
            outcome = self._follow(url)
            attempts += 1
            if isinstance(outcome, Problem):
                return Problem(outcome.reason, f"{_show(url)}: {outcome.detail}")
            if isinstance(outcome, bytes):
                return outcome
            if attempts > self._retries:
                detail = f"{_show(url)}: {outcome.problem.detail} (attempts: {attempts})"
                return Problem(outcome.problem.reason, detail)
            time.sleep(min(outcome.after_s if outcome.after_s is not None else pause_s, self._timeout_s))
            pause_s *= 2

    def _follow(self, url: str) -> bytes | Problem | _Retry:
        deadline = time.monotonic() + 4 * self._timeout_s
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                parts = urlsplit(url)
            except ValueError as error:
                return Problem("image_url_refused", f"not a URL: {error}")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                return Problem("image_url_refused", f"only http and https with a host name, not {url[:100]!r}")
            outcome = self._request(url, deadline)
            if not isinstance(outcome, str):
                return outcome
            url = urljoin(url, outcome)
        return Problem("image_download_failed", f"more than {_MAX_REDIRECTS} redirects")

    def _request(self, url: str, deadline: float) -> bytes | Problem | _Retry | str:
        """Return the body, the target of a redirect, or what went wrong."""
        try:
            headers = {"User-Agent": _USER_AGENT, "Accept": "image/*,*/*;q=0.5"}
            response = self._pool.request("GET", url, redirect=False, preload_content=False, headers=headers)
        except _PrivateAddressError as error:
            return Problem("image_url_refused", f"leads to {error}, which is not a public address")
        except (socket.gaierror, urllib3.exceptions.HTTPError, OSError) as error:
            return _Retry(Problem("image_download_failed", _name(error)))
        except (ValueError, UnicodeError) as error:
            return Problem("image_url_refused", f"not a URL: {error}")
        try:
            if response.status in _REDIRECTS and response.headers.get("Location"):
                return str(response.headers["Location"])
            if response.status in _RETRIED_STATUS:
                asked = response.headers.get("Retry-After", "")
                after_s = float(asked) if asked.isdigit() else None
                return _Retry(Problem("image_download_failed", f"HTTP status {response.status}"), after_s)
            if response.status != 200:
                return Problem("image_download_failed", f"HTTP status {response.status}")
            return self._read_body(response, deadline)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return _Retry(Problem("image_download_failed", _name(error)))
        finally:
            response.close()

    def _read_body(self, response: Any, deadline: float) -> bytes | Problem | _Retry:
        body = bytearray()
        # read1 gives what has come; read would wait for a whole block, however slowly it comes
        while piece := response.read1(_READ_BYTES):
            body += piece
            if len(body) > self._max_bytes:
                return Problem("image_too_large_bytes", f"more than {self._max_bytes} bytes")
            if time.monotonic() > deadline:
                return _Retry(Problem("image_download_failed", f"not finished after {4 * self._timeout_s:g} s"))
        return bytes(body)


def _show(url: str) -> str:
    """The URL without its query, which may hold a key."""
    return repr(url.partition("?")[0][:200])


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
