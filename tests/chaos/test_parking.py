"""Everything that a shell is goes on after parking, in a fork, and after every end of the server: bash, dash, busybox."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from amounts import amount
from boxwood import VM
from servers import Server

Make = Callable[..., Server]
SESSION = 1
# How the VM comes to have no other shell, by the one that is there.
SHELLS = {
    "bash": "",
    "dash": "rm -f /bin/bash /usr/bin/bash; ln -sf $(command -v dash) /bin/sh",
    "busybox": "rm -f /bin/bash /usr/bin/bash; ln -sf $(command -v busybox) /bin/sh",
}
# what it is · how it is made · how it is shown · what is seen then
EVERYWHERE = [
    ("directory", "mkdir -p '/srv/a b'; cd '/srv/a b'", "pwd", "/srv/a b\n"),
    ("exported variable", "export E='x  y\nz'", "sh -c 'printf %s \"$E\"'", "x  y\nz"),
    ("plain variable", "v='it'\\''s \"$HOME\" `id`'", "printf %s \"$v\"; env | grep -c '^v='", "it's \"$HOME\" `id`0\n"),
    ("variable that is read-only", "readonly RO='r o'", "echo \"$RO\"; readonly -p | grep -c ' RO='", "r o\n1\n"),
    ("variable that is unset", "unset HOSTTYPE HOME", "echo ${HOME-unset}", "unset\n"),
    ("function", "f() { local x=1; echo \"f:$1:$x\"; }", "f 'a b'", "f:a b:1\n"),
    ("alias", "alias hi='echo \"hi  there\"'", "hi", "hi  there\n"),
    ("options", "set -C -f", "echo *; echo x > /root/noclobber; (echo y > /root/noclobber) 2>/dev/null || echo kept",
     "*\nkept\n"),
    ("umask", "umask 0027", "umask", "0027\n"),
    ("trap", "trap 'echo \"got it\"' USR1", "kill -USR1 $$; :", "got it\n"),
    ("signal that is ignored", "trap '' USR2", "kill -USR2 $$; echo alive", "alive\n"),
    ("arguments", "set -- 'one 1' '' three", 'echo "$#:$1:$2:$3"', "3:one 1::three\n"),
]  # fmt: skip
BASH = [
    ("array", "A=(1 '2 3' [7]=seven)", 'echo "${#A[@]}:${A[1]}:${A[7]}:${!A[*]}"', "3:2 3:seven:0 1 7\n"),
    ("associative array", "declare -A M=(['k k']='v v' [q]=\"'\")", 'echo "${#M[@]}:${M[k k]}:${M[q]}"', "2:v v:'\n"),
    ("attributes", "declare -i N=5; declare -u U=abc", "N=N+1; U=${U}d; echo $N $U; N=5; U=abc", "6 ABCD\n"),
    ("reference", "declare -n R=v", 'printf %s "$R"', 'it\'s "$HOME" `id`'),
    ("shopt", "shopt -s extglob nullglob", "[[ xx == +(x) ]] && shopt -q nullglob && echo both", "both\n"),
    ("set -o", "set -o pipefail", "false | true || echo pipefail", "pipefail\n"),
    ("exported function", "g() { echo g; }; export -f g", "bash -c g", "g\n"),
    ("trap of its own", "trap ':' ERR", "trap -p ERR", "trap -- ':' ERR\n"),
    ("directory stack", "pushd -n /usr > /dev/null", "dirs -p | tail -n 1", "/usr\n"),
]


@pytest.mark.parametrize("shell", ["bash", pytest.param("dash", marks=pytest.mark.full), "busybox"])
def test_a_shell_goes_on(make_server: Make, shell: str) -> None:
    server = make_server()
    table = EVERYWHERE + (BASH if shell == "bash" else [])
    with server.client() as box:
        vm = box.fork("ubuntu", "vm")
        vm.run(SHELLS[shell] + "; true")
        assert shell in vm.run("readlink -f /proc/$$/exe", session=SESSION).stdout
        for what, make, *_ in table:
            made = vm.run(make, session=SESSION)
            assert (made.exit_code, made.stdout, made.stderr) == (0, "", ""), what
        vm.run("touch /run/mark; (exit 7)", session=SESSION)
        child = vm.fork("child")
        look(child, table, "in a fork")
        assert vm.run("echo $?; [ -e /run/mark ] || echo new", session=SESSION).stdout == "7\nnew\n", (
            "it was not parked"
        )
        look(vm, table, "after parking")
    both = ["vm", "child"]
    ends = [(server.kill9, ["vm"]), (server.down, ["child"]), (server.kill9_all, both)]
    for again, names in ends if shell == "bash" else ends[amount(2, 0) :]:
        again()
        server.start()
        with server.client() as box:
            for name in names:
                look(box.get(name), table, f"{name} after {again.__name__}")


def look(vm: VM, table: list[tuple[str, str, str, str]], when: str) -> None:
    seen = {what: vm.run(show, session=SESSION).stdout for what, _, show, _ in table}
    vm.run("rm -f /root/noclobber", session=SESSION)
    assert seen == {what: wanted for what, _, _, wanted in table}, when
