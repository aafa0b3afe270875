-- The public keys that may log in to a VM over SSH: JSON, an object of them by their ids; NULL: none.
ALTER TABLE vms ADD COLUMN ssh_keys TEXT;
