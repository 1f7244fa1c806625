"""Fixtures of the unit tests."""

import pytest


@pytest.fixture(autouse=True)
def _no_ray(no_ray):
    """No unit test starts Ray, and none imports it."""
