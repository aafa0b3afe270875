"""What users import. `_async/` is the source and tools/unasync.py makes `_sync/` from it; the rest does no I/O."""
