"""Runs with their own environment, directory or user: beside the session's shell."""

from __future__ import annotations

import errno
import os

import pytest


def test_environment(s):
    s.run("export A=a B=b; C=c; cd /usr")
    s.office.settle()
    s.run("echo $A $B $C $D; pwd; A=x; cd /", env={"A": "new", "D": "d=é"}, out="new b d=é\n/usr\n".encode())
    s.run("echo $A $D; pwd", out=b"a\n/usr\n")


def test_directory(s, work):
    (work / "sub dir").mkdir()
    s.run("pwd; echo $PWD", cwd=f"{work}/sub dir", out=f"{work}/sub dir\n{work}/sub dir\n".encode())
    s.run("pwd", cwd="sub dir", out=f"{work}/sub dir\n".encode())
    s.run("cd /usr")
    s.office.settle()
    s.run("pwd", cwd="/tmp/", out=b"/tmp\n")
    s.run("pwd", out=b"/usr\n")
    s.office.settle()
    for missing, number in ("/no/such", errno.ENOENT), ("/etc/passwd", errno.ENOTDIR):
        refused = s.start("pwd", cwd=missing)
        assert refused.started.errno == number and missing in refused.started.text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_user(s):
    work = "/tmp"
    s.run("id -u; id -g; echo $HOME $USER $LOGNAME", user="daemon", cwd=work, out=b"1\n1\n/usr/sbin daemon daemon\n")
    s.run("id -u; id -g", user="12345:54321", cwd=work, out=b"12345\n54321\n")
    s.run("id -u; id -g", user="daemon:bin", cwd=work, out=b"1\n2\n")
    s.run("id -u; echo $HOME", user="0", out=b"0\n/root\n")
    s.run("id -un; echo $HOME", user="daemon", env={"HOME": "/h"}, cwd=work, out=b"daemon\n/h\n")
    for unknown in "nobody-here", "daemon:nogroup-here", "-1", "99999999999", "../x":
        refused = s.start("id", user=unknown)
        assert refused.started.errno == errno.EINVAL and "there is no" in refused.started.text


def test_input_and_codes(s):
    s.run("cat; exit 3", 3, stdin=b"in\0", env={}, out=b"in\0")
    s.run("cat; [ -t 0 ] || echo no terminal", env={}, out=b"no terminal\n")
    s.run("kill -9 $$", 137, env={})
    s.run("nosuchthing", 127, env={}, err=None)
    text = b"B" * (1 << 20)
    s.run(b"echo " + text, env={}, out=text + b"\n")
    s.run("cat", env={}, stdin=text, out=text)


def test_waits_for_all(s, work):
    s.run("(setsid sh -c 'sleep 0.2; touch f' >/dev/null 2>&1 &)", env={})
    assert (work / "f").exists()
    s.run("sleep 60 & setsid sleep 60 & sleep 60", 124, env={}, timeout=0.2, reason="timeout", err=None)
    kill = lambda ran: s.office.get("run.kill", rid=ran.rid)  # noqa: E731
    s.run("echo on; sleep 60", 137, env={}, out=b"on\n", reason="killed", poke=(b"on", kill))
    s.run("echo on; sleep 60", 143, env={}, out=b"on\n", poke=(b"on", s.signal(15)))


def test_beside_a_run(s, office):
    ran = s.start("x=1; echo on; sleep 0.5; echo off")
    office.until(lambda: ran.out)
    s.run("echo beside", env={}, out=b"beside\n")
    assert ran.end is None
    s.wait(ran)
    assert ran.out == b"on\noff\n"


def test_closing_the_session_ends_it(office, work):
    s = office.session(work=work)
    ran = s.start("echo on; sleep 60", env={}, timeout=None)
    office.until(lambda: ran.out)
    s.close()
    office.until(lambda: ran.end)
    assert ran.reason == "killed"
