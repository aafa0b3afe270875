"""What goes in and out: bytes, exit codes, redirections, descriptors."""

from __future__ import annotations


def test_streams_are_separate_and_exact(s):
    s.run("echo out; echo err >&2", out=b"out\n", err=b"err\n")
    s.run("printf no-newline; printf e >&2", out=b"no-newline", err=b"e")
    s.run("printf '\\000\\001\\177\\200\\377\\n\\n'", out=b"\0\1\x7f\x80\xff\n\n")
    s.run("", out=b"")
    s.run("# only a comment", out=b"")
    s.run("head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2", out=bytes(3000000), err=bytes(2000000))


def test_exit_codes(s, work):
    for code in 0, 1, 2, 7, 126, 127, 128, 255:
        s.run(f"(exit {code})", code)
        s.run("echo $?", out=b"%d\n" % code)
    s.run("nosuchcommand", 127, err=r"nosuchcommand.*not found")
    s.run(f"{work}", 126, err=None)
    s.run("sh -c 'kill -9 $$'", 137, err=None)


def test_given_input(s):
    s.run("cat", stdin=b"in\0put", out=b"in\0put")
    s.run("read x; echo $x; cat", stdin=b"one\ntwo", out=b"one\ntwo")
    s.run("cat", stdin=b"")
    s.run("cat", stdin=bytes(range(256)) * 5000, out=bytes(range(256)) * 5000)


def test_arbitrary_bytes(s):
    every = bytes(b for b in range(1, 256) if b != 0x27)
    s.run(b"printf %s '" + every + b"'", out=every)
    s.run(b"x='" + every + b"'")
    s.run('printf %s "$x"', out=every)
    s.run(b"\xff\xfe\x01", 127, err=None)


def test_a_command_of_a_megabyte(s):
    text = b"A" * (1 << 20)
    s.run(b"echo " + text, out=text + b"\n")
    ran = s.run(b"/bin/echo " + text, None, err=r"too long")  # the kernel's limit, not ours
    assert ran.code in (126, 127)


def test_redirections(s):
    s.run("echo a > f1; echo b 2>f2 >>f1; cat < f1; cat nosuch 2>f3", 1, out=b"a\nb\n")
    s.run("{ echo 1; echo 2 >&2; } 2>&1", out=b"1\n2\n")
    s.run("cat <<E\nhere $((1+1))\nE\ncat <<'E'\n$x\nE", out=b"here 2\n$x\n")
    s.run("cat <<E\nopen", out=b"open\n", err=None)
    s.run("echo a | tr a b | cat", out=b"b\n")


def test_descriptors_that_a_run_leaves_open(s):
    s.run("exec 3>&1; echo to3 >&3", out=b"to3\n")
    s.run("echo next; echo late >&3", out=b"next\n")  # goes where 3 went: to a run that is over
    s.run("exec 3>&-; exec 4>&2 5<&0")
    s.run("echo next", out=b"next\n")
    s.run("exec >/dev/null; echo lost")
    s.run("echo back", out=b"back\n")
    s.run("exec >&- 2>&- <&-", None, None, None)
    s.run("echo back; echo e >&2; cat", out=b"back\n", err=b"e\n")
    s.run("exec 2>&1 >f4; echo inf; echo err >&2", out=b"err\n")
    s.run("echo back; cat f4", out=b"back\ninf\n")
    s.run("exec 3>f5; echo x >&3", out=b"")
    s.run("echo y >&3; exec 3>&-; cat f5", out=b"x\ny\n")


def test_our_own_descriptors_closed(s, office):
    """The run closes those behind which the shell keeps ours: the run is lost, not the session."""
    s.run("v=1")
    one_by_one = 'for i in 10 11 12 13 14 15; do eval "exec $i>&-"; done; v=2'
    in_bash = 'for i in {10..30} 255; do eval "exec $i>&-"; done; v=2'
    s.run(in_bash if office.bash else one_by_one, None, None, None, reason=None)
    s.run("echo $v", out=r"[12]\n")


def test_hundreds_of_runs(s):
    for i in range(300):
        s.run(f"echo {i}; n={i}", out=b"%d\n" % i)
    s.run("echo $n", out=b"299\n")
