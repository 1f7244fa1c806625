"""Stand-ins for Serve handles: each method call goes to a function."""

import asyncio
from collections.abc import Callable
from typing import Any


class FakeResponse:
    """Awaitable like a DeploymentResponse."""

    def __init__(self, work: Any) -> None:
        self._task = asyncio.ensure_future(work)

    def __await__(self) -> Any:
        return asyncio.shield(self._task).__await__()

    def cancel(self) -> None:
        self._task.cancel()


class _Method:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *arguments: Any) -> FakeResponse:
        return FakeResponse(self._function(*arguments))


class FakeHandle:
    """A handle whose methods are the given coroutine functions."""

    def __init__(self, **methods: Callable[..., Any]) -> None:
        for name, function in methods.items():
            setattr(self, name, _Method(function))
