"""What project quotas must do, checked where there are some: run as a script in the machine of guest.py.

Each check is a function of quotachecks/; `CHECKS` has them by name, for the tests outside. Each line of the script's
output is JSON: `{"check": name, "failed": text}`, empty if it went through. Boxes are played by processes that have the root, the
user namespace and the credentials of one, made by the engine's own code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import traceback
from pathlib import Path

from quotachecks import limits, pool
from quotachecks.ground import CHECKS, DATA, DISKS, KINDS, PLAIN, SECONDS, Disk, say

MADE = (limits, pool)  # to import them makes the checks known


def too_long(*_: object) -> None:
    raise TimeoutError(f"it takes longer than {SECONDS} s")


def main() -> None:
    os.umask(0o077)
    subprocess.run(["mkfs.xfs", "-q", KINDS["xfs"]], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota", KINDS["ext4"]], check=True)
    subprocess.run(["mkfs.ext4", "-q", PLAIN], check=True)
    Path("/plain").mkdir()
    subprocess.run(["mount", PLAIN, "/plain"], check=True)
    DATA.mkdir(mode=0o700)
    signal.signal(signal.SIGALRM, too_long)
    for kind, device in KINDS.items():
        place = Path("/quotas", kind)
        place.mkdir(parents=True)
        subprocess.run(["mount", "-o", "prjquota", device, place], check=True)
        DISKS[kind] = Disk(kind, place)
    for name, function in CHECKS.items():
        signal.alarm(SECONDS)
        try:
            function()
            say({"check": name, "failed": ""})
        except BaseException:
            say({"check": name, "failed": traceback.format_exc()})
    signal.alarm(0)


if __name__ == "__main__":
    main()
