"""Samples know under which condition they were seen: on which device, in which stretch of its stream.

Columns are added, nothing is rewritten: samples of before are all of one unnamed device.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("samples", sa.Column("device_id", sa.String, nullable=False, server_default=""))
    op.add_column("samples", sa.Column("domain", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    for column in ("domain", "device_id"):
        op.drop_column("samples", column)
