"""Calls between deployments: what a caller is told when there is no answer."""

import asyncio

import pytest
from fakes import FakeHandle
from permit_pool import make_death
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments import calls
from wtb_core.errors import NotFound, StaleEpoch, Unavailable


def make_handle(error: Exception) -> FakeHandle:
    async def ask() -> None:
        raise error

    return FakeHandle(ask=ask)


@pytest.mark.parametrize(
    ("error", "retry_after_s"),
    [
        (make_death("a"), calls.RESTART_S),
        (StaleEpoch(1, 2), calls.RESTART_S),
        (DeploymentUnavailableError.__new__(DeploymentUnavailableError), calls.RESTART_S),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), 1),
        (TimeoutError(), calls.OVERLOAD_S),
        (Unavailable("the store is closed", 7), 7),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_caller_is_told_when_to_try_again(error: Exception, retry_after_s: int) -> None:
    with pytest.raises(Unavailable) as caught:
        asyncio.run(calls.call(make_handle(error), "ask"))
    assert caught.value.retry_after_s == retry_after_s


def test_an_error_that_is_an_answer_is_handed_on() -> None:
    with pytest.raises(NotFound):
        asyncio.run(calls.call(make_handle(NotFound("batch", "b")), "ask"))


def test_a_call_without_an_answer_is_cancelled_and_ends() -> None:
    cancelled: list[bool] = []

    async def ask() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main() -> None:
        with pytest.raises(Unavailable, match="TimeoutError"):
            await calls.call(FakeHandle(ask=ask), "ask", timeout_s=0.01)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert cancelled == [True]
