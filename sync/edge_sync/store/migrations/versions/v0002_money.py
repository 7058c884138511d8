"""Money: caps, pots, leases, what devices want, gateways and what they redeemed."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the tables of money; a hub that is there begins at epoch 1."""
    _add_caps()
    _add_leases()
    _add_gateways()
    for name, value in (("epoch", "1"), ("granted", "0")):
        op.execute(
            f"INSERT INTO facts (name, value) SELECT '{name}', '{value}' FROM facts "  # noqa: S608
            "WHERE name = 'generation'"
        )


def _money(name: str) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, nullable=False)


def _add_caps() -> None:
    op.create_table(
        "budgets",
        sa.Column("scope", sa.String(200), primary_key=True),
        sa.Column("kind", sa.String(8), primary_key=True),
        _money("amount_microusd"),
        sa.Column("set_by", sa.String(64), nullable=False),
        sa.Column("set_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "pots",
        sa.Column("scope", sa.String(200), primary_key=True),
        sa.Column("period", sa.String(24), primary_key=True),
        _money("cap_microusd"),
        _money("free_microusd"),
        _money("open_microusd"),
        _money("settled_microusd"),
        sa.Column("alerted", sa.Integer(), nullable=False),
    )


def _add_leases() -> None:
    op.create_table(
        "leases",
        sa.Column("lease_id", sa.String(32), primary_key=True),
        sa.Column("device_id", sa.String(32), nullable=False),
        sa.Column("group_name", sa.String(64), nullable=False),
        sa.Column("pool_id", sa.String(64), nullable=False),
        sa.Column("task", sa.String(64), nullable=False),
        sa.Column("period", sa.String(24), nullable=False),
        sa.Column("epoch", _NUMBER, nullable=False),
        _money("amount_microusd"),
        sa.Column("state", sa.String(8), nullable=False),
        _money("used_microusd"),
        _money("seen_microusd"),
        _money("told_microusd"),
        sa.Column("granted_at", sa.Double(), nullable=False),
        sa.Column("not_after", sa.Double(), nullable=False),
        sa.Column("why_closed", sa.String(40), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
    )
    op.create_index("leases_by_device", "leases", ["device_id", "state"])
    op.create_index("leases_by_state", "leases", ["state", "pool_id"])
    op.create_index("leases_by_period", "leases", ["period"])
    op.create_table(
        "wants",
        sa.Column("device_id", sa.String(32), sa.ForeignKey("devices.id"), primary_key=True),
        sa.Column("pool_id", sa.String(64), primary_key=True),
        sa.Column("task", sa.String(64), primary_key=True),
        _money("demand_microusd"),
        sa.Column("at", sa.Double(), nullable=False),
    )


def _add_gateways() -> None:
    op.create_table(
        "gateways",
        sa.Column("pool_id", sa.String(64), primary_key=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("grade", sa.String(8), nullable=False),
        sa.Column("epoch", _NUMBER, nullable=False),
        sa.Column("rows_after", _NUMBER, nullable=False),
        sa.Column("totals", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.Double()),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("added_by", sa.String(64), nullable=False),
        sa.Column("added_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "redemptions",
        sa.Column("hold_id", sa.String(32), primary_key=True),
        sa.Column("pool_id", sa.String(64), nullable=False),
        sa.Column("lease_id", sa.String(32), nullable=False),
        sa.Column("device_id", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        _money("held_microusd"),
        _money("cost_microusd"),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("seq", _NUMBER, nullable=False),
    )
    op.create_index("redemptions_by_lease", "redemptions", ["lease_id"])
    op.create_index("redemptions_by_time", "redemptions", ["at"])
