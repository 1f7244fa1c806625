"""Fixtures of the contract tests."""

import pytest
from sandbox_bench import Bench
from store_bench import Store, check_store, make_template


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("template") / "wtb.db")


@pytest.fixture
def open_store(template, tmp_path):
    opened = []

    def open_store(**options):
        opened.append(Store(template, tmp_path / "wtb.db", **options))
        return opened[-1]

    yield open_store
    for store in opened:
        check_store(store)
        store.close()


@pytest.fixture
def store(open_store):
    return open_store()
