"""Boxwood gives programs computers: fork one in milliseconds, run commands in it, fork it again, throw it away."""
