-- How many bytes the bodies of records have, for a bound on all of an organisation's, without reading them.
ALTER TABLE records ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
UPDATE records SET size = length(CAST(body AS BLOB));
CREATE INDEX records_size ON records (org_id, size);
