"""The awaitable SDK, and the source from which tools/unasync.py makes the blocking one in ../_sync."""
