"""Python contexts, as the agent has them; what is run in them is in attack/test_contexts."""

from __future__ import annotations

import errno
import os
import socket

import pytest

pytestmark = pytest.mark.parametrize("office", ["bash"], indirect=True)


@pytest.fixture
def context(office, work):
    return office.context(work)


def test_variables_outlive_a_run_that_could_not_begin(context, monkeypatch):
    """What the agent lacks for the moment says nothing of the interpreter."""
    assert context.run("x = 1").code == 0

    def none(name, flags=0):
        raise OSError(errno.EMFILE, "no more descriptors")

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", none)
        assert context.start("x = 2").started.errno == errno.EMFILE
    ran = context.run("print(x)")
    assert (ran.code, ran.out) == (0, b"1\n")
    assert b'"new": false, "number": 2, "lost": null' in ran.streams[2]


def test_an_interpreter_that_does_not_listen_is_replaced(context):
    context.run("x = 1")
    context.inside._interpreter._sock.shutdown(socket.SHUT_RDWR)
    assert context.start("x").started.errno is not None
    context.office.until(lambda: not context.inside.alive)
    ran = context.run("print('x' in globals())")
    assert (ran.code, ran.out) == (0, b"False\n")
    assert b'"new": true, "number": 1' in ran.streams[2]


def test_a_run_that_waits_for_the_last_interpreter_to_die_is_not_killed_with_it(context):
    for _ in range(5):
        context.run("import os, time; x = 1; os.fork() or time.sleep(100)")
        context.inside._end_all()  # as when code does not stop
        ran = context.run("print('x' in globals())")
        assert (ran.code, ran.out) == (0, b"False\n"), ran
        assert b'"new": true, "number": 1' in ran.streams[2]
