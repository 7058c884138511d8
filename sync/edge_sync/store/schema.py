"""The tables of the hub, for SQLite and PostgreSQL alike.

Times are seconds since the epoch, money is integer micro-dollars, JSON is text. Migrations lead to
exactly this; a test compares them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

tables = MetaData()
_Number = BigInteger().with_variant(Integer, "sqlite")

facts = Table(
    "facts",  # single values: `generation` rises with every change that other processes must see
    tables,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

devices = Table(
    "devices",
    tables,
    Column("id", String(32), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("group_name", String(64), nullable=False, index=True),
    Column("public_key", String(64), nullable=False, unique=True),
    Column("status", String(16), nullable=False),  # active | quarantined | revoked
    Column("enrolled_at", Double, nullable=False),
    Column("last_seen_at", Double, index=True),
    Column("clock_skew_s", Double),  # the device's clock minus the hub's, at the last sync
    Column("incarnation", Integer, nullable=False),
    Column("nonce", String(64), nullable=False),
    Column("runtime", String(40), nullable=False),
    Column("pack", String(64), nullable=False),
    Column("revision", _Number, nullable=False),  # in force on the device, as it reported
    Column("revision_since", Double),
    Column("serial", _Number, nullable=False),  # of the assignment it holds
    Column("refused", Text, nullable=False),  # JSON: {"revision", "reason", "at"} or {}
    Column("models", Text, nullable=False),  # JSON: digest by name
    Column("waiting", Integer, nullable=False),
    Column("enrolled_with", String(64)),  # digest of the code, until the first sync
)

syncs = Table(
    "syncs",  # the last requests of each device: what is sent again gets the same answer
    tables,
    Column("device_id", String(32), ForeignKey("devices.id"), primary_key=True),
    Column("request_id", String(32), primary_key=True),
    Column("receipt", _Number, nullable=False),
    Column("nonce", String(64), nullable=False),
    Column("at", Double, nullable=False),
)

health = Table(
    "health",
    tables,
    Column("device_id", String(32), ForeignKey("devices.id"), primary_key=True),
    Column("revision", _Number, primary_key=True),
    Column("hour", Integer, primary_key=True),
    Column("tasks", _Number, nullable=False),
    Column("errors", _Number, nullable=False),
    Column("cached", _Number, nullable=False),
    Column("local", _Number, nullable=False),
    Column("cloud", _Number, nullable=False),
    Column("deferred", _Number, nullable=False),
    Column("abstained", _Number, nullable=False),
    Column("corrections", _Number, nullable=False),
    Column("cost_microusd", _Number, nullable=False),
    Column("latency", Text, nullable=False),  # JSON: counts by bucket
    Index("health_by_hour", "hour"),
    Index("health_by_revision", "revision", "hour"),
)

ledger_rows = Table(
    "ledger_rows",
    tables,
    Column("row_id", String(32), primary_key=True),
    Column("device_id", String(32), ForeignKey("devices.id"), nullable=False),
    Column("task", String(64), nullable=False),
    Column("pool", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("held_microusd", _Number, nullable=False),
    Column("cost_microusd", _Number, nullable=False),
    Column("at", Double, nullable=False),
    Column("revision", _Number, nullable=False),
    Column("receipt", _Number, nullable=False),
    Index("ledger_rows_by_device", "device_id", "at"),
    Index("ledger_rows_by_time", "at"),
)

codes = Table(
    "codes",  # enrolment codes, by digest
    tables,
    Column("digest", String(64), primary_key=True),
    Column("group_name", String(64), nullable=False),
    Column("uses_left", Integer, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("made_by", String(64), nullable=False),
)

groups = Table(
    "groups",
    tables,
    Column("name", String(64), primary_key=True),
    Column("serial", _Number, nullable=False),  # of the assignment outside of a rollout; 0: none
    Column("stopped", Text, nullable=False),  # JSON: {"models": [], "tools": [], "tasks": []}
)

policies = Table(
    "policies",
    tables,
    Column("revision", _Number, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),  # sha256 of the document
    Column("document", Text, nullable=False),  # as signed: canonical JSON
    Column("source", Text, nullable=False),  # as the admin wrote it
    Column("message", Text, nullable=False),
    Column("author", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("restores", _Number),  # the earlier revision whose content this is
)

assignments = Table(
    "assignments",
    tables,
    Column("serial", _Number, primary_key=True, autoincrement=False),
    Column("group_name", String(64), nullable=False, index=True),
    Column("device_id", String(32)),  # for one device alone
    Column("revision", _Number, nullable=False),
    Column("body", Text, nullable=False),  # signed
    Column("created_at", Double, nullable=False),
)

metadata_files = Table(
    "metadata_files",  # signed TUF metadata; the newest version of a role is the one in force
    tables,
    Column("role", String(32), primary_key=True),
    Column("version", _Number, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
)

models = Table(
    "models",
    tables,
    Column("digest", String(64), primary_key=True),  # sha256 of the manifest
    Column("name", String(64), nullable=False, index=True),
    Column("files", Text, nullable=False),  # JSON: the index that is a TUF target
    Column("bytes", _Number, nullable=False),
    Column("added_at", Double, nullable=False),
    Column("added_by", String(64), nullable=False),
)

rollouts = Table(
    "rollouts",
    tables,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", _Number, nullable=False),
    Column("restores", _Number),  # where it brings back an earlier content after a halt
    Column("previous", _Number, nullable=False),  # revision to return to; 0: none
    Column("groups", Text, nullable=False),  # JSON list of names
    Column("waves", Text, nullable=False),  # JSON list: {"percent": 5} or {"groups": ["lab"]}
    Column("terms", Text, nullable=False),  # JSON: thresholds of the judgement
    Column("state", String(16), nullable=False),  # running | paused | halted | aborted | done
    Column("wave", Integer, nullable=False),  # from 0
    Column("wave_since", Double, nullable=False),
    Column("reason", Text, nullable=False),  # why it is in this state, for a person
    Column("progress", Text, nullable=False),  # JSON: the last judgement's figures
    Column("serials", Text, nullable=False),  # JSON: by group, {"old": serial, "new": serial}
    Column("created_by", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
)

budgets = Table(
    "budgets",  # caps in force
    tables,
    Column("scope", String(200), primary_key=True),  # see edge_sync.money.caps
    Column("kind", String(8), primary_key=True),  # hour | day | month | total
    Column("amount_microusd", _Number, nullable=False),
    Column("set_by", String(64), nullable=False),
    Column("set_at", Double, nullable=False),
)

pots = Table(
    "pots",  # a cap within one period: free + open + settled = cap
    tables,
    Column("scope", String(200), primary_key=True),
    Column("period", String(24), primary_key=True),
    Column("cap_microusd", _Number, nullable=False),
    Column("free_microusd", _Number, nullable=False),  # below 0 after a cut
    Column("open_microusd", _Number, nullable=False),
    Column("settled_microusd", _Number, nullable=False),
    Column("alerted", Integer, nullable=False),  # the highest share told of, in percent
)

leases = Table(
    "leases",  # rights to spend
    tables,
    Column("lease_id", String(32), primary_key=True),
    Column("device_id", String(32), nullable=False),  # may be one that a backup does not know
    Column("group_name", String(64), nullable=False),  # whose money it is, also after a move
    Column("pool_id", String(64), nullable=False),
    Column("task", String(64), nullable=False),  # empty: any
    Column("period", String(24), nullable=False),
    Column("epoch", _Number, nullable=False),
    Column("amount_microusd", _Number, nullable=False),
    Column("state", String(8), nullable=False),  # open | closing | sealed
    Column("used_microusd", _Number, nullable=False),  # once sealed
    Column("seen_microusd", _Number, nullable=False),  # redeemed and held, when last heard of
    Column("told_microusd", _Number, nullable=False),  # used, as the device says
    Column("granted_at", Double, nullable=False),
    Column("not_after", Double, nullable=False),
    Column("why_closed", String(40), nullable=False),  # empty while open
    Column("text", Text, nullable=False),  # as signed; empty where rebuilt from a gateway
    Index("leases_by_device", "device_id", "state"),
    Index("leases_by_state", "state", "pool_id"),
    Index("leases_by_period", "period"),
)

wants = Table(
    "wants",  # what devices asked for last
    tables,
    Column("device_id", String(32), ForeignKey("devices.id"), primary_key=True),
    Column("pool_id", String(64), primary_key=True),
    Column("task", String(64), primary_key=True),  # empty: any
    Column("demand_microusd", _Number, nullable=False),
    Column("at", Double, nullable=False),
)

gateways = Table(
    "gateways",  # where money is counted, by pool
    tables,
    Column("pool_id", String(64), primary_key=True),
    Column("url", Text, nullable=False),  # empty where grade is escrow
    Column("grade", String(8), nullable=False),  # gateway | escrow
    Column("epoch", _Number, nullable=False),  # that it confirmed
    Column("rows_after", _Number, nullable=False),  # read so far
    Column("totals", Text, nullable=False),  # JSON, as it told last
    Column("seen_at", Double),  # of its last answer
    Column("error", Text, nullable=False),  # of the last attempt; empty: none
    Column("added_by", String(64), nullable=False),
    Column("added_at", Double, nullable=False),
)

redemptions = Table(
    "redemptions",  # the gateways' own rows
    tables,
    Column("hold_id", String(32), primary_key=True),
    Column("pool_id", String(64), nullable=False),
    Column("lease_id", String(32), nullable=False),
    Column("device_id", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("held_microusd", _Number, nullable=False),
    Column("cost_microusd", _Number, nullable=False),
    Column("at", Double, nullable=False),
    Column("seq", _Number, nullable=False),  # of the gateway
    Index("redemptions_by_lease", "lease_id"),
    Index("redemptions_by_time", "at"),
)

tokens = Table(
    "tokens",  # of admins, by digest
    tables,
    Column("digest", String(64), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),  # viewer | operator | admin
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
)

audit = Table(
    "audit",
    tables,
    Column("seq", _Number, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("who", String(100), nullable=False),
    Column("what", String(64), nullable=False),  # such as policy.publish
    Column("about", String(100), nullable=False),
    Column("detail", Text, nullable=False),  # JSON
    Column("before", String(64), nullable=False),  # digest of the entry before
    Column("digest", String(64), nullable=False),
)
