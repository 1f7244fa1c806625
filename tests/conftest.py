"""Fixtures of all tests."""

import sys
from types import ModuleType

import pytest
from hypothesis import settings

# The same examples in every run; `--hypothesis-profile explore` looks for new ones.
settings.register_profile("repeat", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeat")

_RAY = "ray"


@pytest.fixture
def no_ray(monkeypatch):
    """`ray.init` raises, whether ray was imported before the test or is imported by it."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("this test must not start Ray")

    loaded = sys.modules.get(_RAY)
    if isinstance(loaded, ModuleType):
        monkeypatch.setattr(loaded, "init", refuse)
    yield
    imported = sys.modules.get(_RAY)
    assert loaded is not None or imported is None, "this test imported ray"
