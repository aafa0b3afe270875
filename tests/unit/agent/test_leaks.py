"""The agent lives as long as its box: what it refuses leaves nothing open."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from boxwood.engine.agent import deeds, dialects, files, forks, learner, place
from boxwood.engine.agent.flushes import Flushes
from boxwood.engine.agent.loop import Loop
from boxwood.engine.agent.receiving import Receiving


@pytest.fixture
def open_before():
    """How many descriptors there are now; as many are there in the end."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_what_is_mounted_is_not_described(open_before, monkeypatch, tmp_path):
    def refuse(directory, shown):
        if shown.endswith("/below"):
            raise files.Refusal(errno.EACCES, "not on the VM's disk")

    (tmp_path / "below").mkdir()
    monkeypatch.setattr(place, "check_on_disk", refuse)
    for do in (deeds.status, deeds.remove):
        with pytest.raises(files.Refusal):
            do({"path": f"{tmp_path}/below"})


@pytest.mark.parametrize("start", [lambda f: f.manifest({}, None), lambda f: f.unpack({}, 0, None)])
def test_no_process_can_be_had(open_before, monkeypatch, start):
    loop = Loop()
    work = forks.Forks(loop)

    def none():
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", none)
    for _ in range(forks.MOST + 1):  # and none of them counts
        with pytest.raises(BlockingIOError):
            start(work)
    loop.close()


def opened():
    return sorted(map(int, os.listdir("/proc/self/fd")))


@pytest.mark.parametrize("office", ["bash"], indirect=True)
@pytest.mark.parametrize("kind", ["session", "beside", "program", "terminal"])
def test_however_far_a_start_comes_before_there_are_no_descriptors_left(office, work, kind):
    """It is refused, leaves none open in the end (see `office`), and the next one is as if it had not been."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    s = office.session(work=work)
    s.run("exit" if kind == "session" else "true")  # then it needs another shell
    office.settle()
    before, refused = opened(), 0

    def start():
        if kind == "terminal":
            return s.pty(["true"]).answer
        how = {"session": {}, "beside": {"env": {"y": "2"}}, "program": {"env": {}, "argv": True}}[kind]
        return s.start(b"true\0" if kind == "program" else "true", **how).started

    for most in range(before[-2] + 1, before[-2] + 60):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        answer = start()
        office.until(lambda answer=answer: answer.done)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if answer.errno is None:
            break
        refused += 1
        assert answer.errno in (errno.EMFILE, errno.ENOEXEC), answer.text  # the shell has no more than we
        assert opened() == before or kind == "session", most  # which keeps what it has got, until it is closed
    assert refused >= 2 and answer.errno is None
    office.until(lambda: all(ran.end is not None or ran.started.errno is not None for ran in office.runs.values()))


def test_no_pipe_can_be_had_to_learn_a_function(open_before, monkeypatch):
    loop = Loop()
    learning = learner.Learner(loop, lambda found: None)

    def none(*flags):
        raise OSError(errno.EMFILE, "no more descriptors")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe2", none)
        learning.learn(b"/bin/sh", dialects.Posix(b"sh"), b"f() { :; }")
    assert not learning.busy
    loop.close()


def test_who_learns_holds_nothing_of_the_agents_open(monkeypatch):
    """Else the end of a pipe would be heard of only when he has ended, which may take seconds."""
    loop, found = Loop(), {}
    held = os.open("/dev/null", os.O_RDONLY)

    def parses(exe, kind, text):
        os.fstat(held)
        return True

    monkeypatch.setattr(learner, "_parses", parses)
    learning = learner.Learner(loop, found.update)
    learning.learn(b"/bin/sh", dialects.Posix(b"sh"), b"f() { :; }")
    while learning.busy or learning._alive:
        loop.step()
    os.close(held)
    loop.close()
    assert found == {}


def test_a_file_that_cannot_be_made_is_named_as_it_was_asked_for(open_before, monkeypatch, tmp_path):
    really = os.open

    def full(path, flags, *more, **at):
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return really(path, flags, *more, **at)

    monkeypatch.setattr(files, "check_on_disk", lambda directory, shown: None)
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="No space left") as refused:
        files.Writing(f"{tmp_path}/f", None)
    assert refused.value.filename == f"{tmp_path}/f"


def test_no_descriptor_can_be_had_for_a_file_that_comes(open_before, monkeypatch, tmp_path):
    loop = Loop()
    receiving = Receiving(loop, Flushes(loop))
    monkeypatch.setattr(files, "check_on_disk", lambda directory, shown: None)
    reader, writer = os.pipe()

    def none(fd):
        raise OSError(errno.EMFILE, "no more descriptors")

    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", none)
        with pytest.raises(OSError, match="no more"):
            receiving.ops["file.receive"]({"id": "A1", "path": f"{tmp_path}/f"}, [reader], None)
    for fd in (reader, writer):
        os.close(fd)
    loop.close()
    assert os.listdir(tmp_path) == []
