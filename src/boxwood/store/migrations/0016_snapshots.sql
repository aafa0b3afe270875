-- States of VMs that are kept under a name. Each is a VM of its own, hidden and immutable, with the sessions that there
-- were; `vm_id`: whose state it is (when that VM is gone it is to go as well).
CREATE TABLE snapshots (
    id TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    vm_id TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (vm_id, name)
) STRICT;

-- Layers that somebody reads outside of a box, as long as that takes. None outlives the server.
CREATE TABLE pins (
    id TEXT PRIMARY KEY,
    layer_id TEXT NOT NULL REFERENCES layers (id)
) STRICT;
CREATE INDEX pins_layer ON pins (layer_id);

-- Of what a VM was forked, and the layer that shows what both had then; it may be gone, once the VM stands on it no more.
ALTER TABLE vms ADD COLUMN parent_id TEXT;
ALTER TABLE vms ADD COLUMN fork_base TEXT;
CREATE INDEX vms_fork_base ON vms (fork_base) WHERE fork_base IS NOT NULL;
