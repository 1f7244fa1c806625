"""Calls between deployments: every wait has an end, and what may be repeated is repeated."""

import asyncio
import logging
import random
from typing import Any

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    RayActorError,
    RayTaskError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from wtb_core.errors import StaleEpoch, Unavailable, WtbError

logger = logging.getLogger("ray.serve")

Handle = DeploymentHandle[Any]

CALL_TIMEOUT_S = 30.0
MAX_PAUSE_S = 2.0
RESTART_S = 5
"""How soon a deployment whose process died answers again, in whole seconds."""
OVERLOAD_S = 10
"""When to try again what was not answered in `CALL_TIMEOUT_S`."""

PASSING = (
    ActorDiedError,
    ActorUnavailableError,
    RayActorError,
    BackPressureError,
    DeploymentUnavailableError,
    StaleEpoch,
    TimeoutError,
    Unavailable,
)
"""What a call may meet while a deployment is replaced: the same call may succeed later."""


async def call(
    handle: Handle, method: str, *arguments: Any, timeout_s: float = CALL_TIMEOUT_S
) -> Any:
    """One call.

    Raises:
        Unavailable: when there was no answer in time or the deployment cannot answer now.
        WtbError: what the deployment raised.
    """
    response = getattr(handle, method).remote(*arguments)
    try:
        return await _within(response, timeout_s)
    except PASSING as error:
        if isinstance(error, StaleEpoch):
            what = f"{method} reached a collector that was replaced"
            raise Unavailable(what, _find_pause(error)) from None
        if isinstance(error, Unavailable):
            raise _find_cause(error) from None
        what = f"{method} got no answer: {type(error).__name__}"
        raise Unavailable(what, _find_pause(error)) from error
    except WtbError as error:
        raise _find_cause(error) from None


def _find_pause(error: Exception) -> int:
    """How many seconds a caller should wait before it tries again."""
    if isinstance(error, TimeoutError):
        return OVERLOAD_S
    return 1 if isinstance(error, BackPressureError) else RESTART_S


def _find_cause(error: WtbError) -> WtbError:
    """Our error without the remote traceback that Ray wraps around it."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, WtbError) else error


async def call_until_answered(
    handle: Handle, method: str, *arguments: Any, give_up_after_s: float | None = None
) -> Any:
    """Repeat a call that is safe to repeat until it is answered.

    Raises:
        Unavailable: when `give_up_after_s` has passed.
        WtbError: what the deployment raised.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    pause_s = 0.05
    while True:
        try:
            return await call(handle, method, *arguments)
        except Unavailable as error:
            if give_up_after_s is not None and loop.time() - started > give_up_after_s:
                raise
            logger.warning("%s is tried again: %s", method, error)
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        pause_s = min(pause_s * 2, MAX_PAUSE_S)


async def _within(response: Any, timeout_s: float) -> Any:
    """Await a response; a wait that is over also cancels the call, which Serve does not."""

    async def wait() -> Any:
        return await response

    task: asyncio.Task[Any] = asyncio.ensure_future(wait())
    # Nobody may be left to ask for its exception.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        return await asyncio.wait_for(asyncio.shield(task), timeout_s)
    except TimeoutError:
        response.cancel()
        task.cancel()
        raise
    except asyncio.CancelledError:
        response.cancel()
        task.cancel()
        raise
