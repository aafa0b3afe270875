-- What a sealed layer takes of the disk; NULL: nobody has asked yet.
ALTER TABLE layers ADD COLUMN bytes INTEGER;
