-- Filesystems: volumes that outlive VMs. A doomed one is nobody's any more; its directory is being removed.
CREATE TABLE filesystems (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL REFERENCES orgs (id),
    name TEXT NOT NULL,
    size_mib INTEGER,                   -- that it can hold; NULL: as much as there is
    bytes INTEGER,                      -- that it took when somebody last looked
    measured_at INTEGER,
    created_at INTEGER NOT NULL,
    doomed INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX filesystems_name ON filesystems (org_id, name) WHERE NOT doomed;
CREATE INDEX filesystems_doomed ON filesystems (id) WHERE doomed;

-- Where a VM has which of them. `state`: attaching, mounted or failed, and then why.
CREATE TABLE mounts (
    id TEXT PRIMARY KEY,
    vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    filesystem_id TEXT NOT NULL REFERENCES filesystems (id),
    path TEXT NOT NULL,
    read_only INTEGER NOT NULL,
    state TEXT NOT NULL,
    detail TEXT,
    created_at INTEGER NOT NULL,
    UNIQUE (vm_id, filesystem_id),
    UNIQUE (vm_id, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX mounts_filesystem ON mounts (filesystem_id);
CREATE INDEX mounts_attaching ON mounts (vm_id) WHERE state = 'attaching';

-- Directories of volumes that no row knows, say of a database that was put back: since when they have been seen.
CREATE TABLE lost_volumes (id TEXT PRIMARY KEY, seen_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
