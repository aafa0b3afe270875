"""The awaitable client, and the source from which tools/unasync.py makes the blocking one in ../_sync."""
