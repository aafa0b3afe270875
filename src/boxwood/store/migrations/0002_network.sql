-- What a VM has of the network: 'internet', 'none', or NULL: what the configuration says.
ALTER TABLE vms ADD COLUMN network TEXT CHECK (network IN ('internet', 'none'));

-- What VMs have moved over the network, all their boxes together that have ended.
CREATE TABLE usage (
    vm_id TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    sent INTEGER NOT NULL,              -- bytes
    received INTEGER NOT NULL,
    connections INTEGER NOT NULL,
    denied INTEGER NOT NULL,
    denials TEXT NOT NULL               -- JSON: [{at, protocol, address, port, name, reason}, …], the latest, oldest first
) STRICT;
