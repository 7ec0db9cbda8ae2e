"""The first schema: groups, devices, boots, samples, payloads, updates, garbage (sql_tables.py explains them)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_groups_and_devices()
    _create_samples()
    _create_updates()


def downgrade() -> None:
    for table in ("garbage", "updates", "payloads", "samples", "boots", "devices", "groups"):
        op.drop_table(table)


def _create_groups_and_devices() -> None:
    op.create_table(
        "groups",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("fingerprint", sa.String, nullable=False),
        sa.Column("lineage", sa.Integer, nullable=False),
        sa.Column("bundle_blob", sa.String, nullable=False),
        sa.Column("latest_version", sa.Integer, nullable=False),
        sa.Column("samples_seen", sa.BigInteger, nullable=False),
        sa.Column("ticks_done", sa.BigInteger, nullable=False),
        sa.Column("ticks_dropped", sa.BigInteger, nullable=False),
        sa.Column("checkpoint", sa.String),
        sa.Column("dirty", sa.Boolean, nullable=False),
        sa.Column("last_published_ms", sa.BigInteger, nullable=False),
        sa.Column("adaptation", sa.String, nullable=False),
        sa.Column("worker", sa.String),
        sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
        sa.Column("served", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("device_id", sa.String, primary_key=True),
        sa.Column("group_name", sa.String, sa.ForeignKey("groups.name"), nullable=False),
        sa.Column("token_sha256", sa.String, nullable=False, unique=True),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.Column("last_seen_ms", sa.BigInteger, nullable=False),
        sa.Column("samples_seen", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.JSON, nullable=False),
    )
    op.create_index("ix_devices_group_name", "devices", ["group_name"])
    op.create_table(
        "boots",
        sa.Column("device_id", sa.String, primary_key=True),
        sa.Column("boot_id", sa.LargeBinary, primary_key=True),
        sa.Column("samples_seen", sa.BigInteger, nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger, nullable=False),
    )


def _create_samples() -> None:
    op.create_table(
        "samples",
        sa.Column("row_id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("group_name", sa.String, sa.ForeignKey("groups.name"), nullable=False),
        sa.Column("sample_id", sa.LargeBinary, nullable=False),
        sa.Column("codec", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("received_ms", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("group_name", "sample_id", name="uq_samples_group_sample"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_samples_queue", "samples", ["group_name", "state", "row_id"])
    op.create_index("ix_samples_version", "samples", ["group_name", "version"])
    op.create_index("ix_samples_age", "samples", ["state", "received_ms"])
    op.create_table(
        "payloads",
        sa.Column("row_id", sa.Integer, sa.ForeignKey("samples.row_id"), primary_key=True),
        sa.Column("image", sa.LargeBinary, nullable=False),
    )


def _create_updates() -> None:
    op.create_table(
        "updates",
        sa.Column("group_name", sa.String, sa.ForeignKey("groups.name"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("blob", sa.String, nullable=False),
        sa.Column("signature", sa.String, nullable=False),
        sa.Column("fingerprint", sa.String, nullable=False),
        sa.Column("method", sa.String, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("rollback_of", sa.Integer),
        sa.Column("samples", sa.Integer, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
    )
    op.create_table("garbage", sa.Column("blob", sa.String, primary_key=True))
