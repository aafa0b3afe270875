-- What the VM has acknowledged survives a loss of power, and its background runs are begun again.
ALTER TABLE vms ADD COLUMN durable INTEGER NOT NULL DEFAULT 0;
CREATE INDEX vms_durable ON vms (id) WHERE durable;

-- Of runs of such VMs: somebody was told of it before it had ended; and how often it was begun again after its host had
-- stopped.
ALTER TABLE runs ADD COLUMN background INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN retries INTEGER NOT NULL DEFAULT 0;
