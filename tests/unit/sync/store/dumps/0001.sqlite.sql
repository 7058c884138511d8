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
CREATE TABLE groups (
  name VARCHAR(64) NOT NULL, 
  serial INTEGER NOT NULL, 
  stopped TEXT NOT NULL, 
  PRIMARY KEY (name)
);
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
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num));
INSERT INTO alembic_version VALUES ('0001');
INSERT INTO facts VALUES ('generation', '7');
INSERT INTO devices (id, name, group_name, public_key, status, enrolled_at, last_seen_at, incarnation, nonce, runtime, pack, revision, serial, refused, models, waiting) VALUES ('00112233445566778899aabbccddeeff', 'kiosk 7', 'kiosks', 'abababababababababababababababababababababababababababababababab', 'active', 1795000000.5, 1795000300.25, 1, 'n', '0.1.0', 'kiosk', 3, 5, '{}', '{}', 0);
INSERT INTO ledger_rows (row_id, device_id, task, pool, state, held_microusd, cost_microusd, at, revision, receipt) VALUES ('ffeeddccbbaa99887766554433221100', '00112233445566778899aabbccddeeff', 'intent', 'default', 'settled', 5000000000, 4000000000, 1795000200.0, 3, 12);
INSERT INTO metadata_files (role, version, body, created_at) VALUES ('root', 1, X'007b7dff', 1795000000.0);
