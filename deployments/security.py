"""Who may ask: this machine only, or whoever has a token; and the headers of every answer.

Without tokens the server's address, the client's address and the Host header must be loopback,
which also ends DNS rebinding; a browser's Origin must be loopback as well, so that no page of
another site can post here. With tokens a bearer token is needed instead. Health probes, and what
describes the API and holds no data, need no token.
"""

import hmac
import ipaddress
import re
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.http_errors import HEADERS, describe
from wtb_core.errors import Forbidden, Unauthorized, WtbError

PROBES = frozenset({"/healthz", "/readyz"})
OPEN_PATHS = ("/docs", "/openapi.json")


_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]*)?")

_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)


class Gate:
    """ASGI middleware in front of every route.

    `scope["state"]` says who asks, `user`, and whether more than a probe is told: `trusted`.
    """

    def __init__(self, app: ASGIApp, tokens: Mapping[str, str]) -> None:
        self._app = app
        self._tokens = {user: token.encode() for user, token in tokens.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if path.startswith("/docs"):
                    headers["content-security-policy"] = _DOCS_POLICY
            await send(message)

        try:
            user = self._admit(scope, path)
        except WtbError as error:
            await describe(error)(scope, receive, send_with_headers)
            return
        scope.setdefault("state", {}).update(user=user, trusted=self._is_trusted(scope, user))
        await self._app(scope, receive, send_with_headers)

    def _admit(self, scope: Scope, path: str) -> str | None:
        headers = Headers(scope=scope)
        for name in ("host", "origin", "authorization", "content-type"):
            if len(headers.getlist(name)) > 1:
                raise Forbidden(f"the request has two {name} headers; send one")
        if path in PROBES:
            return self._find_user(headers)
        if not self._tokens:
            _check_loopback(scope, headers)
            return None
        user = self._find_user(headers)
        if user is None and not path.startswith(OPEN_PATHS):
            raise Unauthorized(
                "send the header `Authorization: Bearer <token>`; `wtb` takes it from WTB_TOKEN"
            )
        return user

    def _is_trusted(self, scope: Scope, user: str | None) -> bool:
        """Whether who asks may know more than a probe is told."""
        if self._tokens:
            return user is not None
        try:
            _check_loopback(scope, Headers(scope=scope))
        except Forbidden:
            return False
        return True

    def _find_user(self, headers: Headers) -> str | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        token = given.strip(" ").encode(errors="replace")
        # Every token is compared, so that the time says nothing about which one was close.
        found = [user for user, own in self._tokens.items() if hmac.compare_digest(own, token)]
        return found[0] if found else None


def _check_loopback(scope: Scope, headers: Headers) -> None:
    hint = "without `tokens` in its args this service answers only its own machine"
    for name in ("server", "client"):
        address = scope.get(name)
        if address is None or not _is_loopback(str(address[0])):
            raise Forbidden(f"the {name}'s address is not loopback; {hint}")
    if not _is_loopback(_host_name(headers.get("host", ""))):
        raise Forbidden(f"the Host header names another machine; {hint}")
    origin = headers.get("origin")
    if origin is not None and not _is_loopback(_origin_host(origin)):
        raise Forbidden(f"the Origin header names another site; {hint}")


def _host_name(authority: str) -> str:
    """The host of `host` or `host:port`, without the brackets of IPv6; empty for anything else."""
    match = _AUTHORITY.fullmatch(authority)
    return match[1].strip("[]") if match else ""


def _origin_host(origin: str) -> str:
    scheme, _, authority = origin.partition("://")
    return _host_name(authority) if scheme in {"http", "https"} else ""


def _is_loopback(host: str) -> bool:
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
