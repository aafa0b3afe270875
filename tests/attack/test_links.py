"""A symbolic link planted in a VM never makes the server read or write outside it: attacks.md, items 17 to 19 and 21."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from amounts import amount
from boxfixtures import Result, Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import GuestError, RunSpec

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host, with a secret, that every link below points at."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "secret").write_text("of the host")
    return directory


def targets(outside: Path) -> list[str]:
    """Ways to say "the host's file" that a naive server would follow."""
    return [
        f"{outside}/secret",
        f"/proc/self/root{outside}/secret",
        f"/proc/1/root{outside}/secret",
        f"/proc/{os.getpid()}/root{outside}/secret",
        "../" * 40 + f"{str(outside).lstrip('/')}/secret",
        f"/proc/self/fd/3/../../../../../..{outside}/secret",
        f"/proc/1/cwd{outside}/secret",
    ]


async def test_a_link_is_followed_inside_the_vm_only(runner: Runner, outside: Path) -> None:
    for number, target in enumerate(targets(outside)):
        await runner.run(f"ln -s '{target}' /tmp/link{number}; ln -s '{os.path.dirname(target)}' /tmp/dir{number}")
        for path in (
            f"/tmp/link{number}",
            f"/tmp/dir{number}/secret",
            target if target.startswith("/") else f"/{target}",
        ):
            with pytest.raises(GuestError):
                os.close((await runner.box.read_file(path)).fd)
            with contextlib.suppress(GuestError):  # where it can be written it is in the VM
                await runner.box.write_file(path, b"overwritten")
            await runner.run(f"rm -rf {outside}")
    assert (outside / "secret").read_text() == "of the host" and os.listdir(outside) == ["secret"]


async def test_absolute_links_mean_the_vms_own_files(runner: Runner) -> None:
    await runner.run("echo of the vm > /etc/shadow; ln -sf /etc/shadow /tmp/shadow")
    opened = await runner.box.read_file("/tmp/shadow")
    try:
        assert os.pread(opened.fd, 100, 0) == b"of the vm\n"
    finally:
        os.close(opened.fd)


async def test_manifests_do_not_follow_links(runner: Runner, outside: Path) -> None:
    await runner.run(
        f"mkdir /w; ln -s {outside} /w/out; ln -s / /w/root; ln -s /proc /w/proc; echo x > /w/own; mkfifo /w/pipe"
    )
    assert [entry.path for entry in (await runner.box.manifest("/w")).entries] == ["own"]


FLIP = """
import os, sys
os.makedirs('/w/real', exist_ok=True)
open('/w/real/secret', 'w').write('of the vm')
print('flipping', flush=True)
while True:
    for target in (sys.argv[1], 'real', '/proc/self', '/dev/shm'):
        os.symlink(target, '/w/new')
        os.rename('/w/new', '/w/flip')
    os.unlink('/w/flip'); os.mkdir('/w/flip'); os.rmdir('/w/flip')
"""


async def test_links_that_change_while_they_are_looked_at(runner: Runner, outside: Path, data: Path) -> None:
    """Items 18: a process swaps a directory for links as fast as it can while files are read, written, listed, copied."""
    await runner.box.write_file("/tmp/flip.py", FLIP.encode())
    flipping = Result()
    run_id = new_id()
    spec = RunSpec(run_id, runner.session, f"python3 /tmp/flip.py {outside}".encode())
    await runner.box.start_run(spec, flipping)
    async with asyncio.timeout(30):
        while b"flipping" not in flipping.out:
            await asyncio.sleep(0.01)
    for _ in range(amount(40, 150)):
        with contextlib.suppress(GuestError):
            opened = await runner.box.read_file("/w/flip/secret")
            with open(opened.fd, "rb") as f:
                assert f.read() in (b"of the vm", b"overwritten")
        with contextlib.suppress(GuestError):
            await runner.box.write_file("/w/flip/secret", b"overwritten")
        with contextlib.suppress(GuestError):
            for entry in (await runner.box.manifest("/w/flip")).entries:
                assert entry.path.startswith((".boxwood", "secret"))
    copy = new_id()
    await runner.engine.copy_top(runner.box, runner.stack.top, copy)
    await runner.box.kill_run(run_id)
    await flipping.wait(runner.box)
    assert (outside / "secret").read_text() == "of the host" and os.listdir(outside) == ["secret"]
    for root, _, names in os.walk(data / "layers" / copy):
        for name in names:
            path = Path(root, name)
            assert path.is_symlink() or not path.is_file() or b"of the host" not in path.read_bytes()


async def test_a_setuid_file_is_no_gift_to_the_host(runner: Runner, data: Path) -> None:
    """Item 21: what lies on the host's disk with a setuid bit is out of everybody's reach."""
    await runner.run("cp /bin/sh /srv/sh; chmod 4755 /srv/sh")
    reached = os.stat(data)
    assert reached.st_mode & 0o077 == 0 and reached.st_uid == 0


async def test_what_is_uploaded_runs_as_nobody_else(runner: Runner) -> None:
    """Item 21: a file that is written over the API is never setuid or setgid, also in place of one that was."""
    await runner.run("cp /usr/bin/id /root/id; chmod 6755 /root/id")
    assert (await runner.run("stat -c %a /root/id")).text == "6755\n", "the probe"
    await runner.box.write_file("/root/id", b"another")
    await runner.box.write_file("/root/new", b"new", 0o6711)
    assert (await runner.run("stat -c %a /root/id /root/new")).text == "755\n711\n"
