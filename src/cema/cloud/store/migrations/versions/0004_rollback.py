"""Operators take versions back: a rollback says what it restores, a group says that its workers have to load it anew.

Columns are added, nothing is rewritten.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("groups", sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
    op.add_column("updates", sa.Column("restores", sa.Integer))


def downgrade() -> None:
    op.drop_column("updates", "restores")
    op.drop_column("groups", "revision")
