-- What a VM may reach, and who may reach it: the rules as JSON, in their canonical form. No row: no rules.
CREATE TABLE policies (
    vm_id TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    rules TEXT NOT NULL
) STRICT, WITHOUT ROWID;
