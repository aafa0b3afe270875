"""Runs that end with a text of the caller's own (end_symbol)."""

from __future__ import annotations

import sys

LOOP = "while read -r line; do echo \"got $line\"; printf 'ready# '; done"


def test_the_marker_is_the_end_and_the_next_run_feeds_it(s):
    s.run(f"printf 'ready# '; {LOOP}", None, out=b"ready# ", reason="prompt", prompt="none", marker="ready# ")
    s.run("one", None, out=b"got one\nready# ", reason="prompt", prompt="none", marker="ready# ")
    s.run("two", None, out=b"got two\nready# ", reason="prompt", prompt="none", marker="ready# ")
    s.run("three", 0, out=b"got three\nready# ", prompt="none")  # nobody will answer: end of file


def test_on_stderr_too_and_with_a_line_end(s):
    command = f"{sys.executable} -c 'import sys; print(\"=END=\", file=sys.stderr, flush=True); input()'"
    s.run(command, None, out=b"", err=b"=END=\n", reason="prompt", prompt="none", marker="=END=\n")
    s.run("x", 0)


def test_what_only_passes_is_no_end(s):
    """Output that goes on behind it, and a command that ends with it."""
    s.run("printf '# '; echo on; sleep 0.1; echo off", 0, out=b"# on\noff\n", prompt="none", marker="# ")
    s.run("printf 'done# '", 0, out=b"done# ", prompt="none", marker="# ")
    s.run("echo 1; echo 2", 0, out=b"1\n2\n", prompt="none", marker="# ")


def test_over_the_edges_of_writes(s):
    command = "printf 'rea'; sleep 0.05; printf 'dy#'; read -r line; echo $line"
    s.run(command, None, out=b"ready#", reason="prompt", prompt="none", marker="ready#")
    s.run("on", 0, out=b"on\n")
