"""Arker's first generation: VMs forked from a public name and from each other, commands in sessions, files, lists."""

import os
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from observing import Scenario, fresh, refusal

scenario = Scenario()
step = scenario.step
ABSENT = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def made(arker, key=None):
    """A client; this generation lists, and forks by name, at one fixed address, which nothing but this can change."""
    if "arker.computer" in sys.modules:
        sys.modules["arker.computer"].LIST_BASE_URL = os.environ["ARKER_BASE_URL"]
    return arker.Arker(api_key=key or os.environ["ARKER_API_KEY"])


@contextmanager
def forked(source, **options):
    vm = source.fork(**options)
    try:
        yield vm
    finally:
        vm.delete()


def refused(step):
    return refusal(step, "code", "status")[1:]


@step(["Computer", "RunResult", "hello\n", "oops\n", 3, True, "/root"])
def fork_and_run(arker):
    with forked(made(arker).vm("arkuntu"), name=fresh()) as vm:
        result = vm.run("echo hello; echo oops >&2; exit 3")
        types = [type(vm).__name__, type(result).__name__]
        told = bool(result.session_id) and result.duration_ms > 0
        return [*types, result.stdout.decode(), result.stderr.decode(), result.exit_code, told, result.cwd]


@step([[255, 0, 120], 137, "still here\n", 124])
def what_a_command_may_do(arker):
    with forked(made(arker).vm("arkuntu")) as vm:
        odd = list(vm.run("printf '\\377\\000x'").stdout)
        killed = vm.run("kill -9 $BASHPID").exit_code
        return [odd, killed, vm.run("echo still here").stdout.decode(), vm.run("sleep 30", timeout=1).exit_code]


@step(["/home/user/w\nkept also\nf x\n", "/home/user/w", "[]\n", "kept\n"])
def a_session_keeps_its_shell(arker):
    with forked(made(arker).vm("arkuntu")) as vm:
        vm.run('export WORD=kept; mkdir -p /home/user/w && cd /home/user/w; plain=also; f() { echo "f $1"; }')
        result = vm.run('pwd; echo "$WORD $plain"; f x')
        other = vm.run('echo "[$WORD]"', session_id=1).stdout.decode()
        again = vm.run("echo $WORD", session_id=result.session_id).stdout.decode()
        return [result.stdout.decode(), result.cwd, other, again]


@step([None, "grüße\n", [97, 0, 98], ""])
def small_files(arker):
    with forked(made(arker).vm("arkuntu")) as vm:
        wrote = vm.sync.write_file("/home/user/sub/a.txt", "grüße\n")
        seen = vm.run("cat /home/user/sub/a.txt; printf 'a\\000b' > /home/user/b; : > /home/user/empty").stdout
        odd, empty = (vm.sync.read_file(f"/home/user/{name}") for name in ("b", "empty"))
        return [wrote, seen.decode(), list(odd), empty.decode()]


@step(["", "0\n"])
def an_empty_file(arker):
    with forked(made(arker).vm("arkuntu")) as vm:
        vm.sync.write_file("/home/user/empty", b"")
        return [vm.sync.read_file("/home/user/empty").decode(), vm.run("stat -c %s /home/user/empty").stdout.decode()]


@step([True, "8388608\n"])
def a_large_file(arker):
    data = secrets.token_bytes(8 << 20)
    with forked(made(arker).vm("arkuntu")) as vm:
        vm.sync.write_file("/home/user/large", data)
        return [vm.sync.read_file("/home/user/large") == data, vm.run("stat -c %s /home/user/large").stdout.decode()]


@step(["VmList", "VmSummary", 2, 2, [True, True], [True, True], ["arkuntu", "arkuntu"], True])
def lists(arker):
    client, word = made(arker), fresh()
    source = client.vm("arkuntu")
    with forked(source, name=word + "-one") as one, forked(source, name=word + "-two") as two, forked(source):
        page = client.list(q=word)
        newest = [item.vm_id == vm.id for item, vm in zip(page, (two, one), strict=True)]
        parts = (
            *client.list(q=word, limit=1, sort="created_at"),
            *client.list(q=word, limit=1, offset=1, sort="created_at"),
        )
        oldest = [item.vm_id == vm.id for item, vm in zip(parts, (one, two), strict=True)]
        told = {item.name for item in page} == {word + "-one", word + "-two"} and all(
            i.region and i.created_at for i in page
        )
        images = [item.base_image for item in page]
        return [type(page).__name__, type(page.items[0]).__name__, page.total, len(page), newest, oldest, images, told]


@step(["old\n/home/user\nyes\n", "old\n", "new\nf\n"])
def a_child_has_what_its_parent_had(arker):
    with forked(made(arker).vm("arkuntu")) as parent:
        parent.run("export SEEN=yes; cd /home/user; echo old > f")
        with forked(parent) as child:
            first = child.run("cat f; pwd; echo $SEEN").stdout.decode()
            child.run("echo new > f")
            parent.run("echo mine > g")
            return [first, parent.run("cat f").stdout.decode(), child.run("cat f; ls").stdout.decode()]


@step(["named\n", ["conflict", 409]])
def names(arker):
    client, name = made(arker), fresh()
    with forked(client.vm("arkuntu"), name=name) as vm:
        vm.run("echo named > /home/user/f")
        with forked(client.vm(name)) as child:
            kept = child.run("cat /home/user/f").stdout.decode()
        return [kept, refused(lambda: client.vm("arkuntu").fork(name=name))]


@step([["not_found", 404]] * 4)
def what_is_not_there(arker):
    client = made(arker)
    absent, unnamed = client.vm(ABSENT), client.vm(fresh("no-such-name"))
    with forked(client.vm("arkuntu")) as vm:
        missing = refused(lambda: vm.sync.read_file("/home/user/none"))
    return [missing, refused(lambda: absent.run("true")), refused(absent.fork), refused(unnamed.fork)]


@step([[["bad_request", 400]] * 6, ["bad_request"] * 6])
def paths_that_are_refused(arker):
    paths = ("/etc/passwd", "/home/user/../root/x", "/home/userx/a", "notes.txt", "/home/user", "/tmp/x")
    with forked(made(arker).vm("arkuntu")) as vm:
        read = [refused(lambda path=path: vm.sync.read_file(path)) for path in paths]
        written = [refused(lambda path=path: vm.sync.write_file(path, b"x"))[0] for path in paths]
        return [read, written]


@step(["bad_request"] * 3)
def large_writes_that_are_refused(arker):
    with forked(made(arker).vm("arkuntu")) as vm:
        paths = ("/etc/passwd", "/home/user/../root/x", "/tmp/x")
        return [refused(lambda path=path: vm.sync.write_file(path, bytes(5 << 20)))[0] for path in paths]


@step([None, ["not_found", 404], False])
def delete(arker):
    client = made(arker)
    vm = client.vm("arkuntu").fork(name=fresh())
    gone = vm.delete()
    return [gone, refused(lambda: vm.run("true")), vm.id in {item.vm_id for item in client.list(limit=100)}]


@step([["unauthorized", 401], ["unauthorized", 401]])
def a_key_is_needed(arker):
    stranger = made(arker, "ark_live_nobody")
    return [refused(stranger.list), refused(lambda: stranger.vm("arkuntu").fork())]


@step([f"{n}{2 * n}\n" for n in range(20)])
def twenty_at_once(arker):
    client = made(arker)

    def live(number):
        with forked(client.vm("arkuntu"), name=fresh()) as vm:
            vm.sync.write_file("/home/user/n", str(number))
            return vm.run("cat /home/user/n; expr $(cat /home/user/n) \\* 2").stdout.decode()

    with ThreadPoolExecutor(20) as pool:
        return list(pool.map(live, range(20)))


FINER = "the document knows one code, conflict; the server answers with the contract's finer one"
DIFFERENCES = {(version, "names"): (["named\n", ["already_exists", 409]], FINER) for version in ("0.1.0", "0.2.1")} | {
    (version, "an_empty_file"): ({"raised": "ArkerError"}, "these releases refuse to write an empty file, unasked")
    for version in ("0.1.0", "0.2.1")
}

if __name__ == "__main__":
    scenario.play()
