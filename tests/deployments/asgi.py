"""The HTTP application in front of a stand-in for the ingress, spoken to without a socket."""

from typing import Any

import httpx

from deployments import routes
from deployments.batch_ingress import Settings
from wtb_core.data import DataDir
from wtb_core.errors import NotFound

LOOPBACK = ("127.0.0.1", 50_000)
MAX_BODY_BYTES = 100_000


class FakeIngress:
    """Notes what it is called with; each method answers what `answers` says."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        async def method(*arguments: Any, **keywords: Any) -> Any:
            self.calls.append((name, arguments, keywords))
            answer = self.answers.get(name, NotFound("answer of", name))
            if isinstance(answer, BaseException):
                raise answer
            return dict(answer) if isinstance(answer, dict) else answer

        return method


def connect(
    ingress: Any,
    *,
    tokens: dict[str, str] | None = None,
    client: tuple[str, int] | None = LOOPBACK,
    host: str = "127.0.0.1",
    root_path: str = "",
    **headers: str,
) -> httpx.AsyncClient:
    """A client of an application that serves on `host`."""
    settings = Settings(DataDir("/nowhere"), "/", [], 1, MAX_BODY_BYTES, {})
    app = routes.build(ingress, settings, tokens or {})
    transport = httpx.ASGITransport(
        app, client=client, root_path=root_path, raise_app_exceptions=False
    )
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)
