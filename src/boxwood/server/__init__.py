"""The REST API: HTTP over the core, nothing more. `python -m boxwood.server` serves it."""
