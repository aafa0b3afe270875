"""File work in a real box: status, directories, names, modes, lists, patterns, text, archives."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import AsyncIterator

import pytest

from amounts import amount
from boxfixtures import Runner
from boxwood.engine.api import GuestError
from boxwood.engine.fileapi import BoxFiles, FileEntry, TextQuery

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]

DEEP = amount(1500, 3000)  # directories in each other, with room for few of their paths in one
MANY = amount(1700, 2500)  # of the largest entries: more than an answer holds
ODD = [b"new\nline", b"\xff\xfe raw", "ü".encode(), b"x" * 255, b" ", b"-rf", b"a\\b", b"*", b"..."]


@pytest.fixture
async def files(runner: Runner) -> BoxFiles:
    return runner.box.files


async def refused(awaitable: object) -> int:
    with pytest.raises(GuestError) as error:
        await awaitable  # type: ignore[misc]
    return error.value.errno


def names(entries: tuple[FileEntry, ...]) -> list[bytes]:
    return [entry.path for entry in entries]


async def all_of(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def test_status(runner: Runner, files: BoxFiles) -> None:
    await runner.run(
        "mkdir -p /w/d; printf hello > /w/f; chmod 640 /w/f; chown user:user /w/f; ln -s f /w/l; touch -d @7.25 /w/f; ln /w/f /w/g; mkfifo /w/p"
    )
    found = await files.stat(b"/w/f", follow=False)
    assert (found.kind, found.size, found.mode, found.uid, found.links) == ("file", 5, 0o640, 1000, 2)
    assert found.modified == 7_250_000_000
    link = await files.stat(b"/w/l", follow=False)
    assert (link.kind, link.target) == ("symlink", b"f")
    assert (await files.stat(b"/w/l", follow=True)).size == 5
    assert (await files.stat(b"/w/d/", follow=False)).kind == (await files.stat(b"/", follow=False)).kind == "directory"
    assert (await files.stat(b"/w/p", follow=True)).kind == "fifo"
    assert (await files.stat(b"/w/d/../f", follow=False)).size == 5
    assert await refused(files.stat(b"/w/none", follow=False)) == errno.ENOENT
    assert await refused(files.stat(b"/w/f/x", follow=False)) == errno.ENOTDIR
    await runner.run("ln -s loop /w/loop; ln -s /proc/version /w/v; ln -s nowhere /w/dangling")
    assert await refused(files.stat(b"/w/loop", follow=True)) == errno.ELOOP
    assert await refused(files.stat(b"/w/v", follow=True)) == errno.EACCES
    assert await refused(files.stat(b"/w/dangling", follow=True)) == errno.ENOENT


async def test_what_is_not_on_the_disk_is_refused(runner: Runner, files: BoxFiles) -> None:
    await runner.run("mkdir /dev/shm/x /run/x")
    places = [b"/dev", b"/dev/shm", b"/dev/shm/x", b"/run", b"/proc", b"/proc/self/fd", b"/proc/1/root/dev", b"/sys"]
    for path in places:
        said = [
            await refused(files.stat(path, follow=False)),
            await refused(files.list(path, after=b"", limit=10)),
            await refused(files.chmod(path, 0o755)),
            await refused(files.glob(path, "*", limit=1, seconds=5)),
            await refused(files.search(path, TextQuery("x"), limit=1, seconds=5)),
            await refused(files.pack(path)),
            await refused(files.watch(path, recursive=True, most=10)),
            await refused(files.remove(path, recursive=True)),
            await refused(files.remove(path, recursive=False)),
            await refused(files.move(path, b"/w", replace=False)),
            await refused(files.mkdir(path + b"/new", parents=True, mode=None)),
            await refused(files.mkdir(path + b"/new", parents=False, mode=None)),
        ]
        assert set(said) == {errno.EACCES}, path
        unpacking = await files.unpack(path, owners=False)
        assert await refused(unpacking.finish()) == errno.EACCES, path
        unpacking.close()


async def test_directories_are_made(runner: Runner, files: BoxFiles) -> None:
    assert await files.mkdir(b"/w/a/b", parents=True, mode=0o700)
    assert not await files.mkdir(b"/w/a/b/", parents=True, mode=0o755)
    assert await files.mkdir(b"/w/c", parents=False, mode=None)
    await runner.run("ln -s a /w/to-a; touch /w/f")
    assert await files.mkdir(b"/w/to-a/x/../y", parents=True, mode=None)
    text = (await runner.run("stat -c '%a %n' /w /w/a /w/a/b /w/c /w/a/x /w/a/y")).text
    assert text == "755 /w\n755 /w/a\n700 /w/a/b\n755 /w/c\n755 /w/a/x\n755 /w/a/y\n"
    assert await refused(files.mkdir(b"/w/c", parents=False, mode=None)) == errno.EEXIST
    assert await refused(files.mkdir(b"/w/none/x", parents=False, mode=None)) == errno.ENOENT
    assert await refused(files.mkdir(b"/w/f", parents=True, mode=None)) == errno.ENOTDIR
    assert await refused(files.mkdir(b"/w/f/x", parents=True, mode=None)) == errno.ENOTDIR
    assert await refused(files.mkdir(b"/", parents=False, mode=None)) == errno.EBUSY
    assert await refused(files.mkdir(b"/" + b"x" * 300, parents=False, mode=None)) == errno.ENAMETOOLONG


async def test_modes_are_changed(runner: Runner, files: BoxFiles) -> None:
    await runner.run("mkdir /w; touch /w/f; ln -s f /w/l; mkfifo /w/p")
    await files.chmod(b"/w/l", 0o4711)
    await files.chmod(b"/w/p", 0o600)
    assert (await runner.run("stat -c '%a' /w/f /w/p")).text == "4711\n600\n"
    assert await refused(files.chmod(b"/w/none", 0o600)) == errno.ENOENT


async def test_names_are_changed(runner: Runner, files: BoxFiles) -> None:
    await runner.run("mkdir -p /w/d; echo 1 > /w/a; echo 2 > /w/b; ln -s a /w/l")
    await files.move(b"/w/a", b"/w/d/a", replace=False)
    assert await refused(files.move(b"/w/b", b"/w/d/a", replace=False)) == errno.EEXIST
    await files.move(b"/w/b", b"/w/d/a", replace=True)
    await files.move(b"/w/l", b"/w/m", replace=False)
    assert (await runner.run("cat /w/d/a; readlink /w/m; ls /w")).text == "2\na\nd\nm\n"
    assert await refused(files.move(b"/w/none", b"/w/x", replace=False)) == errno.ENOENT
    assert await refused(files.move(b"/w/d", b"/w/d/x", replace=False)) == errno.EINVAL
    assert await refused(files.move(b"/", b"/w/x", replace=False)) == errno.EBUSY


async def test_a_directory_of_a_lower_layer_is_moved(runner: Runner, files: BoxFiles) -> None:
    """Which the kernel refuses to do: the probe says so."""
    await runner.run("echo own > /usr/share/perl5/own")
    probe = "import os\ntry: os.rename('/usr/share/perl5', '/usr/share/other')\nexcept OSError as e: print(e.errno)"
    assert (await runner.run(f'python3 -c "{probe}"')).text == f"{errno.EXDEV}\n"
    before = (await runner.run("cd /usr/share/perl5 && find . -printf '%p %y %s %m %U %l\\n' | sort | md5sum")).text
    assert await refused(files.move(b"/usr/share/perl5", b"/usr/share/perl5/x", replace=False)) == errno.EINVAL
    assert await refused(files.move(b"/usr/share/perl5", b"/usr/lib", replace=False)) == errno.EEXIST
    await files.move(b"/usr/share/perl5", b"/srv/perl", replace=False)
    after = (
        await runner.run(
            "cd /srv/perl && find . -printf '%p %y %s %m %U %l\\n' | sort | md5sum; ls -d /usr/share/perl5"
        )
    ).text
    assert after == before


async def test_names_are_removed(runner: Runner, files: BoxFiles) -> None:
    await runner.run(
        "mkdir -p /w/d/e; touch /w/f /w/d/e/g; ln -s /etc /w/l; mkdir /w/empty; echo keep > /keep; ln -s /keep /w/d/out"
    )
    assert await files.remove(b"/w/f", recursive=False) == 1
    assert await files.remove(b"/w/empty", recursive=False) == 1
    assert await files.remove(b"/w/l", recursive=True) == 1
    assert await refused(files.remove(b"/w/d", recursive=False)) == errno.ENOTEMPTY
    assert await files.remove(b"/w/d", recursive=True) == 4
    assert (await runner.run("ls -A /w; cat /keep; test -d /etc && echo etc")).text == "keep\netc\n"
    assert await refused(files.remove(b"/w/none", recursive=True)) == errno.ENOENT
    assert await refused(files.remove(b"/", recursive=True)) == errno.EBUSY
    assert await refused(files.remove(b"/w/.", recursive=True)) == errno.EBUSY


async def test_trees_of_any_depth(runner: Runner, files: BoxFiles) -> None:
    """Deeper than descriptors and paths go: what cannot be asked for is left out, but deleted."""
    make = f"import os\nos.mkdir('/w'); os.chdir('/w')\nfor _ in range({DEEP}): os.mkdir('dd'); os.chdir('dd')\nopen('end','w')"
    await runner.run(f'python3 -c "{make}"')
    found = await files.glob(b"/w", "**", limit=10_000, seconds=60)
    assert len(found.entries) == (4095 - 3) // 3 and not found.truncated
    assert await files.remove(b"/w", recursive=True) == DEEP + 2
    assert (await runner.run("ls -d /w")).code != 0


async def test_odd_names_survive_everything(runner: Runner, files: BoxFiles) -> None:
    for name in ODD:
        await files.mkdir(b"/w/" + name, parents=True, mode=None)
        assert (await files.stat(b"/w/" + name, follow=False)).kind == "directory"
    page = await files.list(b"/w", after=b"", limit=100)
    assert names(page.entries) == sorted(ODD) and page.after is None
    assert names((await files.glob(b"/w", "*", limit=100, seconds=30)).entries) == sorted(ODD)
    archive = await all_of(await files.pack(b"/w"))
    unpacking = await files.unpack(b"/v", owners=False)
    await unpacking.feed(archive)
    assert (await unpacking.finish()).entries == len(ODD) + 1
    unpacking.close()
    assert names((await files.list(b"/v", after=b"", limit=100)).entries) == sorted(ODD)
    for name in ODD:
        await files.move(b"/w/" + name, b"/w/" + name[:200] + b"\xfe", replace=False)
        assert await files.remove(b"/w/" + name[:200] + b"\xfe", recursive=False) == 1


async def test_very_many_entries_are_told_page_by_page(runner: Runner, files: BoxFiles) -> None:
    many, large, small = amount((6_000, 2_500, 300), (100_000, 10_000, 1_000))
    make = f"import os\nos.mkdir('/w')\nfor i in range({many}): os.close(os.open('/w/%06d' % i, os.O_CREAT))"
    await runner.run(f'python3 -c "{make}"')
    after, seen = b"", []
    for wanted in (large, large, small):
        page = await files.list(b"/w", after=after, limit=wanted)
        assert len(page.entries) == wanted and page.after == page.entries[-1].path
        seen += names(page.entries)
        after = page.after
    assert seen == [b"%06d" % number for number in range(2 * large + small)]
    last = await files.list(b"/w", after=b"%06d" % (many - 2), limit=1000)
    assert names(last.entries) == [b"%06d" % (many - 1)] and last.after is None
    found = await files.glob(b"/w", "*7", limit=10, seconds=60)
    assert len(found.entries) == 10 and found.truncated == "limit"


async def test_patterns(runner: Runner, files: BoxFiles) -> None:
    await runner.run(
        "mkdir -p /w/src/deep/er /w/.git; cd /w; touch a.py b.ts c.tsx src/d.py src/deep/e.py src/deep/er/f.py .git/g.py; ln -s src link"
    )
    expected = {
        "*.py": ["a.py"],
        "**/*.py": [".git/g.py", "a.py", "src/d.py", "src/deep/e.py", "src/deep/er/f.py"],
        "src/**": ["src/d.py", "src/deep", "src/deep/e.py", "src/deep/er", "src/deep/er/f.py"],
        "src/**/er/*": ["src/deep/er/f.py"],
        "*.{ts,tsx}": ["b.ts", "c.tsx"],
        "[ab].*": ["a.py", "b.ts"],
        "?.py": ["a.py"],
        "link/*": [],
        "none/**": [],
    }
    for pattern, paths in expected.items():
        found = await files.glob(b"/w", pattern, limit=100, seconds=30)
        assert [path.decode() for path in names(found.entries)] == paths, pattern
    for pattern in ("/abs", "a//b", "../x", "", "x" * 2000, "{a,b}" * 10):
        assert await refused(files.glob(b"/w", pattern, limit=1, seconds=5)) == errno.EINVAL


async def test_text_is_found(runner: Runner, files: BoxFiles) -> None:
    await runner.run(
        r"mkdir -p /w/d /w/.hidden; cd /w; printf 'one\ntwo needle three\n' > a; printf 'Needle\n' > d/b.txt;"
        r"printf 'needle' > .hidden/c; printf 'needle\0' > binary; mkfifo pipe; ln -s a link; printf 'x\xffneedle\n' > raw"
    )
    found = await files.search(b"/w", TextQuery("needle"), limit=100, seconds=30)
    assert [(m.path, m.line, m.column, m.text) for m in found.matches] == [
        (b".hidden/c", 1, 1, b"needle"), (b"a", 2, 5, b"two needle three"), (b"raw", 1, 3, b"x\xffneedle"),
    ]  # fmt: skip
    assert found.engine == "builtin" and not found.truncated
    query = TextQuery("^n..dle$", ignore_case=True, include=("*.txt", "a"), exclude=("a",))
    assert names_of(await files.search(b"/w", query, limit=100, seconds=30)) == [b"d/b.txt"]
    assert names_of(await files.search(b"/w/link", TextQuery("two"), limit=1, seconds=30)) == [b"link"]
    assert (await files.search(b"/w", TextQuery("n", literal=True), limit=1, seconds=30)).truncated == "limit"
    assert await refused(files.search(b"/w", TextQuery("("), limit=1, seconds=5)) == errno.EINVAL
    assert await refused(files.search(b"/w/pipe", TextQuery("x"), limit=1, seconds=5)) == errno.EINVAL
    assert await refused(files.search(b"/w", TextQuery("x", engine="ripgrep"), limit=1, seconds=5)) == errno.ENOENT


def names_of(found: object) -> list[bytes]:
    return [match.path for match in found.matches]  # type: ignore[attr-defined]


async def test_a_pattern_that_would_take_for_ever_is_ended(runner: Runner, files: BoxFiles) -> None:
    await runner.run("mkdir /w; printf 'needle\\n' > /w/a; printf 'a%.0s' $(seq 60) > /w/b")
    found = await files.search(b"/w", TextQuery("needle|(a+)+$x"), limit=10, seconds=0.5)
    assert names_of(found) == [b"a"] and found.truncated == "seconds"


async def test_packed_and_unpacked_it_is_the_same(runner: Runner, files: BoxFiles) -> None:
    await runner.run(
        "mkdir -p /w/d/empty; cd /w; head -c 3000000 /dev/urandom > big; printf x > d/x; ln d/x hard; ln -s ../big d/link;"
        "chmod 700 d; chmod 4755 big; chown user d/x; truncate -s 5M sparse; touch -d @1000.5 d/x; mkfifo p;"
        f"mkdir -p {'n' * 200}/{'m' * 200}; touch {'n' * 200}/{'m' * 200}/file"
    )
    archive = await all_of(await files.pack(b"/w"))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = {member.name: member for member in tar.getmembers()}
        assert members["./d/link" if "./d/link" in members else "d/link"].linkname == "../big"
    unpacking = await files.unpack(b"/v", owners=True)
    for at in range(0, len(archive), 100_000):
        await unpacking.feed(archive[at : at + 100_000])
    done = await unpacking.finish()
    unpacking.close()
    assert done.skipped == 0 and done.bytes == 3_000_000 + 1 + 5 * (1 << 20)
    same = "find . ! -name p ! -name big ! -type d -printf '%p %y %s %m %U %l %T@\\n' | sort; md5sum big sparse; stat -c %a d"
    assert (await runner.run(f"cd /v; {same}")).text == (await runner.run(f"cd /w; {same}")).text
    assert (await runner.run("stat -c %a /v/big; stat -c %h /v/hard; ls /v/p")).text == "755\n2\n"


async def test_an_archive_of_others(runner: Runner, files: BoxFiles) -> None:
    """GNU's format, with its long names, and the old one."""
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=format) as tar:
            name = "d" * 90 + "/" + "e" * 60
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = 3, 0o6751, 4242
            tar.addfile(info, io.BytesIO(b"abc"))
            device = tarfile.TarInfo("device")
            device.type = tarfile.CHRTYPE
            tar.addfile(device)
        unpacking = await files.unpack(b"/w", owners=False)
        await unpacking.feed(data.getvalue())
        done = await unpacking.finish()
        unpacking.close()
        assert (done.entries, done.bytes, done.skipped) == (1, 3, 1)
        assert (
            await runner.run(f"cd /w; cat {name}; stat -c ' %a %u' {name}; ls; rm -r /w")
        ).text == f"abc 751 0\n{'d' * 90}\n"


async def test_it_is_bounded_how_many_work_at_once(runner: Runner, files: BoxFiles) -> None:
    await runner.run("mkdir /w")
    watches = [await files.watch(b"/w", recursive=True, most=10) for _ in range(32)]
    assert await refused(files.list(b"/w", after=b"", limit=1)) == errno.EAGAIN
    assert (await runner.box.settle()).processes >= 32
    for watch in watches:
        await anext(watch)
        await watch.aclose()
    await runner.run("touch /w/x")  # so that each has something to say, if it still listens
    while not (await runner.box.settle()).idle:
        pass
    assert names((await files.list(b"/w", after=b"", limit=1)).entries) == [b"x"]


async def test_a_read_only_vm_is_not_written_to(runner: Runner) -> None:
    box = await runner.boot(read_only=True)
    files = box.files
    said = [
        await refused(files.mkdir(b"/srv/x", parents=False, mode=None)),
        await refused(files.mkdir(b"/srv/x/y", parents=True, mode=None)),
        await refused(files.chmod(b"/etc/passwd", 0o600)),
        await refused(files.move(b"/etc/passwd", b"/etc/x", replace=False)),
        await refused(files.remove(b"/etc/passwd", recursive=False)),
        await refused(files.remove(b"/etc", recursive=True)),
    ]
    unpacking = await files.unpack(b"/srv", owners=False)
    said.append(await refused(unpacking.finish()))
    unpacking.close()
    assert set(said) == {errno.EROFS}
    await files.mkdir(b"/tmp/d", parents=False, mode=None)
    assert (await files.stat(b"/tmp/d", follow=False)).kind == "directory" and os.sep == "/"
    assert names((await files.glob(b"/etc", "passwd", limit=1, seconds=30)).entries) == [b"passwd"]


async def test_what_a_box_holds_does_not_cost_it_its_life(runner: Runner, files: BoxFiles) -> None:
    """However large what is to be told: no answer is longer than the server takes."""
    target = "\xff" * 2000
    make = f"import os\nos.mkdir('/w')\nos.mkdir('/d')\nt=b'\\xff'*4000\nfor i in range({MANY}): os.symlink(t, b'/w/'+b'\\xfe'*240+b'%04d'%i)\nopen('/w/huge','w').truncate({(1 << 43)})"
    await runner.box.write_file("/make.py", make.encode())
    await runner.run("python3 /make.py")
    seen, after = [], b""
    while after is not None:
        page = await files.list(b"/w", after=after, limit=10_000)
        seen += names(page.entries)
        after = page.after
    assert len(seen) == len(set(seen)) == MANY + 1
    assert (await files.glob(b"/w", "*", limit=10_000, seconds=60)).truncated == "bytes"
    assert await refused(files.stat(b"/w/" + target.encode("latin-1"), follow=False)) == errno.ENAMETOOLONG
    unpacking = await files.unpack(b"/v", owners=False)
    with pytest.raises(GuestError, match="must stay below"):
        await unpacking.feed(archive_of("../" + "\U0001f4a9" * 60))
        await unpacking.finish()
    unpacking.close()
    assert names_of(await files.search(b"/make.py/", TextQuery("symlink"), limit=1, seconds=30)) == [b"make.py"]
    deep = "import os\nos.chdir('/d')\nfor _ in range(16): os.mkdir('x'*250); os.chdir('x'*250)\nopen('y'*250,'w')"
    watch = await files.watch(b"/d", recursive=True, most=8192)
    await runner.run(f'python3 -c "{deep}"; touch /d/done')
    async for change in watch:
        if change.path == b"done":
            break
    await watch.aclose()
    assert (await runner.run("echo on")).text == "on\n"


def archive_of(name: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return data.getvalue()
