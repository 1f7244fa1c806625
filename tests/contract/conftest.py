"""Fixtures of the contract tests."""

import pytest
from sandbox_bench import Bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.close()
