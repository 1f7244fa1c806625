import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from wtb_core.store.database import migrate, migration_engine, open_engine, sqlite_url
from wtb_core.store.tables import metadata


@pytest.fixture
def url(tmp_path):
    return sqlite_url(tmp_path / "100%" / "wtb.db")


@pytest.fixture(autouse=True)
def _directory(tmp_path):
    (tmp_path / "100%").mkdir()


def test_an_empty_file_gets_exactly_the_tables_that_the_code_knows(url):
    migrate(url)

    engine = migration_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() is not None
        found = set(inspect(connection).get_table_names())
    assert found == {*metadata.tables, "alembic_version"}


def test_keys_and_unique_columns_are_those_of_the_code(url):
    migrate(url)

    engine = migration_engine(url)
    with engine.connect() as connection:
        inspector = inspect(connection)
        for name, table in metadata.tables.items():
            assert inspector.get_pk_constraint(name)["constrained_columns"] == [
                column.name for column in table.primary_key
            ]
            assert {
                column["name"]: column["nullable"] for column in inspector.get_columns(name)
            } == {column.name: column.nullable for column in table.columns}


def test_migrating_again_changes_nothing_and_keeps_what_is_stored(url, tmp_path):
    migrate(url)
    path = tmp_path / "100%" / "wtb.db"
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO streams VALUES ('pool', 7)")
    before = list(sqlite3.connect(path).execute("SELECT type, name, sql FROM sqlite_master"))

    migrate(url)

    after = sqlite3.connect(path)
    assert list(after.execute("SELECT type, name, sql FROM sqlite_master")) == before
    assert list(after.execute("SELECT * FROM streams")) == [("pool", 7)]


def test_a_commit_is_durable_and_readers_do_not_wait_for_the_writer(url):
    migrate(url)
    engine = open_engine(url)
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}

    with engine.begin() as writer:
        writer.exec_driver_sql("INSERT INTO streams VALUES ('pool', 1)")
        with engine.connect().execution_options(read_only=True) as reader:
            assert reader.exec_driver_sql("SELECT count(*) FROM streams").scalar() == 0
    engine.dispose()
