"""How programs in a box find names: which server they ask, and what of the C library's modules can work there."""

from __future__ import annotations

import re

NAMESERVER = "169.254.1.1"  # for every box the same: whose network it is, the engine knows. Without one: out of reach
RESOLV = f"nameserver {NAMESERVER}\noptions edns0 timeout:3 attempts:2\n"
NSSWITCH = (
    "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nservices: files\nprotocols: files\n"
)

# All others (systemd, resolve, mymachines, mdns4_minimal, sss, winbind, ldap …) ask a daemon that no box has.
_WITHOUT_DAEMON = {"files", "db", "compat", "altfiles", "extrausers", "usrfiles", "dns"}


def switched(text: str) -> str:
    """A host's nsswitch.conf for a box: hosts come from files and from our server, all else from files."""
    lines = []
    for line in text.splitlines():
        database, colon, modules = line.partition("#")[0].partition(":")
        name = database.strip()
        if not colon or not name:
            lines.append(line)
            continue
        if name == "hosts":
            kept = ["files", "dns"]
        else:  # what is in brackets says how to go on after a module, which files do by themselves
            kept = [word for word in re.sub(r"\[[^\]]*\]", " ", modules).split() if word in _WITHOUT_DAEMON]
        lines.append(f"{name}: {' '.join(kept or ['files'])}")
    if not any(line.startswith("hosts:") for line in lines):
        lines.append("hosts: files dns")
    return "\n".join(lines) + "\n"
