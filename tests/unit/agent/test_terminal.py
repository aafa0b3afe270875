"""The terminal that is a run's standard input: readers that nobody will answer, and programs that prompt."""

from __future__ import annotations

import shutil
import sys

import pytest

PYTHON = f"{sys.executable} -q"


LIKE_APT = """
import select, subprocess, sys, termios, tty
saved = termios.tcgetattr(0)
tty.setraw(0)
child = subprocess.Popen(["sleep", "0.6"], stdin=subprocess.DEVNULL)
while child.poll() is None:
    select.select([0], [], [], WAIT)
termios.tcsetattr(0, termios.TCSAFLUSH, saved)
print("installed")
"""


@pytest.mark.parametrize("wait", [pytest.param("0.5", marks=pytest.mark.full), "0.01"])
def test_who_looks_at_the_terminal_while_a_child_works_keeps_it(s, wait):
    """apt does so for dpkg. Without its terminal it fails, at the end."""
    s.run(f"{sys.executable} -c '{LIKE_APT.replace('WAIT', wait)}'", out=b"installed\n")
    s.run(f"({sys.executable} -c '{LIKE_APT.replace('WAIT', wait)}' 2>&1) | cat", out=b"installed\n")


def test_readers_get_end_of_file(s):
    s.run("cat")
    s.run("read x", 1)
    s.run("cat; (cat); cat <&0 | cat; echo done", out=b"done\n")
    s.run("[ -t 0 ] && echo terminal", out=b"terminal\n")
    s.run(f"{sys.executable}", err=None, prompt="none")
    s.run(f"{sys.executable} -c 'import sys; print(repr(sys.stdin.read()))'", out=b"''\n")
    s.run("echo all; exec cat", out=b"all\n")
    s.run("echo $$ > /dev/null; sleep 0.05; echo slept", out=b"slept\n")


def test_pollers_get_end_of_file(s):
    for wait in (
        "select.select([0], [], [])",
        "(p := select.poll(), p.register(0), p.poll())",
        "(e := select.epoll(), e.register(0, 1), e.poll())",
    ):
        s.run(f"{sys.executable} -c 'import os, select; {wait}; print(os.read(0, 9))'", out=b"b''\n")


def test_threads_that_read(s):
    program = (
        "import threading, sys; t = threading.Thread(target=lambda: print(repr(sys.stdin.read()))); t.start(); t.join()"
    )
    s.run(f"{sys.executable} -c '{program}'", out=b"''\n")


def test_a_raw_terminal_does_not_stay(s):
    s.run("stty raw -icanon min 1; cat", 1, err=None)  # EIO: there is no end of file in this mode
    s.run("stty -a | grep -c ' icanon'", out=b"1\n")
    s.run("cat")


def test_leftovers_are_not_read(s):
    ran = s.do("printf 'name: '; head -c 1 >/dev/null")
    assert ran.reason == "prompt" and ran.out == b"name: "
    s.run("more than one byte")
    s.run("cat")


def test_a_prompt_is_an_end(s, office):
    ran = s.do("printf 'name? '; read name; echo \"hello $name\"; exit_code=7; (exit 7)")
    assert (ran.code, ran.reason, ran.out) == (None, "prompt", b"name? ")
    assert office.settle() == {"runs": 0, "processes": 0}
    s.run("Ann 'x' \"y", 7, out=b"hello Ann 'x' \"y\n")
    s.run("echo $name", out=b"Ann 'x' \"y\n")


def test_without_prompts(s):
    s.run("printf 'name? '; read name; echo \"<$name>\"", out=b"name? <>\n", prompt="none")
    s.run("printf 'name? '; read name", None, out=b"name? ", reason="prompt")
    s.run("x", 0, prompt="none")


def test_a_repl(s, office):
    ran = s.do(PYTHON)
    assert (ran.code, ran.reason, ran.out) == (None, "prompt", b"") and ran.err.endswith(b">>> ")
    assert office.settle() == {"runs": 0, "processes": 1}
    ran = s.do("x = 6")
    assert ran.reason == "prompt" and ran.out == b""
    ran = s.do("print(x * 7)")
    assert ran.reason == "prompt" and ran.out == b"42\n"
    ran = s.do("for i in range(2):\n  print(i)\n")
    assert ran.reason == "prompt" and ran.out == b"0\n1\n"
    ran = s.do("import time; time.sleep(0.4); print('slow')")
    assert ran.reason == "prompt" and ran.out == b"slow\n"
    ran = s.do("print(len('" + "y" * 20000 + "'))")
    assert ran.reason == "prompt" and ran.out == b"20000\n"
    s.run("import sys; sys.exit(5)", 5)
    s.run("echo $?", out=b"5\n")


def test_end_of_file_by_hand(s):
    assert s.do(PYTHON).reason == "prompt"
    s.run("\x04", 0, out=b"", err=None)


def test_a_timeout_at_a_prompt(s):
    s.run("x=1")
    assert s.do(PYTHON).reason == "prompt"
    s.run("import time; time.sleep(60)", 124, reason="timeout", timeout=0.3)
    s.run("echo $x", out=b"1\n")


def test_a_repl_that_dies_alone(s, office):
    assert s.do(PYTHON).reason == "prompt"
    import os

    from boxwood.engine.agent.procs import children

    for pid in children(s.inside.tree.root):
        os.kill(pid, 9)
    office.until(lambda: s.inside.job is None)
    s.run("echo $?", out=b"137\n")


def test_beside_a_prompt(s):
    assert s.do(PYTHON).reason == "prompt"
    s.run("echo $BESIDE", env={"BESIDE": "yes"}, out=b"yes\n")
    refused = s.start("1", stdin=b"2")
    assert refused.started.errno is not None and "prompt" in refused.started.text
    s.run("exit()", 0)


def test_input_that_was_given_is_no_terminal(s):
    s.run("[ -t 0 ] || echo file; cat", stdin=b"x", out=b"file\nx")
    s.run("cat & wait", stdin=b"")


def test_what_is_written_to_the_terminal_is_output(s):
    s.run("echo there > $(tty); sleep 0.1", out=b"there\n")


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_node(s):
    ran = s.do("node -i")
    assert ran.reason == "prompt" and ran.out.endswith(b"> ")
    ran = s.do("6 * 7")
    assert ran.reason == "prompt" and b"42" in ran.out
    s.run(".exit", 0, None, None)
