CREATE TABLE assignments (
  serial INTEGER NOT NULL, 
  group_name VARCHAR(64) NOT NULL, 
  device_id VARCHAR(32), 
  revision INTEGER NOT NULL, 
  body TEXT NOT NULL, 
  created_at DOUBLE NOT NULL, 
  PRIMARY KEY (serial)
);
CREATE INDEX ix_assignments_group_name ON assignments (group_name);
CREATE TABLE audit (
  seq INTEGER NOT NULL, 
  at DOUBLE NOT NULL, 
  who VARCHAR(100) NOT NULL, 
  what VARCHAR(64) NOT NULL, 
  about VARCHAR(100) NOT NULL, 
  detail TEXT NOT NULL, 
  "before" VARCHAR(64) NOT NULL, 
  digest VARCHAR(64) NOT NULL, 
  PRIMARY KEY (seq)
);
CREATE TABLE budgets (
  scope VARCHAR(200) NOT NULL, 
  kind VARCHAR(8) NOT NULL, 
  amount_microusd INTEGER NOT NULL, 
  set_by VARCHAR(64) NOT NULL, 
  set_at DOUBLE NOT NULL, 
  PRIMARY KEY (scope, kind)
);
CREATE TABLE codes (
  digest VARCHAR(64) NOT NULL, 
  group_name VARCHAR(64) NOT NULL, 
  uses_left INTEGER NOT NULL, 
  expires_at DOUBLE NOT NULL, 
  made_by VARCHAR(64) NOT NULL, 
  PRIMARY KEY (digest)
);
CREATE TABLE devices (
  id VARCHAR(32) NOT NULL, 
  name VARCHAR(100) NOT NULL, 
  group_name VARCHAR(64) NOT NULL, 
  public_key VARCHAR(64) NOT NULL, 
  status VARCHAR(16) NOT NULL, 
  enrolled_at DOUBLE NOT NULL, 
  last_seen_at DOUBLE, 
  clock_skew_s DOUBLE, 
  incarnation INTEGER NOT NULL, 
  nonce VARCHAR(64) NOT NULL, 
  runtime VARCHAR(40) NOT NULL, 
  pack VARCHAR(64) NOT NULL, 
  revision INTEGER NOT NULL, 
  revision_since DOUBLE, 
  serial INTEGER NOT NULL, 
  refused TEXT NOT NULL, 
  models TEXT NOT NULL, 
  waiting INTEGER NOT NULL, 
  enrolled_with VARCHAR(64), 
  PRIMARY KEY (id), 
  UNIQUE (public_key)
);
CREATE INDEX ix_devices_group_name ON devices (group_name);
CREATE INDEX ix_devices_last_seen_at ON devices (last_seen_at);
CREATE TABLE facts (
  name VARCHAR(64) NOT NULL, 
  value TEXT NOT NULL, 
  PRIMARY KEY (name)
);
CREATE TABLE gateways (
  pool_id VARCHAR(64) NOT NULL, 
  url TEXT NOT NULL, 
  grade VARCHAR(8) NOT NULL, 
  epoch INTEGER NOT NULL, 
  rows_after INTEGER NOT NULL, 
  totals TEXT NOT NULL, 
  seen_at DOUBLE, 
  error TEXT NOT NULL, 
  added_by VARCHAR(64) NOT NULL, 
  added_at DOUBLE NOT NULL, 
  PRIMARY KEY (pool_id)
);
CREATE TABLE groups (
  name VARCHAR(64) NOT NULL, 
  serial INTEGER NOT NULL, 
  stopped TEXT NOT NULL, 
  PRIMARY KEY (name)
);
CREATE TABLE leases (
  lease_id VARCHAR(32) NOT NULL, 
  device_id VARCHAR(32) NOT NULL, 
  group_name VARCHAR(64) NOT NULL, 
  pool_id VARCHAR(64) NOT NULL, 
  task VARCHAR(64) NOT NULL, 
  period VARCHAR(24) NOT NULL, 
  epoch INTEGER NOT NULL, 
  amount_microusd INTEGER NOT NULL, 
  state VARCHAR(8) NOT NULL, 
  used_microusd INTEGER NOT NULL, 
  seen_microusd INTEGER NOT NULL, 
  told_microusd INTEGER NOT NULL, 
  granted_at DOUBLE NOT NULL, 
  not_after DOUBLE NOT NULL, 
  why_closed VARCHAR(40) NOT NULL, 
  text TEXT NOT NULL, 
  PRIMARY KEY (lease_id)
);
CREATE INDEX leases_by_device ON leases (device_id, state);
CREATE INDEX leases_by_period ON leases (period);
CREATE INDEX leases_by_state ON leases (state, pool_id);
CREATE TABLE metadata_files (
  role VARCHAR(32) NOT NULL, 
  version INTEGER NOT NULL, 
  body BLOB NOT NULL, 
  created_at DOUBLE NOT NULL, 
  PRIMARY KEY (role, version)
);
CREATE TABLE models (
  digest VARCHAR(64) NOT NULL, 
  name VARCHAR(64) NOT NULL, 
  files TEXT NOT NULL, 
  bytes INTEGER NOT NULL, 
  added_at DOUBLE NOT NULL, 
  added_by VARCHAR(64) NOT NULL, 
  PRIMARY KEY (digest)
);
CREATE INDEX ix_models_name ON models (name);
CREATE TABLE policies (
  revision INTEGER NOT NULL, 
  digest VARCHAR(64) NOT NULL, 
  document TEXT NOT NULL, 
  source TEXT NOT NULL, 
  message TEXT NOT NULL, 
  author VARCHAR(64) NOT NULL, 
  created_at DOUBLE NOT NULL, 
  restores INTEGER, 
  PRIMARY KEY (revision)
);
CREATE TABLE pots (
  scope VARCHAR(200) NOT NULL, 
  period VARCHAR(24) NOT NULL, 
  cap_microusd INTEGER NOT NULL, 
  free_microusd INTEGER NOT NULL, 
  open_microusd INTEGER NOT NULL, 
  settled_microusd INTEGER NOT NULL, 
  alerted INTEGER NOT NULL, 
  PRIMARY KEY (scope, period)
);
CREATE TABLE redemptions (
  hold_id VARCHAR(32) NOT NULL, 
  pool_id VARCHAR(64) NOT NULL, 
  lease_id VARCHAR(32) NOT NULL, 
  device_id VARCHAR(32) NOT NULL, 
  state VARCHAR(16) NOT NULL, 
  held_microusd INTEGER NOT NULL, 
  cost_microusd INTEGER NOT NULL, 
  at DOUBLE NOT NULL, 
  seq INTEGER NOT NULL, 
  PRIMARY KEY (hold_id)
);
CREATE INDEX redemptions_by_lease ON redemptions (lease_id);
CREATE INDEX redemptions_by_time ON redemptions (at);
CREATE TABLE rollouts (
  id INTEGER NOT NULL, 
  revision INTEGER NOT NULL, 
  restores INTEGER, 
  previous INTEGER NOT NULL, 
  groups TEXT NOT NULL, 
  waves TEXT NOT NULL, 
  terms TEXT NOT NULL, 
  state VARCHAR(16) NOT NULL, 
  wave INTEGER NOT NULL, 
  wave_since DOUBLE NOT NULL, 
  reason TEXT NOT NULL, 
  progress TEXT NOT NULL, 
  serials TEXT NOT NULL, 
  created_by VARCHAR(64) NOT NULL, 
  created_at DOUBLE NOT NULL, 
  ended_at DOUBLE, 
  PRIMARY KEY (id)
);
CREATE TABLE tokens (
  digest VARCHAR(64) NOT NULL, 
  name VARCHAR(64) NOT NULL, 
  role VARCHAR(16) NOT NULL, 
  created_at DOUBLE NOT NULL, 
  expires_at DOUBLE, 
  revoked_at DOUBLE, 
  last_used_at DOUBLE, 
  PRIMARY KEY (digest), 
  UNIQUE (name)
);
CREATE TABLE health (
  device_id VARCHAR(32) NOT NULL, 
  revision INTEGER NOT NULL, 
  hour INTEGER NOT NULL, 
  tasks INTEGER NOT NULL, 
  errors INTEGER NOT NULL, 
  cached INTEGER NOT NULL, 
  local INTEGER NOT NULL, 
  cloud INTEGER NOT NULL, 
  "deferred" INTEGER NOT NULL, 
  abstained INTEGER NOT NULL, 
  corrections INTEGER NOT NULL, 
  cost_microusd INTEGER NOT NULL, 
  latency TEXT NOT NULL, 
  PRIMARY KEY (device_id, revision, hour), 
  FOREIGN KEY(device_id) REFERENCES devices (id)
);
CREATE INDEX health_by_hour ON health (hour);
CREATE INDEX health_by_revision ON health (revision, hour);
CREATE TABLE ledger_rows (
  row_id VARCHAR(32) NOT NULL, 
  device_id VARCHAR(32) NOT NULL, 
  task VARCHAR(64) NOT NULL, 
  pool VARCHAR(64) NOT NULL, 
  state VARCHAR(16) NOT NULL, 
  held_microusd INTEGER NOT NULL, 
  cost_microusd INTEGER NOT NULL, 
  at DOUBLE NOT NULL, 
  revision INTEGER NOT NULL, 
  receipt INTEGER NOT NULL, 
  PRIMARY KEY (row_id), 
  FOREIGN KEY(device_id) REFERENCES devices (id)
);
CREATE INDEX ledger_rows_by_device ON ledger_rows (device_id, at);
CREATE INDEX ledger_rows_by_time ON ledger_rows (at);
CREATE TABLE syncs (
  device_id VARCHAR(32) NOT NULL, 
  request_id VARCHAR(32) NOT NULL, 
  receipt INTEGER NOT NULL, 
  nonce VARCHAR(64) NOT NULL, 
  at DOUBLE NOT NULL, 
  PRIMARY KEY (device_id, request_id), 
  FOREIGN KEY(device_id) REFERENCES devices (id)
);
CREATE TABLE wants (
  device_id VARCHAR(32) NOT NULL, 
  pool_id VARCHAR(64) NOT NULL, 
  task VARCHAR(64) NOT NULL, 
  demand_microusd INTEGER NOT NULL, 
  at DOUBLE NOT NULL, 
  PRIMARY KEY (device_id, pool_id, task), 
  FOREIGN KEY(device_id) REFERENCES devices (id)
);
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num));
INSERT INTO alembic_version VALUES ('0002');
INSERT INTO facts VALUES ('generation', '7');
INSERT INTO devices (id, name, group_name, public_key, status, enrolled_at, last_seen_at, incarnation, nonce, runtime, pack, revision, serial, refused, models, waiting) VALUES ('00112233445566778899aabbccddeeff', 'kiosk 7', 'kiosks', 'abababababababababababababababababababababababababababababababab', 'active', 1795000000.5, 1795000300.25, 1, 'n', '0.1.0', 'kiosk', 3, 5, '{}', '{}', 0);
INSERT INTO ledger_rows (row_id, device_id, task, pool, state, held_microusd, cost_microusd, at, revision, receipt) VALUES ('ffeeddccbbaa99887766554433221100', '00112233445566778899aabbccddeeff', 'intent', 'default', 'settled', 5000000000, 4000000000, 1795000200.0, 3, 12);
INSERT INTO metadata_files (role, version, body, created_at) VALUES ('root', 1, X'007b7dff', 1795000000.0);
INSERT INTO facts VALUES ('epoch', '3');
INSERT INTO facts VALUES ('granted', '1');
INSERT INTO budgets (scope, kind, amount_microusd, set_by, set_at) VALUES ('fleet', 'month', 5000000000, 'ann', 1795000000.0);
INSERT INTO pots (scope, period, cap_microusd, free_microusd, open_microusd, settled_microusd, alerted) VALUES ('fleet', 'month:2026-11', 5000000000, 1000000000, 4000000000, 0, 50);
INSERT INTO leases (lease_id, device_id, group_name, pool_id, task, period, epoch, amount_microusd, state, used_microusd, seen_microusd, told_microusd, granted_at, not_after, why_closed, text) VALUES ('00000000000000000000000000000001', '00112233445566778899aabbccddeeff', 'kiosks', 'gpu', '', 'month:2026-11', 3, 4000000000, 'open', 0, 7, 5, 1795000100.0, 1795604900.0, '', '{}');
INSERT INTO wants (device_id, pool_id, task, demand_microusd, at) VALUES ('00112233445566778899aabbccddeeff', 'gpu', '', 4000000000, 1795000100.0);
INSERT INTO gateways (pool_id, url, grade, epoch, rows_after, totals, error, added_by, added_at) VALUES ('gpu', 'https://gpu.example:8500', 'gateway', 3, 12, '{}', '', 'ann', 1795000000.0);
INSERT INTO redemptions (hold_id, pool_id, lease_id, device_id, state, held_microusd, cost_microusd, at, seq) VALUES ('00000000000000000000000000000002', 'gpu', '00000000000000000000000000000001', '00112233445566778899aabbccddeeff', 'settled', 9, 7, 1795000200.0, 12);
