-- What organisations have asked for: runs, forks and syncs. It outlives the VMs that it tells of.
CREATE TABLE activity (
    id INTEGER PRIMARY KEY,
    org_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    at INTEGER NOT NULL,                -- when it was asked for
    request_id TEXT NOT NULL,
    endpoint TEXT NOT NULL CHECK (endpoint IN ('run', 'fork', 'sync')),
    kind TEXT NOT NULL,                 -- of a run: shell or program, else empty
    method TEXT NOT NULL,
    status INTEGER NOT NULL,            -- of the HTTP answer
    total_us INTEGER NOT NULL,          -- until that had been sent
    queue_us INTEGER NOT NULL,          -- until the run began
    vm_id TEXT NOT NULL,                -- empty where there is none, as of those below
    run_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    source_vm_id TEXT NOT NULL,
    path TEXT NOT NULL,                 -- of a file in the VM
    command TEXT NOT NULL,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    state TEXT,                         -- of the run, when the answer was sent
    exit_code INTEGER,
    duration_us INTEGER
) STRICT;
CREATE INDEX activity_org ON activity (org_id, at);
CREATE INDEX activity_age ON activity (at);
