"""Cases for arker 0.9.0 and later, run by an interpreter that has one of them: `modern.py VERSION CASE`."""

import hashlib
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import arker
from arker import Arker, ArkerError

client = Arker()


def fresh(prefix="g6"):
    return prefix + "-" + secrets.token_hex(6)


@contextmanager
def forked(source="ubuntu", **options):
    made = client.fork(source_vm_name=source, **options) if isinstance(source, str) else source.fork(**options)
    try:
        yield made
    finally:
        made.delete()


def refused(step):
    try:
        step()
    except ArkerError as error:
        checked(error)
        return error.code, error.status
    raise AssertionError("not refused")


def checked(error):
    """From 1.2.9 on the client validates the error body against its own contract, and drops what does not conform."""
    if sys.argv[1] >= "1.3" and error.status:
        assert error.body is not None, error.raw
        assert error.body.request_id and error.body.timestamp and error.message, error.raw


def fork_and_run():
    with forked(name=fresh(), description="told") as vm:
        got = client.get_vm(vm.id)
        assert got.id == vm.id and got.name == vm.name and got.description == "told"
        result = vm.run("echo hello; echo oops >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_code) == ("hello\n", "oops\n", 3), result
        assert result.state == "completed" and result.run_id
        assert vm.run("printf '\\377\\000x'").stdout_bytes == b"\xff\x00x"
        assert vm.run("echo still here").stdout == "still here\n"


def fork_older():
    """0.9.0 and 1.0.0 take the source as an argument, and their answers are stripped to what all of them know."""
    vm = client.fork(source="ubuntu", name=fresh())
    try:
        result = vm.run("export WORD=kept; cd /tmp; echo hello; echo oops >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_code) == ("hello\n", "oops\n", 3), result
        assert vm.run('echo "$WORD"; pwd').stdout == "kept\n/tmp\n"
        child = client.fork(source=vm.id)
        assert child.run('echo "$WORD"').stdout == "kept\n"
        child.delete()
        assert vm.id in {item.id for item in client.list_vms(limit=1000)}
        assert refused(lambda: vm.sync("/root/none")) == ("not_found", 404)
        if sys.argv[1] < "1.0":
            data = secrets.token_bytes(5 << 20)
            vm.sync("/root/large", data)
            assert vm.sync("/root/large") == data
    finally:
        vm.delete()
    assert refused(lambda: client.get_vm(vm.id)) == ("not_found", 404)


def filesystems():
    """Mounts, which clients before 1.2.8 call syncs; 0.5.1 and 0.9.0 take the source of a fork as an argument."""
    version = tuple(map(int, sys.argv[1].split(".")))
    later = version >= (1, 2, 8)
    named = {"source_vm_name": "ubuntu"} if version >= (1, 2, 0) else {"source": "ubuntu"}
    one, two, name = client.fork(**named), client.fork(**named), fresh()

    def bind(vm, path):
        make = vm.create_mount if later else vm.create_sync
        bound = make(filesystem_id=made.filesystem_id, path=path)
        until(lambda: shown(vm.run(f"grep -c ' {path} ' /proc/self/mounts")) == "1\n")
        ident = bound.mount_id if later else bound.sync_id
        listed = vm.list_mounts().mounts if later else vm.list_syncs().syncs
        assert [(other.mount_id if later else other.sync_id, other.path) for other in listed] == [(ident, path)]
        assert not later or listed[0].state == "mounted"
        again = make(filesystem_id=made.filesystem_id, path=path)
        assert (again.mount_id if later else again.sync_id) == ident
        return ident

    def shown(result):
        return result.stdout if isinstance(result.stdout, str) else result.stdout.decode()

    try:
        made = client.create_filesystem(name=name)
        assert (made.name, client.get_filesystem(made.filesystem_id).filesystem_id) == (name, made.filesystem_id)
        assert refused(lambda: client.create_filesystem(name=name))[1] == 409
        listed = client.list_filesystems(name_prefix=name)
        assert [other.name for other in getattr(listed, "filesystems", listed)] == [name]
        bound = {vm: bind(vm, path) for vm, path in ((one, "/data"), (two, "/elsewhere"))}
        one.run("echo shared > /data/f")
        assert shown(two.run("cat /elsewhere/f")) == "shared\n"
        assert refused(lambda: client.delete_filesystem(made.filesystem_id)) == ("conflict", 409)
        for vm, ident in bound.items():
            assert (vm.delete_mount if later else vm.delete_sync)(ident).deleted is True
        assert client.delete_filesystem(made.filesystem_id).deleted is True
        assert refused(lambda: client.get_filesystem(made.filesystem_id)) == ("not_found", 404)
    finally:
        one.delete()
        two.delete()


def shell_state_persists():
    with forked() as vm:
        vm.run('export WORD=kept; mkdir -p /root/w && cd /root/w; plain=also; f() { echo "f $1"; }')
        assert vm.run('pwd; echo "$WORD $plain"; f x').stdout == "/root/w\nkept also\nf x\n"
        assert vm.run("cd /nowhere 2>/dev/null || exit 3").exit_code == 3
        assert vm.run('echo "[$WORD]"', session_idx=1).stdout == "[]\n"
        assert vm.run('echo "$WORD"', session_idx=0).stdout == "kept\n"


def files():
    large = secrets.token_bytes(8 << 20)
    with forked() as vm:
        for path, data in (("/root/a b/ü.txt", "grüße\n".encode()), ("/tmp/empty", b""), ("/root/large", large)):
            vm.sync(path, data)
            assert vm.sync(path) == data, path
        assert vm.run("cat '/root/a b/ü.txt'; stat -c %s /tmp/empty").stdout == "grüße\n0\n"
        assert hashlib.sha256(large).hexdigest() in vm.run("sha256sum /root/large").stdout
        vm.run("printf 'a\\000b' > /root/b")
        assert vm.sync("/root/b") == b"a\0b"


def directory():
    tree = Path("tree")
    (tree / "sub").mkdir(parents=True)
    (tree / "one").write_text("1\n")
    (tree / "sub" / "two").write_bytes(bytes(range(256)) * 40)
    with forked() as vm:
        sent = vm.sync_dir(str(tree), "/root/here")
        assert (sent.sent, sent.skipped) == (2, 0), sent
        assert vm.run("cat /root/here/one; stat -c %s /root/here/sub/two").stdout == "1\n10240\n"
        (tree / "one").write_text("other\n")
        again = vm.sync_dir(str(tree), "/root/here")
        assert (again.sent, again.skipped) == (1, 1), again
        assert vm.run("cat /root/here/one").stdout == "other\n"
        # sync_dir unpacks with `set -e; …` in the default session, where it must not survive (wire 2.8).
        assert vm.run("false; echo on").stdout == "on\n"


def list_with_filter():
    with forked(name=fresh()) as one, forked(name=fresh()) as two:
        seen, cursor = {}, None
        while True:
            page = client.list_vms(limit=1, cursor=cursor, public=False)
            assert len(page) <= 1
            seen |= {vm.id: vm for vm in page}
            cursor = page.next_cursor
            if not cursor:
                break
        assert {one.id, two.id} <= set(seen)
        assert seen[one.id].run("echo through the list").stdout == "through the list\n"
        assert {one.id, two.id} & {vm.id for vm in client.list_vms(state="running", limit=1000)} == set()
        names = {vm.name for vm in client.list_vms(org_id=arker.ARKER_ORG_ID, public=True)}
        assert "ubuntu" in names, names


def child_sees_the_parents_files():
    with forked() as parent:
        parent.run("export SEEN=yes; cd /root; echo old > f")
        with forked(parent) as child:
            assert child.run("cat f; pwd; echo $SEEN").stdout == "old\n/root\nyes\n"
            child.run("echo new > f")
            parent.run("echo mine > g")
            assert parent.run("cat f").stdout == "old\n"
            assert child.run("cat f; ls").stdout == "new\nf\n"
            assert client.get_vm(child.id).root_source_vm_name == "ubuntu"


def missing_is_not_found():
    with forked() as vm:
        assert refused(lambda: vm.sync("/root/none")) == ("not_found", 404)
        assert refused(lambda: vm.run("true", session_id="01ARZ3NDEKTSV4RRFFQ69G5FAV")) == ("not_found", 404)
        assert refused(lambda: vm.get_run("01ARZ3NDEKTSV4RRFFQ69G5FAV")) == ("not_found", 404)
    for absent in ("01ARZ3NDEKTSV4RRFFQ69G5FAV", fresh("no-such-name")):
        assert refused(lambda absent=absent: client.get_vm(absent)) == ("not_found", 404)
        assert refused(lambda absent=absent: client.vm(absent).run("true")) == ("not_found", 404)
    assert refused(lambda: client.fork(source_vm_name=fresh("no-such-name"))) == ("not_found", 404)


def refusals():
    with forked(name=fresh()) as vm:
        for path in (
            "relative",
            "/root/../x/..",
            "/root",
            "/proc/self/environ",
            "/dev/null",
            "/dev/shm/x",
            "/run/x",
        ):
            code, status = refused(lambda path=path: vm.sync(path))
            assert 400 <= status < 500 and code != "internal", (path, code, status)
        assert refused(lambda: client.fork(source_vm_name="ubuntu", name=vm.name)) == ("already_exists", 409)
        assert refused(lambda: client.fork(source_vm_name="ubuntu", name=vm.id))[0] == "bad_request"
        assert refused(lambda: client.fork(source_vm_name="ubuntu", nmae="typo"))[0] == "bad_request"
        assert refused(lambda: client.fork(image="alpine:3"))[0] == "unsupported_operation"
        assert refused(lambda: vm.run("true", time_to_background=301))[0] == "bad_request"
        assert refused(lambda: vm.run("x" * (4 << 20)))[0] == "payload_too_large"
    assert refused(lambda: Arker(api_key="ark_live_nobody").list_vms()) == ("unauthorized", 401)
    assert refused(lambda: Arker(api_key="ark_live_nobody").fork(source_vm_name="ubuntu")) == ("unauthorized", 401)


def background():
    with forked() as vm:
        vm.run("mkfifo /root/go")
        waiting = vm.run("echo one; cat /root/go; exit 7", time_to_background=0)
        assert waiting.type == "background" and waiting.state in ("running", "pending")
        until(lambda: vm.get_run(waiting.run_id).stdout == "one\n")
        assert client.get_vm(vm.id).state == "running"
        vm.run("echo two > /root/go", session_idx=1)
        until(lambda: vm.get_run(waiting.run_id).state == "completed")
        ended = vm.get_run(waiting.run_id)
        assert (ended.stdout, ended.exit_code) == ("one\ntwo\n", 7), ended
        listed = vm.list_runs(limit=1000)
        assert waiting.run_id in {run.run_id for run in listed.runs}
        assert waiting.run_id not in {run.run_id for run in vm.list_runs(state="running").runs}


def cancel_and_kill():
    with forked() as vm:
        stuck = vm.run("sleep 1000 & sleep 1000", time_to_background=0)
        until(lambda: vm.get_run(stuck.run_id).state == "running")
        assert vm.cancel_run(stuck.run_id).cancelled is True
        until(lambda: vm.get_run(stuck.run_id).state == "cancelled")
        slow = vm.run("echo begun; sleep 1000 & sleep 1000", timeout=1)
        assert slow.stdout == "begun\n" and slow.exit_code not in (0, None), slow
        assert vm.run("ps -eo comm= 2>/dev/null | grep -c '^sleep$'").stdout.strip() == "0"
        assert vm.run("echo usable").stdout == "usable\n"


def signal():
    with forked() as vm:
        stuck = vm.run("trap 'echo caught; exit 5' INT; echo set; while :; do sleep 0.05; done", time_to_background=0)
        until(lambda: vm.get_run(stuck.run_id).stdout == "set\n")
        vm.run(None, signal="SIGINT")
        until(lambda: vm.get_run(stuck.run_id).state in ("completed", "failed", "cancelled"))
        assert refused(lambda: vm.run(None, signal="SIGINT")) == ("not_found", 404)


def sessions():
    with forked() as vm:
        made = vm.create_session(env={"COLOUR": "green"}, cwd="/tmp")
        assert vm.run("echo $COLOUR; pwd", session_id=made.session_id).stdout == "green\n/tmp\n"
        assert made.session_id in {one.session_id for one in vm.list_sessions().sessions}
        assert vm.get_session(made.session_id).cwd == "/tmp"
        assert vm.delete_session(made.session_id).deleted is True
        assert refused(lambda: vm.run("true", session_id=made.session_id)) == ("not_found", 404)
        assert vm.run("echo ${COLOUR-none}").stdout == "none\n"


def idempotency():
    key, name = fresh("key"), fresh()
    with forked(name=name, idempotency_key=key) as vm:
        assert client.fork(source_vm_name="ubuntu", name=name, idempotency_key=key).id == vm.id
        code, status = refused(lambda: client.fork(source_vm_name="ubuntu", name=fresh(), idempotency_key=key))
        assert (code, status) == ("idempotency_conflict", 409)
        command = "echo x >> /root/count; wc -l < /root/count"
        first = vm.run(command, idempotency_key=key)
        assert vm.run(command, idempotency_key=key).run_id == first.run_id
        assert vm.run("wc -l < /root/count").stdout == "1\n"


def delete():
    vm = client.fork(source_vm_name="ubuntu", name=fresh())
    vm.run("true")
    assert vm.delete().deleted is True
    assert refused(lambda: vm.run("true")) == ("not_found", 404)
    assert refused(vm.delete) == ("not_found", 404)
    assert vm.id not in {one.id for one in client.list_vms(limit=1000)}


def placement():
    assert client.whoami() is not None
    for region in arker.discover_regions().regions:
        assert region.region and region.provider, region


def e2b_surface():
    from arker.e2b import Sandbox

    sandbox = Sandbox.create()
    try:
        sandbox.files.write("/root/d/a.txt", "text")
        assert sandbox.files.read("/root/d/a.txt") == "text"
        assert sandbox.files.list("/root/d") == [{"type": "file", "name": "a.txt"}]
        try:
            sandbox.files.list("/root/none")
        except RuntimeError:
            pass
        else:
            raise AssertionError("a missing directory was listed")
        assert sandbox.commands.run("echo out; exit 4").exit_code == 4
        assert sandbox.files.exists("/root/d/a.txt")
        sandbox.files.remove("/root/d")
        assert not sandbox.files.exists("/root/d/a.txt")
    finally:
        sandbox.kill()


def run_log():
    with forked() as vm:
        vm.run("exit 3")
        vm.sync("/root/f", "x")
        told = client.list_runs(vm=vm.id, lite=True, limit=20_000)
        assert [row.endpoint for row in told.rows][-2:] == ["run", "fork"]
        assert {row.endpoint for row in told.rows} == {"run", "fork", "sync"}
        (failed,) = [row for row in told.rows if row.command == "exit 3"]
        assert (failed.exit_code, failed.status, failed.vm_id) == (3, 200, vm.id)
        assert [row.endpoint for row in client.list_runs(vm=vm.id, endpoint="fork").rows] == ["fork"]
        assert not client.list_runs(vm=vm.id, until=1).rows


def terminal():
    """With the package `websocket-client` beside it. Releases before 1.2 take the source as an argument."""
    named = {"source": "ubuntu"} if sys.argv[1] < "1.2" else {"source_vm_name": "ubuntu"}
    vm = client.fork(**named, name=fresh())
    try:
        with looked(vm, cols=100, rows=30) as (pty, shown, closed):
            pty.send_input("stty size; echo $TERM $((6 * 7))\r")
            until(lambda: b"30 100" in shown and b"dumb 42" in shown)
            pty.resize(90, 20)
            pty.ping()
            pty.send_input(b"stty size; cat\r")
            until(lambda: b"20 90" in shown)
            session = pty.session_id
            with suppress(ArkerError), looked(vm, session_id=session) as _:
                raise AssertionError("two look at once")
        with looked(vm, session_id=session, use_ticket=False) as (pty, shown, closed):
            until(lambda: b"20 90" in shown)
            assert vm.update_session(session, cols=111, rows=33).ok
            pty.send_input("\x04stty size\r")
            until(lambda: b"33 111" in shown)
            pty.kill()
            until(lambda: closed)
            assert closed[0].code == 1000, closed
        with looked(vm, persist=False, plain=False, command="/bin/sh", cancel_ttl_secs=60) as (pty, shown, closed):
            pty.send_input("echo $0 $TERM\r")
            until(lambda: b"/bin/sh xterm-256color" in shown)
            pty.send_input("exit 3\r")
            until(lambda: closed)
        with looked(vm, cancel_ttl_secs=1) as (_, _, closed):
            until(lambda: closed)
    finally:
        vm.delete()


@contextmanager
def looked(vm, **options):
    """A terminal, what it has shown so far, and its closing once that has come."""
    shown, closed = bytearray(), []
    pty = vm.connect_pty(
        on_data=lambda data: shown.extend(data.encode() if isinstance(data, str) else data),
        on_close=closed.append,
        **options,
    )
    try:
        yield pty, shown, closed
    finally:
        pty.close()


def surface():
    """The public methods that no other case calls: what becomes of them is noted by tests/scenarios/recorder.py."""
    with forked() as vm:
        made = client.create_api_key()
        client.revoke_api_key(made.api_key_id)
        assert made.api_key_id not in {key.api_key_id for key in client.list_api_keys().api_keys}
        assert client.list_regions().regions
        assert vm.update(description="told") and vm.refresh().id == vm.id
        client_calls = {
            "list_runs": (), "list_pools": (), "create_pool": ({"name": "x", "kind": "managed"},), "get_pool": ("x",),
            "update_pool": ("x", {}), "rename_pool": ("x", "y"), "delete_pool": ("x",), "list_pool_workers": ("x",),
            "add_pool_commitment": ("x", {}),
        }  # fmt: skip
        for method, given in client_calls.items():
            with suppress(ArkerError):
                getattr(client, method)(*given)


def policies():
    """Both forms, and what a fork has of its source's."""
    deny = {"type": "outbound", "action": "deny"}
    with forked() as vm:
        assert list(vm.get_policies().policies) == []
        put = vm.set_policies({"policies": [deny]})
        assert len(put.policies) == len(vm.get_policies().policies) == 1
        assert set(vm.refresh().policies.rules) == {"rule-0"}
        vm.update(policies={"rules": {"web": {**deny, "priority": 5}, "rule-0": None}})
        child = vm.fork()
        assert set(child.refresh().policies.rules) == {"web"}
        child.delete()
        assert refused(lambda: vm.set_policies({"policies": [{"type": "outbound", "action": "permit"}]}))[1] == 400


def twenty_at_once():
    def live(number):
        with forked(name=fresh()) as vm:
            vm.sync("/root/n", str(number))
            return vm.run("cat /root/n; expr $(cat /root/n) \\* 2").stdout

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(live, range(20))) == [f"{n}{2 * n}\n" for n in range(20)]


def until(condition, seconds=60):
    """The client offers no event to wait for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.02)


if __name__ == "__main__":
    version, case = sys.argv[1:]
    assert arker.__version__ == version, arker.__version__
    globals()[case]()
