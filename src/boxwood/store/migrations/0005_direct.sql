-- A run's command is a program and its arguments, quoted for a shell, but started without one (core/argv.py); and whether
-- that could not be started.
ALTER TABLE runs ADD COLUMN direct INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN not_started INTEGER NOT NULL DEFAULT 0;

-- Nothing but /tmp can be written in its boxes, which is gone with each.
ALTER TABLE vms ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0;

-- Cores are not always whole.
ALTER TABLE vms ADD COLUMN cores REAL;
UPDATE vms SET cores = vcpu;
ALTER TABLE vms DROP COLUMN vcpu;
ALTER TABLE vms RENAME COLUMN cores TO vcpu;
