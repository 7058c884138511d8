"""The first schema of the hub."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create all tables."""
    _add_facts()
    _add_devices()
    _add_reports()
    _add_policies()
    _add_rollouts()


def _add_facts() -> None:
    """Single values, the audit log and the admins' tokens."""
    op.create_table(
        "facts",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text(), nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("seq", _NUMBER, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("who", sa.String(100), nullable=False),
        sa.Column("what", sa.String(64), nullable=False),
        sa.Column("about", sa.String(100), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("before", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), unique=True, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
        sa.Column("last_used_at", sa.Double()),
    )


def _add_devices() -> None:
    """Devices, their groups, and codes to join."""
    op.create_table(
        "groups",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("serial", _NUMBER, nullable=False),
        sa.Column("stopped", sa.Text(), nullable=False),
    )
    op.create_table(
        "codes",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("group_name", sa.String(64), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("made_by", sa.String(64), nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("group_name", sa.String(64), nullable=False),
        sa.Column("public_key", sa.String(64), unique=True, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("enrolled_at", sa.Double(), nullable=False),
        sa.Column("last_seen_at", sa.Double()),
        sa.Column("clock_skew_s", sa.Double()),
        sa.Column("incarnation", sa.Integer(), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("runtime", sa.String(40), nullable=False),
        sa.Column("pack", sa.String(64), nullable=False),
        sa.Column("revision", _NUMBER, nullable=False),
        sa.Column("revision_since", sa.Double()),
        sa.Column("serial", _NUMBER, nullable=False),
        sa.Column("refused", sa.Text(), nullable=False),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("waiting", sa.Integer(), nullable=False),
        sa.Column("enrolled_with", sa.String(64)),
    )
    op.create_index("ix_devices_group_name", "devices", ["group_name"])
    op.create_index("ix_devices_last_seen_at", "devices", ["last_seen_at"])


def _add_reports() -> None:
    """What devices report."""
    op.create_table(
        "syncs",
        sa.Column("device_id", sa.String(32), sa.ForeignKey("devices.id"), primary_key=True),
        sa.Column("request_id", sa.String(32), primary_key=True),
        sa.Column("receipt", _NUMBER, nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
    )
    op.create_table(
        "health",
        sa.Column("device_id", sa.String(32), sa.ForeignKey("devices.id"), primary_key=True),
        sa.Column("revision", _NUMBER, primary_key=True),
        sa.Column("hour", sa.Integer(), primary_key=True),
        sa.Column("tasks", _NUMBER, nullable=False),
        sa.Column("errors", _NUMBER, nullable=False),
        sa.Column("cached", _NUMBER, nullable=False),
        sa.Column("local", _NUMBER, nullable=False),
        sa.Column("cloud", _NUMBER, nullable=False),
        sa.Column("deferred", _NUMBER, nullable=False),
        sa.Column("abstained", _NUMBER, nullable=False),
        sa.Column("corrections", _NUMBER, nullable=False),
        sa.Column("cost_microusd", _NUMBER, nullable=False),
        sa.Column("latency", sa.Text(), nullable=False),
    )
    op.create_index("health_by_hour", "health", ["hour"])
    op.create_index("health_by_revision", "health", ["revision", "hour"])
    op.create_table(
        "ledger_rows",
        sa.Column("row_id", sa.String(32), primary_key=True),
        sa.Column("device_id", sa.String(32), sa.ForeignKey("devices.id"), nullable=False),
        sa.Column("task", sa.String(64), nullable=False),
        sa.Column("pool", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("held_microusd", _NUMBER, nullable=False),
        sa.Column("cost_microusd", _NUMBER, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("revision", _NUMBER, nullable=False),
        sa.Column("receipt", _NUMBER, nullable=False),
    )
    op.create_index("ledger_rows_by_device", "ledger_rows", ["device_id", "at"])
    op.create_index("ledger_rows_by_time", "ledger_rows", ["at"])


def _add_policies() -> None:
    """Policies, who gets them, and signed metadata."""
    op.create_table(
        "policies",
        sa.Column("revision", _NUMBER, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("author", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("restores", _NUMBER),
    )
    op.create_table(
        "assignments",
        sa.Column("serial", _NUMBER, primary_key=True, autoincrement=False),
        sa.Column("group_name", sa.String(64), nullable=False),
        sa.Column("device_id", sa.String(32)),
        sa.Column("revision", _NUMBER, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_assignments_group_name", "assignments", ["group_name"])
    op.create_table(
        "metadata_files",
        sa.Column("role", sa.String(32), primary_key=True),
        sa.Column("version", _NUMBER, primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )


def _add_rollouts() -> None:
    """Models and rollouts."""
    op.create_table(
        "models",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("files", sa.Text(), nullable=False),
        sa.Column("bytes", _NUMBER, nullable=False),
        sa.Column("added_at", sa.Double(), nullable=False),
        sa.Column("added_by", sa.String(64), nullable=False),
    )
    op.create_index("ix_models_name", "models", ["name"])
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("revision", _NUMBER, nullable=False),
        sa.Column("restores", _NUMBER),
        sa.Column("previous", _NUMBER, nullable=False),
        sa.Column("groups", sa.Text(), nullable=False),
        sa.Column("waves", sa.Text(), nullable=False),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("wave_since", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("progress", sa.Text(), nullable=False),
        sa.Column("serials", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double()),
    )
