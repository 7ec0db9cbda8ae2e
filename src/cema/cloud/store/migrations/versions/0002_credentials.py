"""Devices get keys of their own in exchange for one-time tokens; operators and readers get credentials.

Columns are added, nothing is rewritten: devices of before keep their token, which is their key.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("devices", sa.Column("token_expires_ms", sa.BigInteger))
    op.add_column("devices", sa.Column("next_sha256", sa.String))
    op.add_column("devices", sa.Column("rotate", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("ix_devices_next_sha256", "devices", ["next_sha256"], unique=True)
    op.create_table(
        "users",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("token_sha256", sa.String, nullable=False, unique=True),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_ms", sa.BigInteger),
    )


def downgrade() -> None:
    op.drop_table("users")
    op.drop_index("ix_devices_next_sha256", "devices")
    for column in ("rotate", "next_sha256", "token_expires_ms"):
        op.drop_column("devices", column)
