-- Layers that the live box of a VM stands on though the VM does not any more: others have taken their places beneath it.
CREATE TABLE held (
    vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    layer_id TEXT NOT NULL REFERENCES layers (id),
    PRIMARY KEY (vm_id, layer_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX held_layer ON held (layer_id);
