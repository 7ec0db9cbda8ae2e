"""Operators switch groups and devices off, whatever the configuration says.

Columns are added, nothing is rewritten: nobody was switched off before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("groups", "devices"):
        op.add_column(table, sa.Column("paused_ms", sa.BigInteger))


def downgrade() -> None:
    for table in ("groups", "devices"):
        op.drop_column(table, "paused_ms")
