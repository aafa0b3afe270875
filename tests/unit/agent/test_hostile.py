"""Definitions, variables and options that would break a shell with helpers of ours inside."""

from __future__ import annotations

import pytest

from amounts import amount

NAMES = (
    "cd eval exit printf echo read set unset trap source . : command builtin declare alias umask pwd export test [ "
    "type exec return true local readonly shift let kill wait typeset dirs"
)


def test_redefined_functions(s, office, work):
    for name in NAMES.split() if office.bash else NAMES.split()[:: amount(4, 1)]:
        one = office.session(work=work)
        one.run(f"{name}() {{ :; }}", None, err=None)  # dash refuses the special ones: a syntax error
        one.run(f"x={len(name)}")
        one.run("/bin/echo $x", out=b"%d\n" % len(name))
        one.run("kill -9 $$", None, None, None, reason=None)  # and out of the saved state
        one.run("/bin/echo $x", out=b"%d\n" % len(name), err=None)
        assert not one.notes
        one.close()


def test_redefined_aliases(s):
    for name in NAMES.split():
        s.run("alias {}='nosuch '".format(name.replace("[", "lb")), None, err=None)
    s.run("x=7", None, None, None)
    s.run("/bin/echo $x", out=b"7\n")
    s.run("\\unalias -a")


def test_the_double_lock(s, office):
    if not office.bash:
        pytest.skip("bash alone lets special builtins be redefined")
    s.run("x=5; builtin() { :; }; unset() { :; }; (exit 3)", 3)
    s.run("echo $x", out=b"5\n")
    ran = s.run("builtin() { :; }; readonly -f builtin; x=6", 2, None, None, reason="broken")  # nothing can undo that
    assert b"boxwood: " in ran.err
    s.run("echo $x", out=b"5\n")


def test_readonly(s):
    s.run("readonly R=1; n=1")
    s.run("R=2", None, err=None)
    s.run("echo $R$n", out=b"11\n")
    s.run("exit 1", 1)
    s.run("echo $R$n", out=b"11\n")
    s.run("R=3", None, err=None)
    s.run("readonly PATH HOME IFS PWD")
    s.run("echo ok", out=b"ok\n")
    s.run("kill -9 $$", 137)
    s.run("echo $R$n; ls nosuch 2>/dev/null", None, out=b"11\n")


def test_path(s, office):
    s.run("PATH=; x=1")
    if office.name != "busybox":
        s.run("echo b; /bin/echo c; ls", 127, out=b"b\nc\n", err=None)
    s.run("unset PATH")
    s.run("kill -9 $$", 137)
    s.run("echo ${PATH-none}$x", out=b"none1\n")
    s.run("IFS=0123456789/; PATH=/bin; false", 1)
    s.run('echo "$?"; unset IFS', out=b"1\n")
    s.run("HOME=; unset HOME PWD OLDPWD; cd /; pwd", out=b"/\n")


def test_xtrace(s):
    s.run("set -x; echo a", out=b"a\n", err=r"\+ echo a\n$")
    s.run("echo b", out=b"b\n", err=r"^\++ echo b\n$")  # nothing of ours
    s.run("exit 3", 3, err=r"^\++ exit 3\n$")
    s.run("echo b", out=b"b\n", err=r"^\++ echo b\n$")
    s.run("set +x", err=None)
    s.run("set -v; echo c", out=b"c\n", err=None)
    s.run("set +v", err=None)
    s.run("echo 'I exec' >&2; echo 'exec' >&2", err=b"I exec\nexec\n")


def test_odd_options(s, office):
    s.run("x=1")
    for option in "nCfambhtrp" if office.bash else "nCfambh":
        s.run(f"set -{option}; x=1", None, None, None, reason=None, timeout=5)
        s.run(f"set +{option}; echo $x", None, out=r"1|^$", err=None, reason=None, timeout=5)
    s.run("echo $x", out=b"1\n")
    if office.bash:
        s.run("set -o posix; x=2")
        s.run("echo ${x", None, err=None)
        s.run("set +o posix; echo $x", out=b"2\n")
        s.run("trap 'echo dbg' DEBUG; set -T", None, None)
        s.run("echo a", out=r"a\n")
        s.run("set +T; trap - DEBUG", None, None)
        s.run("echo a", out=b"a\n")
        for text in (
            "trap 'false' DEBUG; shopt -s extdebug; x=3",
            "shopt -u extdebug; trap - DEBUG; echo $x",
            "enable -n printf declare",
            "x=9",
            "ulimit -n 8; x=4",
        ):
            s.run(text, None, None, None, reason=None, timeout=5)
    s.run("/bin/echo $x", out=None)


def test_limits(s):
    s.run("x=1; ulimit -f 0; echo > f", None, None, None)  # SIGXFSZ; the dump is no file
    s.run("x=2", None)
    s.run("ulimit -n 4; x=3", None, None, None, reason=None, timeout=5)  # no redirection works any more
    s.run("ulimit -n 64; echo $x", None, None, None, reason=None, timeout=5)
    s.run("echo $x", out=r"[123]\n")


def test_an_environment_that_a_shell_cannot_hold(office, work):
    env = {"PATH": "/bin:/usr/bin", "SHELLOPTS": "noexec", "PPID": "7", "a.b": "dotted", "UID": "3", "OK": "it's"}
    s = office.session(work=work, env=env)
    s.run('echo "$OK"', out=b"it's\n")
    assert not s.notes
    s.close()
