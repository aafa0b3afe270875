"""PID 1 of a box: starts processes, keeps shells, moves bytes, reaps."""
