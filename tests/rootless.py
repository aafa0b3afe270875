"""Life without root, for tests that run as root: an unprivileged user, servers of his, and tests run as him.

His images are kept between sessions (they are copies, some gigabytes: no hard link to what belongs to root is made
without root), below a directory of his own; those of packages that the host has no more are removed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import servers
from boxwood.images import host

UID = 61234
KEPT = Path("/var/cache/boxwood-rootless-tests")
IMAGES = KEPT / "images"
ENVIRONMENT = "BOXWOOD_TEST_ROOTLESS"  # set: tests that make boxes run, whoever runs them
REPOSITORY = Path(__file__).parent.parent
IMAGE_SECONDS = 600.0
OLD_SECONDS = 6 * 3600.0


@contextmanager
def home() -> Iterator[Path]:
    """A directory of the user's, which he can reach: pytest's own are root's."""
    made = Path(tempfile.mkdtemp(prefix="boxwood-rootless-"))
    os.chown(made, UID, UID)
    try:
        yield made
    finally:
        shutil.rmtree(made)


def environment(home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "HOME": str(home), "TMPDIR": str(home), "BOXWOOD_IMAGES": str(IMAGES)}


def popen(command: list[str], home: Path, **more: Any) -> subprocess.Popen[bytes]:
    environ = {**environment(home), **more.pop("env", {})}
    return subprocess.Popen(command, user=UID, group=UID, extra_groups=[], env=environ, cwd=REPOSITORY, **more)


# What no test runs in his boxes, of what hosts may have: to copy it would take longer than all that these tests do.
LARGE = ("usr/lib/google-cloud-sdk", "usr/lib/jvm", "usr/lib/llvm-*", "usr/lib/postgresql", "usr/libexec/valgrind")
_HIDDEN = """
n=$1; shift
while [ "$n" -gt 0 ]; do mount -t tmpfs -o mode=755 hidden "$1"; shift; n=$((n-1)); done
exec setpriv --reuid "$1" --regid "$1" --clear-groups "${@:2}"
"""


def make_images() -> None:
    """The host golden, made by the user, of a host without what is `LARGE`. A minute, where it is not there yet."""
    KEPT.mkdir(mode=0o700, exist_ok=True)
    os.chown(KEPT, UID, UID)
    _remove_old()
    with home() as place:
        command = [sys.executable, "-I", "-X", "utf8", "-m", "boxwood.images.host", "--images", str(IMAGES)]
        large = [str(found) for name in LARGE for found in Path("/").glob(name) if not found.is_symlink()]
        hidden = ["unshare", "-m", "bash", "-ec", _HIDDEN, "bash", str(len(large)), *large, str(UID), *command]
        made = subprocess.Popen(
            hidden, env=environment(place), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = made.communicate(timeout=IMAGE_SECONDS)
        assert made.returncode == 0, (out + err)[-2000:]


FIRST_SUBORDINATE = 7_000_000
_PRIVATE_ETC = """
mount -t overlay etc -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" /etc
shift
exec setpriv --reuid "$1" --regid "$1" --clear-groups "${@:2}"
"""


def with_subordinate_ids(place: Path) -> Callable[[list[str]], list[str]]:
    """Commands run as the user, who has a name and subordinate ids, in a mount namespace with an /etc that says so."""
    upper = place / "upper"
    for made in (upper, place / "work"):
        made.mkdir(parents=True)
        made.chmod(0o755)
    place.chmod(0o755)
    entry = f"boxwood-tests:{FIRST_SUBORDINATE}:65536\n"
    for name in ("subuid", "subgid"):
        (upper / name).write_text(entry)
    user = f"boxwood-tests:x:{UID}:{UID}::/:/bin/sh\n"
    (upper / "passwd").write_text(Path("/etc/passwd").read_text() + user)
    return lambda command: ["unshare", "-m", "bash", "-ec", _PRIVATE_ETC, "bash", str(place), str(UID), *command]


_PRIVATE_DEV = """
mount -t tmpfs tun "$1"
mknod "$1/tun" c 10 200
chmod 666 "$1/tun"
mount --bind "$1/tun" /dev/net/tun
umount -l "$1"
shift
exec setpriv --reuid "$1" --regid "$1" --clear-groups "${@:2}"
"""


def with_tun(place: Path) -> Callable[[list[str]], list[str]]:
    """Commands run as the user, who may open /dev/net/tun, as most distributions have it. `place`: an empty directory."""
    place.mkdir()
    return lambda command: ["unshare", "-m", "bash", "-ec", _PRIVATE_DEV, "bash", str(place), str(UID), *command]


def _remove_old() -> None:
    """Images of packages that the host has no more, and what was imported. Another session may be at work with those
    that are younger."""
    try:
        kept = json.loads((IMAGES / "index.json").read_text())["host"][host.fingerprint()]["layer_id"]
    except (OSError, KeyError, ValueError):
        kept = ""
    before = time.time() - OLD_SECONDS
    for layer in IMAGES.glob("*/upper"):
        if layer.parent.name != kept and layer.parent.stat().st_mtime < before:
            shutil.rmtree(layer.parent)


class RootlessServer(servers.Server):
    """Of the user's. `within`: what a command is put behind, such as a mount namespace with other files."""

    def __init__(
        self,
        home: Path,
        *,
        name: str = "data",
        within: Callable[[list[str]], list[str]] | None = None,
        **settings: object,
    ) -> None:
        super().__init__(home / name, **settings)
        self._home = home
        self.within = within

    def _make_directory(self) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)
        os.chown(self.data, UID, UID)

    def _spawn(self, argv: list[str], given: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "boxwood.server", *argv]
        more: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
        settings = {name: value for name, value in given.items() if name.startswith("BOXWOOD_")}
        environ = {**settings, "BOXWOOD_IMAGES": str(IMAGES)}
        if self.within is None:
            return popen(command, self._home, env=environ, **more)
        whole = {**environment(self._home), **environ}
        return subprocess.Popen(self.within(command), env=whole, cwd=REPOSITORY, **more)
