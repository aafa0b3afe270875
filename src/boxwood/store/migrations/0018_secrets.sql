-- Values that rules name as ${secret:NAME}, encrypted with a key that is not in here. `vm_id` NULL: for all VMs of the
-- organisation that have none of their own of this name.
CREATE TABLE secrets (
    org_id TEXT NOT NULL REFERENCES orgs (id),
    vm_id TEXT REFERENCES vms (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX secrets_name ON secrets (coalesce(vm_id, org_id), name);
CREATE INDEX secrets_vm ON secrets (vm_id) WHERE vm_id IS NOT NULL;
