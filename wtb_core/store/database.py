"""The one door to the database: engines, their settings, and the schema's version.

SQLite runs in WAL mode with `synchronous=FULL`: a commit that was acknowledged survives power loss,
at the price of one sync per transaction, which the collector shares among many events.
"""

import sqlite3
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool, QueuePool

_BUSY_TIMEOUT_MS = 30_000


def open_engine(url: str) -> Engine:
    """An engine for the store at `url`, such as `sqlite:////srv/wtb/wtb.db`."""
    sqlite = url.startswith("sqlite")
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=4,
        max_overflow=4,
        connect_args={"check_same_thread": False} if sqlite else {},
    )
    if sqlite:
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def sqlite_url(path: Path) -> str:
    """The store URL of a database file."""
    return f"sqlite:///{path}"


def find_path(engine: Engine) -> Path | None:
    """The database file of a store; null when it is none."""
    database = engine.url.database
    return Path(database) if engine.url.drivername.startswith("sqlite") and database else None


def migrate(url: str) -> None:
    """Bring the schema at `url` to the newest version, creating it where there is none."""
    command.upgrade(_configure_migrations(url), "head")


def is_newest(connection: Connection) -> bool:
    """Whether the schema is the one that this code knows."""
    known = ScriptDirectory.from_config(_configure_migrations("")).get_current_head()
    return MigrationContext.configure(connection).get_current_revision() == known


def _configure_migrations(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def migration_engine(url: str) -> Engine:
    """An engine that leaves no connection behind, for the migrations' environment."""
    engine = create_engine(url, poolclass=NullPool)
    if url.startswith("sqlite"):
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA temp_store=MEMORY")


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock at once, so that a transaction never fails half-way for want of it."""
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
