"""Cases for arker 0.1.0 and 0.2.1, run by an interpreter that has one of them: `first.py VERSION CASE`."""

import hashlib
import os
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import arker
import arker.computer
from arker import Arker, ArkerError

URL = os.environ["ARKER_BASE_URL"]
arker.computer.LIST_BASE_URL = URL  # the one address that this generation reads from nowhere else
client = Arker(api_key=os.environ["ARKER_API_KEY"])


def fresh(prefix="g1"):
    return prefix + "-" + secrets.token_hex(6)


@contextmanager
def forked(source=None, **options):
    vm = (source or client.vm("arkuntu")).fork(**options)
    try:
        yield vm
    finally:
        vm.delete()


def refused(step):
    try:
        step()
    except ArkerError as error:
        return error.code, error.status
    raise AssertionError("not refused")


def fork_and_run():
    with forked(name=fresh()) as vm:
        result = vm.run("echo hello; echo oops >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_code) == (b"hello\n", b"oops\n", 3), result
        assert result.session_id and result.duration_ms > 0 and result.cwd.startswith("/"), result
        assert vm.run("printf '\\377\\000x'").stdout == b"\xff\x00x"
        assert vm.run("kill -9 $BASHPID").exit_code == 137
        assert vm.run("echo still here").stdout == b"still here\n"


def shell_state_persists():
    with forked() as vm:
        vm.run('export WORD=kept; mkdir -p /home/user/w && cd /home/user/w; plain=also; f() { echo "f $1"; }')
        result = vm.run('pwd; echo "$WORD $plain"; f x')
        assert result.stdout == b"/home/user/w\nkept also\nf x\n" and result.cwd == "/home/user/w", result
        assert vm.run('echo "[$WORD]"', session_id=1).stdout == b"[]\n"


def small_file():
    with forked() as vm:
        vm.sync.write_file("/home/user/sub/a.txt", "grüße\n")
        assert vm.run("cat /home/user/sub/a.txt").stdout == "grüße\n".encode()
        vm.run("printf 'a\\000b' > /home/user/b")
        assert vm.sync.read_file("/home/user/b") == b"a\0b"
        vm.run(": > /home/user/empty")
        assert vm.sync.read_file("/home/user/empty") == b""


def large_file():
    data = secrets.token_bytes(8 << 20)
    with forked() as vm:
        vm.sync.write_file("/home/user/large.bin", data)
        assert vm.sync.read_file("/home/user/large.bin") == data
        assert hashlib.sha256(data).hexdigest().encode() in vm.run("sha256sum /home/user/large.bin").stdout


def list_with_filter():
    word = fresh()
    with forked(name=word + "-one") as one, forked(name=word + "-two") as two, forked(name=fresh("other")):
        page = client.list(q=word)
        assert page.total == 2 and {item.vm_id for item in page} == {one.id, two.id}, page
        assert {item.name for item in page} == {word + "-one", word + "-two"}
        assert all(item.base_image and item.region and item.created_at for item in page)
        first = client.list(q=word, limit=1, sort="created_at")
        rest = client.list(q=word, limit=1, offset=1, sort="created_at")
        assert [item.vm_id for item in (*first, *rest)] == [one.id, two.id]


def child_sees_the_parents_files():
    with forked() as parent:
        parent.run("export SEEN=yes; cd /home/user; echo old > f")
        with forked(parent) as child:
            assert child.run("cat f; pwd; echo $SEEN").stdout == b"old\n/home/user\nyes\n"
            child.run("echo new > f")
            parent.run("echo mine > g")
            assert parent.run("cat f").stdout == b"old\n"
            assert child.run("cat f; ls").stdout == b"new\nf\n"


def missing_is_not_found():
    with forked() as vm:
        assert refused(lambda: vm.sync.read_file("/home/user/none")) == ("not_found", 404)
    absent = client.vm("01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert refused(lambda: absent.run("true")) == ("not_found", 404)
    assert refused(absent.fork) == ("not_found", 404)
    assert refused(client.vm(fresh("no-such-name")).fork) == ("not_found", 404)


def bad_paths_are_bad_requests():
    with forked() as vm:
        for path in ("/etc/passwd", "/home/user/../root/x", "/home/userx/a", "notes.txt", "/home/user", "/tmp/x"):
            assert refused(lambda path=path: vm.sync.read_file(path)) == ("bad_request", 400), path
            code, _ = refused(lambda path=path: vm.sync.write_file(path, b"x"))
            assert code == "bad_request", path
            code, _ = refused(lambda path=path: vm.sync.write_file(path, bytes(5 << 20)))
            assert code == "bad_request", path


def delete():
    vm = client.vm("arkuntu").fork(name=fresh())
    assert vm.run("true").exit_code == 0
    vm.delete()
    assert refused(lambda: vm.run("true")) == ("not_found", 404)
    assert vm.id not in {item.vm_id for item in client.list(limit=100)}


def fork_by_name():
    name = fresh()
    with forked(name=name) as vm:
        vm.run("echo named > /home/user/f")
        with forked(client.vm(name)) as child:
            assert child.run("cat /home/user/f").stdout == b"named\n"


def key_is_needed():
    stranger = Arker(api_key="ark_live_nobody")
    assert refused(lambda: stranger.list()) == ("unauthorized", 401)
    assert refused(lambda: stranger.vm("arkuntu").fork()) == ("unauthorized", 401)


def twenty_at_once():
    def live(number):
        with forked(name=fresh()) as vm:
            vm.sync.write_file("/home/user/n", str(number))
            return vm.run("cat /home/user/n; expr $(cat /home/user/n) \\* 2").stdout

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(live, range(20))) == [b"%d%d\n" % (n, 2 * n) for n in range(20)]


if __name__ == "__main__":
    version, case = sys.argv[1:]
    released = getattr(arker, "__version__", version)
    assert released == version, released
    globals()[case]()
