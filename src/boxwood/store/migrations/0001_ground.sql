-- Times are microseconds since 1970, UTC. Ids are ULIDs unless said otherwise.

CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE orgs (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL REFERENCES orgs (id),
    hash BLOB NOT NULL UNIQUE,          -- SHA-256 of the key
    prefix TEXT NOT NULL,               -- its first characters, to tell keys apart
    role TEXT NOT NULL,
    name TEXT,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX api_keys_org ON api_keys (org_id);

-- Sealed layers: a tree. A writable top has no row; it is named by its VM.
CREATE TABLE layers (
    id TEXT PRIMARY KEY,
    parent TEXT REFERENCES layers (id) DEFERRABLE INITIALLY DEFERRED,
    place TEXT NOT NULL CHECK (place IN ('data', 'image')),
    depth INTEGER NOT NULL,             -- layers of place 'data' from here down, itself included
    doomed INTEGER NOT NULL DEFAULT 0   -- nothing refers to it; its directory is being removed
) STRICT, WITHOUT ROWID;
CREATE INDEX layers_parent ON layers (parent);
CREATE INDEX layers_doomed ON layers (id) WHERE doomed;

CREATE TABLE vms (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL REFERENCES orgs (id),
    name TEXT,
    description TEXT,
    public INTEGER NOT NULL,
    immutable INTEGER NOT NULL,
    base TEXT NOT NULL REFERENCES layers (id),
    top TEXT NOT NULL UNIQUE,
    written INTEGER NOT NULL,           -- a box has had this top
    box_base TEXT REFERENCES layers (id),  -- what the live box's stack begins with: it may not be collected
    vcpu INTEGER,
    memory_mib INTEGER,
    disk_mib INTEGER,
    root_source_id TEXT,
    root_source_name TEXT,
    origin TEXT,                        -- of a golden: 'host' or 'import'
    created_at INTEGER NOT NULL,
    last_active_at INTEGER
) STRICT;
CREATE UNIQUE INDEX vms_name ON vms (org_id, name) WHERE name IS NOT NULL;
CREATE INDEX vms_org ON vms (org_id, id);
CREATE INDEX vms_base ON vms (base);
CREATE INDEX vms_box_base ON vms (box_base) WHERE box_base IS NOT NULL;

CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    idx INTEGER NOT NULL,
    cwd TEXT NOT NULL,
    env TEXT,                           -- JSON: as given when it was made
    exported TEXT,                      -- JSON: what its shell exported when it was last saved
    state BLOB,                         -- all of its shell, opaque
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    UNIQUE (vm_id, idx)
) STRICT;

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    session_id TEXT NOT NULL,           -- may be gone
    command TEXT NOT NULL,
    options TEXT,                       -- JSON: what else a pending run needs to be started
    state TEXT NOT NULL,
    exit_code INTEGER,
    started_at INTEGER NOT NULL,
    completed_at INTEGER,
    duration_us INTEGER,
    fail_reason TEXT,
    out BLOB,                           -- NULL: in DATA/spool
    err BLOB,
    out_bytes INTEGER NOT NULL DEFAULT 0,
    err_bytes INTEGER NOT NULL DEFAULT 0,
    truncated INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX runs_vm ON runs (vm_id, id);
CREATE INDEX runs_open ON runs (id) WHERE completed_at IS NULL;

CREATE TABLE uploads (
    vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    id TEXT NOT NULL,                   -- the client's own, or ours for a staged one
    staged INTEGER NOT NULL,            -- announced, to come whole through a signed URL
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT,
    ranges TEXT NOT NULL,               -- JSON: [[start, end], …] received, merged, in order
    file TEXT,                          -- name in DATA/uploads; NULL: none left
    complete INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (vm_id, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX uploads_staged ON uploads (id) WHERE staged;
CREATE INDEX uploads_age ON uploads (created_at);

CREATE TABLE idempotency (
    scope TEXT NOT NULL,                -- organisation and operation, and VM for runs
    key TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    target TEXT NOT NULL,               -- the VM or run that was made
    created_at INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_age ON idempotency (created_at);
