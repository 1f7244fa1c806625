"""priorities, replicas that are replaced, attempts that are handed back"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("batches", "priority"),
    ("batches", "infrastructure"),
    ("executions", "drained"),
    ("replicas", "restart_count"),
)


def upgrade() -> None:
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("resume", sa.Text(), nullable=True))
        batch_op.alter_column("resumed_from", type_=sa.String(128), existing_nullable=True)
    with op.batch_alter_table("replicas", schema=None) as batch_op:
        batch_op.add_column(sa.Column("ended_ms", sa.BigInteger(), nullable=True))
    for table, name in _COLUMNS:
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    for table, name in reversed(_COLUMNS):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column(name)
    with op.batch_alter_table("replicas", schema=None) as batch_op:
        batch_op.drop_column("ended_ms")
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.alter_column("resumed_from", type_=sa.String(64), existing_nullable=True)
        batch_op.drop_column("resume")
