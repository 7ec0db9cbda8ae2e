"""Samples know the key that their pictures are encrypted with.

A column is added, nothing is rewritten: what is there is not encrypted, and stays so until it has been used.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("samples", sa.Column("key_name", sa.String))


def downgrade() -> None:
    op.drop_column("samples", "key_name")
