-- A session is a shell, or a Python context: an interpreter.
ALTER TABLE sessions ADD COLUMN kind TEXT NOT NULL DEFAULT 'shell' CHECK (kind IN ('shell', 'python'));

-- What a context has reported of a run, kept as its output is: NULL is in DATA/spool, or nowhere yet. report_bytes is
-- NULL of runs in shells.
ALTER TABLE runs ADD COLUMN reports BLOB;
ALTER TABLE runs ADD COLUMN report_bytes INTEGER;
