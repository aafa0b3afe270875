-- Pools: VMs that are booted ahead of demand. `hidden`: in a pool, nobody's yet; `pool_id`: the pool that the VM was made
-- for, or claimed from. `template`: the hidden VM, never booted, that the pool's VMs are forked from.
CREATE TABLE pools (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL REFERENCES orgs (id),
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    template TEXT NOT NULL REFERENCES vms (id) DEFERRABLE INITIALLY DEFERRED,
    replicas INTEGER NOT NULL,
    labels TEXT,                        -- JSON: {name: text}
    about TEXT,                         -- JSON: what whoever made it wants told again
    created_at INTEGER NOT NULL,
    UNIQUE (org_id, namespace, name)
) STRICT, WITHOUT ROWID;
ALTER TABLE vms ADD COLUMN pool_id TEXT;
ALTER TABLE vms ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0;
CREATE INDEX vms_pool ON vms (pool_id) WHERE pool_id IS NOT NULL;

-- Documents of the dialects' own. One with a `vm_id` goes with that VM.
CREATE TABLE records (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL REFERENCES orgs (id),
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    body TEXT NOT NULL,                 -- JSON
    vm_id TEXT,
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    UNIQUE (org_id, kind, namespace, name)
) STRICT;
CREATE INDEX records_kind ON records (kind);
CREATE INDEX records_vm ON records (vm_id) WHERE vm_id IS NOT NULL;
CREATE INDEX records_expires ON records (expires_at) WHERE expires_at IS NOT NULL;
