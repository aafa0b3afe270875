-- When the rules of a VM's policy delete it or suspend it next (NULL: never), since when it has run, which some of them
-- count from, and whether it has been suspended and nobody has woken it.
ALTER TABLE vms ADD COLUMN delete_at INTEGER;
ALTER TABLE vms ADD COLUMN suspend_at INTEGER;
ALTER TABLE vms ADD COLUMN running_since INTEGER;
ALTER TABLE vms ADD COLUMN suspended INTEGER NOT NULL DEFAULT 0;
CREATE INDEX vms_delete_at ON vms (delete_at) WHERE delete_at IS NOT NULL;
CREATE INDEX vms_suspend_at ON vms (suspend_at) WHERE suspend_at IS NOT NULL;
