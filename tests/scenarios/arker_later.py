"""Arker's later generation, as far as its document and its published client have the same calls."""

import secrets
from contextlib import contextmanager

from observing import Scenario, fresh, refusal

scenario = Scenario()
step = scenario.step
ABSENT = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@contextmanager
def forked(arker, **options):
    """A client and a VM of a public name."""
    client = arker.Arker()
    vm = client.fork(source_vm_name="ubuntu", **options)
    try:
        yield client, vm
    finally:
        vm.delete()


def refused(step):
    return refusal(step, "code", "status")[1:]


def text(output):
    return output.decode() if isinstance(output, bytes) else output


@step(["hello\n", "oops\n", 3, "completed", "completed", True])
def run(arker):
    with forked(arker, name=fresh()) as (_, vm):
        result = vm.run("echo hello; echo oops >&2; exit 3")
        ids = bool(result.run_id and result.session_id)
        return [text(result.stdout), text(result.stderr), result.exit_code, result.state, result.type, ids]


@step("bytes")
def output_is_bytes(arker):
    with forked(arker) as (_, vm):
        return type(vm.run("echo").stdout).__name__


@step(["/root/w\nkept\n", "[]\n"])
def a_session_keeps_its_shell(arker):
    with forked(arker) as (_, vm):
        first = vm.run("export WORD=kept; mkdir -p /root/w && cd /root/w")
        again = vm.run("pwd; echo $WORD", session_id=first.session_id)
        with forked(arker) as (_, other):
            return [text(again.stdout), text(other.run('echo "[$WORD]"').stdout)]


@step([None, True, "0\n", "grüße\n", True])
def files(arker):
    large = secrets.token_bytes(5 << 20)
    with forked(arker) as (_, vm):
        wrote = vm.sync("/root/a b/ü.txt", "grüße\n")
        vm.sync("/tmp/empty", b"")
        vm.sync("/root/large", large)
        same = (vm.sync("/root/a b/ü.txt"), vm.sync("/tmp/empty")) == ("grüße\n".encode(), b"")
        sizes, shown = vm.run("stat -c %s /tmp/empty"), vm.run("cat '/root/a b/ü.txt'")
        return [wrote, same, text(sizes.stdout), text(shown.stdout), vm.sync("/root/large") == large]


@step([True, True, False, True])
def lists(arker):
    with forked(arker, name=fresh()) as (client, vm):
        named = {one.id: one.name for one in client.list_vms()}
        idle, running = ({one.id for one in client.list_vms(state=state)} for state in ("idle", "running"))
        return [named[vm.id] == vm.name, vm.id in idle, vm.id in running, client.vm(vm.id).id == vm.id]


@step([True, ["conflict", 409], ["conflict", 409]])
def a_fork_happens_once(arker):
    key, name = fresh("key"), fresh()
    with forked(arker, name=name, idempotency_key=key) as (client, vm):
        again = client.fork(source_vm_name="ubuntu", name=name, idempotency_key=key)
        return [
            again.id == vm.id,
            refused(lambda: client.fork(source_vm_name="ubuntu", name=name)),
            refused(lambda: client.fork(source_vm_name="ubuntu", name=fresh(), idempotency_key=key)),
        ]


@step([True, "1\n"])
def a_run_happens_once(arker):
    with forked(arker) as (_, vm):
        key, command = fresh("key"), "echo x >> /root/count; wc -l < /root/count"
        first, again = (vm.run(command, idempotency_key=key) for _ in range(2))
        return [first.run_id == again.run_id, text(vm.run("wc -l < /root/count").stdout)]


@step(["old\n", "new\nf\n", "old\n"])
def a_child_has_what_its_parent_had(arker):
    with forked(arker) as (_, parent):
        parent.run("cd /root; echo old > f")
        child = parent.fork()
        first = text(child.run("cat f").stdout)
        changed = text(child.run("echo new > f; cat f; ls").stdout)
        child.delete()
        return [first, changed, text(parent.run("cat f").stdout)]


@step([["not_found", 404]] * 3)
def what_is_not_there(arker):
    with forked(arker) as (client, vm):
        return [
            refused(lambda: vm.sync("/root/none")),
            refused(lambda: client.vm(ABSENT).run("true")),
            refused(lambda: client.fork(source_vm_name=fresh("no-such-name"))),
        ]


@step([True, ["conflict", 409], True, ["not_found", 404]])
def filesystems(arker):
    client, name = arker.Arker(), fresh()
    made = client.create_filesystem(name=name)
    again = refused(lambda: client.create_filesystem(name=name))
    listed = made.filesystem_id in {one.filesystem_id for one in client.list_filesystems().filesystems}
    client.delete_filesystem(made.filesystem_id)
    return [made.name == name, again, listed, refused(lambda: client.delete_filesystem(made.filesystem_id))]


@step(["unauthorized", 401])
def a_key_is_needed(arker):
    return refused(arker.Arker(api_key="ark_live_nobody").list_vms)


DIFFERENCES = {
    ("1.3.0", "filesystems"): (
        [True, ["already_exists", 409], True, ["not_found", 404]],
        "the documents of the generation know one code for both, this release the contract's finer ones",
    ),
    ("1.3.0", "output_is_bytes"): ("str", "this release decodes output; `stdout_bytes` has the bytes"),
    ("1.3.0", "a_fork_happens_once"): (
        [True, ["already_exists", 409], ["idempotency_conflict", 409]],
        "the documents of the generation know one code for both, this release the contract's finer ones",
    ),
}

if __name__ == "__main__":
    scenario.play()
