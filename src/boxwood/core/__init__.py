"""The domain: VMs, runs, sessions, files, goldens, keys. No HTTP, no system calls."""
