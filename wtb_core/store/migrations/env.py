"""Alembic's environment: one connection, one transaction."""

from alembic import context

from wtb_core.store.database import migration_engine
from wtb_core.store.tables import metadata

url = context.config.get_main_option("sqlalchemy.url")
if url is None:
    raise RuntimeError("the migrations need sqlalchemy.url")
engine = migration_engine(url)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
