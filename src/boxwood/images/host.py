"""The host golden: an image made of the machine that Boxwood runs on, once for each state of its packages.

`ensure` answers at once where the golden of today's packages is there; else it starts
`python -I -m boxwood.images.host`, which makes it, so that a server's threads are neither forked nor starved. Two at
once make one: the second waits, shows the first one's progress and takes its result.

With `share_client_config` it is another golden: of the same host, with its client settings (clientconfig.py). They are
gathered here, from this process's environment; the one that makes the golden gets what is left of them and no more.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from boxwood.images import clientconfig
from boxwood.images.clientconfig import ClientConfig
from boxwood.images.farm import Progress
from boxwood.images.making import make
from boxwood.images.shelf import ImageError, Shelf, default_directory, usable

VERSION = 2  # of what `making` makes: another number and every golden is made anew
_STATE = "host.progress"
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")  # what the interpreter may need; all else is nothing to the maker
_PACKAGES = (
    "var/lib/dpkg/status",
    "var/lib/dpkg/statoverride",
    "var/lib/rpm/rpmdb.sqlite",
    "var/lib/rpm/Packages",
    "usr/lib/sysimage/rpm/rpmdb.sqlite",
    "lib/apk/db/installed",
    "usr/lib/os-release",
    "etc/os-release",
)
_TIMES = ("var/lib/pacman/local", "etc/ssl/certs", "etc/ssl/certs/ca-certificates.crt", "etc/ld.so.cache",
          "etc/alternatives", "usr/bin", "usr/lib")  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostImage:
    """`bytes`: the sizes of all files, of which `copied` are not shared with the host. `seconds`: the making took."""

    layer_id: str
    fingerprint: str
    inodes: int
    bytes: int
    copied: int
    seconds: float
    notes: tuple[str, ...] = ()


def fingerprint(host: Path = Path("/"), shared: ClientConfig | None = None) -> str:
    """What the golden depends on: packages, certificates, the loader's cache, what is shared of the client settings,
    Boxwood's own version of the making."""
    digest = hashlib.sha256(f"{VERSION} {host} {sys.version_info[:2]}".encode())
    for name in _PACKAGES:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(host / name, "rb") as f:
            digest.update(f"\n{name} ".encode() + hashlib.file_digest(f, "sha256").digest())
    for name in _TIMES:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            digest.update(f"\n{name} {os.stat(host / name).st_mtime_ns}".encode())
    if shared is not None:
        digest.update(f"\nclient settings {shared.digest()}".encode())
    return digest.hexdigest()


def find(images_dir: Path, host: Path = Path("/"), *, share_client_config: bool = False) -> HostImage | None:
    """The golden of the host as it is, if it has been made. Milliseconds."""
    return _find(images_dir, host, _gather(host, share_client_config))


def ensure(
    images_dir: Path | None = None,
    progress: Progress | None = None,
    host: Path = Path("/"),
    *,
    share_client_config: bool = False,
) -> HostImage:
    """The golden of this host, made now if it is not there (about 10 s). Blocks; `progress(phase, done, total)`.

    With `share_client_config` it holds the host's client settings; its notes tell what was left out of them.

    :raises ImageError: it could not be made; nothing of it is left.
    """
    images_dir = default_directory() if images_dir is None else images_dir
    with usable(images_dir):
        shared = _gather(host, share_client_config)
        found = _find(images_dir, host, shared)
    if found is not None:
        return found
    command = [sys.executable, "-I", "-X", "utf8", "-m", "boxwood.images.host"]
    command += ["--images", str(images_dir), "--host", str(host), *(["--shared"] if shared is not None else [])]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    with tempfile.TemporaryFile("w+") as told:  # and no pipe, which one who writes could wait at
        told.write("" if shared is None else shared.to_json())
        told.seek(0)
        child = subprocess.Popen(command, stdin=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    with child:
        try:
            return _noted(_listen(child, progress), shared)
        finally:
            child.kill()


def _gather(host: Path, share_client_config: bool) -> ClientConfig | None:
    return clientconfig.gather(host, os.environ) if share_client_config else None


def _find(images_dir: Path, host: Path, shared: ClientConfig | None) -> HostImage | None:
    entry = Shelf(images_dir).find("host", fingerprint(host, shared))
    return None if entry is None else _noted(_image(entry), shared)


def _noted(image: HostImage, shared: ClientConfig | None) -> HostImage:
    """With what is not shared today: that may have changed since the image was made, without a change of what is."""
    return image if shared is None else replace(image, notes=(*image.notes, *shared.notes))


def _listen(child: subprocess.Popen[bytes], progress: Progress | None) -> HostImage:
    assert child.stdout is not None and child.stderr is not None
    for line in child.stdout:
        said = json.loads(line)
        if "image" in said:
            return _image(said["image"])
        if "error" in said:
            raise ImageError("; ".join([said["error"], *child.stderr.read().decode(errors="replace").splitlines()]))
        if progress is not None:
            progress(said["phase"], said["done"], said["total"])
    text = child.stderr.read().decode(errors="replace").strip()
    raise ImageError(f"the making of the host image ended with status {child.wait()}: {text[-2000:] or 'no message'}")


def _image(entry: dict[str, Any]) -> HostImage:
    return HostImage(**{**entry, "notes": tuple(entry.get("notes", ()))})


def _ensure_here(images_dir: Path, progress: Progress, host: Path, shared: ClientConfig | None) -> HostImage:
    """Like `ensure`, in this process, which must have one thread only."""
    shelf = Shelf(images_dir)
    with shelf.locked("host.lock", wait=False) as ours:
        if ours:
            return _found_or_made(shelf, progress, host, shared)
    with _waiting(shelf, progress), shelf.locked("host.lock"):
        pass
    with shelf.locked("host.lock"):  # taken anew, with no thread of ours left: making forks
        return _found_or_made(shelf, progress, host, shared)


def _found_or_made(shelf: Shelf, progress: Progress, host: Path, shared: ClientConfig | None) -> HostImage:
    mark = fingerprint(host, shared)
    if (entry := shelf.find("host", mark)) is not None:
        return _image(entry)
    state = shelf.directory / _STATE

    def told(phase: str, done: int, total: int) -> None:
        draft = state.with_suffix(".new")
        draft.write_text(json.dumps([phase, done, total]))
        draft.rename(state)
        progress(phase, done, total)

    part = shelf.begin()
    try:
        started = time.monotonic()
        made = make(host, part.upper, told, shared)
        part.finish()
    except BaseException:
        part.discard()
        raise
    finally:
        state.unlink(missing_ok=True)
    tally = made.tally
    seconds = round(time.monotonic() - started, 2)
    image = HostImage(part.layer_id, mark, tally.inodes, tally.bytes, tally.copied, seconds, made.notes)
    shelf.record("host", mark, asdict(image))
    return image


@contextlib.contextmanager
def _waiting(shelf: Shelf, progress: Progress) -> Iterator[None]:
    """Show the progress of whoever makes the image, until the body is done."""
    done = threading.Event()

    def show() -> None:
        shown = None
        while not done.wait(0.1):  # there is no event for another process's progress
            with contextlib.suppress(FileNotFoundError):
                text = (shelf.directory / _STATE).read_text()
                if text != shown:
                    progress(*json.loads(shown := text))

    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m boxwood.images.host", description="Make the image of this host.")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--host", type=Path, default=Path("/"))
    parser.add_argument(
        "--shared", action="store_true", help="client settings come in by stdin, as `ensure` gathers them"
    )
    options = parser.parse_args()
    os.umask(0o022)

    def say(what: dict[str, Any]) -> None:
        os.write(1, json.dumps(what).encode() + b"\n")  # a reader that has gone away ends us

    def tell(phase: str, done: int, total: int) -> None:
        say({"phase": phase, "done": done, "total": total})

    try:
        shared = ClientConfig.from_json(sys.stdin.read()) if options.shared else None
        image = _ensure_here(options.images or default_directory(), tell, options.host, shared)
    except (OSError, ImageError) as error:
        say({"error": f"the image of this host could not be made: {error}"})
        return 1
    say({"image": asdict(image)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
