-- Bounds of a VM, NULL: what the configuration says. `nofile`: open files of each of its processes.
ALTER TABLE vms ADD COLUMN pids INTEGER;
ALTER TABLE vms ADD COLUMN nofile INTEGER;
-- When it is deleted at the latest, whatever is done on behalf of whose key made it, NULL: any time.
ALTER TABLE vms ADD COLUMN ends_by INTEGER;

-- How long what is made with a key lives, in seconds: unless it is said otherwise, and at most. NULL: for ever.
ALTER TABLE api_keys ADD COLUMN ttl_default REAL;
ALTER TABLE api_keys ADD COLUMN ttl_most REAL;
-- When the key is nobody's any more (NULL: never).
ALTER TABLE api_keys ADD COLUMN expires_at INTEGER;
