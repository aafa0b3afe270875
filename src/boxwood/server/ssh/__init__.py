"""SSH into VMs: a listener of the server's own; there is no sshd in a VM. Needs the extra `boxwood[ssh]` (asyncssh)."""
