"""Files of every length and trees of odd names, by releases of arker of all generations: `transfers.py VERSION CASE`."""

import os
import secrets
import sys
import tempfile
import unicodedata
from contextlib import contextmanager
from pathlib import Path

import arker

VERSION = sys.argv[1]
FIRST = VERSION.startswith(("0.1", "0.2"))
CHUNK = 4 << 20
client = arker.Arker(api_key=os.environ["ARKER_API_KEY"])


@contextmanager
def forked():
    if FIRST:
        vm = client.vm("arkuntu").fork(name="t-" + secrets.token_hex(6))
    elif VERSION < "1.1":
        vm = client.fork(source="ubuntu")
    else:
        vm = client.fork(source_vm_name="ubuntu")
    try:
        yield vm
    finally:
        vm.delete()


def write(vm, path, data):
    vm.sync.write_file(path, data) if FIRST else vm.sync(path, data)


def read(vm, path):
    return vm.sync.read_file(path) if FIRST else vm.sync(path)


def text(output):
    return output.decode() if isinstance(output, bytes) else output


def lengths():
    with forked() as vm:
        for size in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1):
            if FIRST and not size:
                continue  # this client refuses to send nothing
            data = secrets.token_bytes(size)
            write(vm, "/home/user/deep/er/file", data)
            assert read(vm, "/home/user/deep/er/file") == data, size
        assert text(vm.run("ls -A /home/user/deep/er; stat -c %a /home/user/deep/er/file").stdout) == "file\n644\n"


def large():
    block = secrets.token_bytes(1 << 20)
    data = block * (99 if FIRST else 100 if os.environ.get("BOXWOOD_TEST_FULL") == "1" else 40)
    with forked() as vm:
        write(vm, "/home/user/large", data)
        assert read(vm, "/home/user/large") == data
        assert text(vm.run("stat -c %s /home/user/large").stdout) == f"{len(data)}\n"


def names():
    with forked() as vm:
        for name in ("a\nb", "n" * 255, "ü", unicodedata.normalize("NFD", "ü"), " ", "-rf", "a b/ü?&#%41", "'\"$(x)"):
            path = f"/home/user/{name}"
            write(vm, path, name.encode())
            assert read(vm, path) == name.encode(), name
        assert text(vm.run("find /home/user -maxdepth 1 -type f -name '?' | wc -l").stdout).strip() in ("2", "3")


def tree():
    """What sync_dir takes along, and what it leaves out; the second time it sends nothing."""
    with forked() as vm, tempfile.TemporaryDirectory() as home:
        root = Path(home, "tree")
        (root / "sub" / "empty").mkdir(parents=True)
        for name, data in (("a", b"1"), ("sub/b\nc", b"2"), ("n" * 255, b"3"), ("ü", b"4"), ("none", b"")):
            (root / name).write_bytes(data)
        (root / "sub/run").write_text("#!/bin/sh\necho ran\n")
        (root / "sub/run").chmod(0o755)
        (root / "big").write_bytes(secrets.token_bytes(CHUNK + 1))
        (root / "link").symlink_to("a")
        os.mkfifo(root / "fifo")
        sent = vm.sync_dir(str(root), "/srv/tree")
        assert (sent.sent, sent.skipped) == (7, 0), sent
        assert vm.run("/srv/tree/sub/run; ls -A /srv/tree | wc -l").stdout == "ran\n6\n"
        assert vm.sync("/srv/tree/sub/b\nc") == b"2" and vm.sync("/srv/tree/none") == b""
        assert vm.sync("/srv/tree/big") == (root / "big").read_bytes()
        (root / "a").write_bytes(b"other")
        again = vm.sync_dir(str(root), "/srv/tree")
        assert (again.sent, again.skipped) == (1, 6), again
        assert vm.sync("/srv/tree/a") == b"other"


def not_there():
    with forked() as vm:
        try:
            read(vm, "/home/user/none")
        except Exception as error:  # of another class in each generation
            assert getattr(error, "code", None) == "not_found", repr(error)
        else:
            raise AssertionError("not refused")


globals()[sys.argv[2]]()
