"""Versions know how many of the samples that they learned from were deleted since.

A column is added, nothing is rewritten: nothing was deleted before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("updates", sa.Column("deleted_samples", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("updates", "deleted_samples")
