"""What is left out of the log, and what is not."""

import logging

import pytest

from deployments.logs import quieten
from wtb_core.errors import NotFound

logger = logging.getLogger("ray.serve")


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch):
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "filters", [])
    quieten()
    quieten()
    yield records
    assert len(logger.filters) == 1


def test_daily_business_is_left_out(logged) -> None:
    logger.info("GET /v1/pool 200", extra={"serve_access_log": True})
    logger.warning("Request dropped due to backpressure (num_queued_requests=4).")
    logger.warning("Failed to route request after 3 attempts over 1 s.")
    try:
        raise NotFound("batch", "b")
    except NotFound:
        logger.exception("Request failed.")
    assert logged == []


def test_the_rest_is_logged_with_its_names(logged) -> None:
    logger.info("a batch is accepted", extra={"batch_id": "b-1"})
    try:
        raise KeyError("a fault")
    except KeyError:
        logger.exception("Request failed.")
    assert [record.getMessage() for record in logged] == ["a batch is accepted", "Request failed."]
    assert logged[0].batch_id == "b-1"
