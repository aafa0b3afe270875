-- When a VM is to be deleted by itself (NULL: never), whether it has been stopped (then nothing boots it), and what whoever
-- made it wants to be told of it again: JSON, {name: text}.
ALTER TABLE vms ADD COLUMN expires_at INTEGER;
ALTER TABLE vms ADD COLUMN stopped INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vms ADD COLUMN labels TEXT;
CREATE INDEX vms_expires ON vms (expires_at) WHERE expires_at IS NOT NULL;

-- As what a run was started, in the words of whoever started it.
ALTER TABLE runs ADD COLUMN tag TEXT;
