"""What the server keeps of root's power: the right to files, and to hand the rest on to what it starts.

Nothing that it does itself mounts, enters a namespace, traces, changes ids or sets up a network: that is done by the
zygote, the doctor and the makers of images, which are programs of their own. What none of these ever needs is taken
from all of them, for good.

It is no wall around somebody who runs code in the server: he is still uid 0, and could start a program that has what
is permitted. docs/decisions.md says why it is so.
"""

from __future__ import annotations

import os

from boxwood.engine import kernel as k

# Neither boxes nor what makes them needs these: modules, raw devices, the clock, the console, the kernel's log, …
NEVER = k.capability_mask(
    "sys_module", "sys_rawio", "sys_boot", "sys_time", "sys_tty_config", "syslog", "sys_pacct", "mac_admin",
    "mac_override", "wake_alarm", "block_suspend", "audit_control", "audit_read", "lease", "linux_immutable",
    "ipc_lock", "ipc_owner", "net_broadcast", "bpf", "perfmon", "checkpoint_restore",
)  # fmt: skip
# Files of the data directory and of images, whoever owns them; a port below 1024; signals to the zygote.
ALWAYS = k.capability_mask("chown", "dac_override", "dac_read_search", "fowner", "kill", "net_bind_service")


def drop() -> None:
    """Let go of what the server does not need; before it has a second thread, for capabilities are each thread's own.
    Without root there is nothing to let go of. OSError."""
    if os.geteuid() or not k.supported():
        return
    permitted, last = k.capabilities(), k.last_capability()
    if permitted & k.capability_mask("setpcap"):
        k.limit_bounding_set(~NEVER, last)
    k.no_new_privileges()
    k.set_capabilities(permitted & ALWAYS, permitted & ~NEVER)
    k.set_dumpable(0)
