"""Standard input that is given bit by bit: to commands in a session, beside it, and to programs without a shell."""

from __future__ import annotations

import errno
import os

import pytest

from boxwood.engine.agent import intake

KINDS = {
    "in the session": (lambda text: (text.encode(), {})),
    "beside it": (lambda text: (text.encode(), {"env": {}})),
    "without a shell": (lambda text: (b"sh\0-c\0" + text.encode() + b"\0", {"env": {}, "argv": True})),
}


@pytest.fixture(params=KINDS)
def begin(request, s):
    def begin(text, stdin=None, **how):
        command, more = KINDS[request.param](text)
        return s.start(command, stdin=stdin, open=True, **more, **how)

    return begin


def give(s, ran, data=b"", at=None, eof=False):
    return s.office.get("run.stdin", data, rid=ran.rid, at=at, eof=eof)


def ended(s, ran, code=0):
    s.wait(ran)
    assert (ran.code, ran.reason) == (code, "exit"), ran
    return ran.out


def test_what_is_given_is_read_when_it_is_given(s, begin):
    ran = begin("while read -r line; do echo got $line; done; echo end")
    for number in range(3):
        assert give(s, ran, b"line %d\n" % number).fields["at"] == 7 * (number + 1)
        s.office.until(lambda: ran.out.count(b"got") == number + 1)  # noqa: B023
    assert give(s, ran, eof=True).fields["at"] == 21
    assert ended(s, ran) == b"got line 0\ngot line 1\ngot line 2\nend\n"


def test_the_beginning_may_come_with_the_run(s, begin):
    ran = begin("cat", b"first ")
    assert give(s, ran, b"second", eof=True).fields["at"] == 12
    assert ended(s, ran) == b"first second"


def test_what_is_given_twice_is_taken_once(s, begin):
    ran = begin("cat")
    assert give(s, ran, b"abc", at=0).fields["at"] == 3
    assert give(s, ran, b"abc", at=0).fields["at"] == 3
    assert give(s, ran, b"bcde", at=1).fields["at"] == 5
    refused = give(s, ran, b"x", at=6)
    assert refused.errno == errno.EINVAL and "at byte 5, not at 6" in refused.text
    assert give(s, ran, b"de", at=3, eof=True).fields["at"] == 5
    assert ended(s, ran) == b"abcde"


def test_any_bytes_and_more_than_a_pipe_holds(s, begin):
    data = os.urandom(3 << 20)
    ran, at = begin("cat"), 0
    while at < len(data):
        at = give(s, ran, data[at : at + 300_000], at).fields["at"]
    give(s, ran, at=at, eof=True)
    assert ended(s, ran) == data


def fill(s, ran):
    """Until no more is taken: how much that was."""
    at = 0
    while taken := give(s, ran, b"x" * 500_000, at).fields["at"] - at:
        at += taken
    return at


def test_no_more_is_held_than_there_is_room_for(s, begin, work, monkeypatch):
    monkeypatch.setattr(intake, "_PATIENCE", 0.02)
    ran = begin(f"echo begun; until [ -e {work}/go ]; do sleep 0.01; done; wc -c")
    s.office.until(lambda: ran.out)
    at = fill(s, ran)
    assert intake.HELD <= at <= intake.HELD + (1 << 20)
    monkeypatch.setattr(intake, "_PATIENCE", 60)
    waiting = s.office.ask("run.stdin", b"y", rid=ran.rid, at=at, eof=False)
    assert not waiting.done
    (work / "go").touch()
    s.office.until(lambda: waiting.done)
    assert waiting.fields == {"at": at}  # now there is room
    give(s, ran, at=at, eof=True)
    assert int(ended(s, ran).removeprefix(b"begun\n")) == at


def test_who_waits_for_room_hears_of_the_end(s, begin, monkeypatch):
    monkeypatch.setattr(intake, "_PATIENCE", 0.02)
    ran = begin("echo begun; sleep 100")
    s.office.until(lambda: ran.out)
    at = fill(s, ran)
    monkeypatch.setattr(intake, "_PATIENCE", 60)
    waiting = s.office.ask("run.stdin", b"y", rid=ran.rid, at=at, eof=False)
    s.office.get("run.kill", rid=ran.rid)
    s.wait(ran)
    assert ran.reason == "killed" and waiting.fields == {"at": at}


def test_the_end_before_anybody_has_read(s, begin):
    ran = begin("sleep 0.1; cat; echo end")
    give(s, ran, b"given", eof=True)
    assert ended(s, ran) == b"givenend\n"


def test_nobody_reads_it(s, begin):
    ran = begin("true")
    assert ended(s, ran) == b""
    assert give(s, ran, b"x").errno in (errno.EPIPE, errno.ENOENT)
    assert give(s, ran, eof=True).errno in (None, errno.ENOENT)


def test_after_its_end_there_is_no_more(s, begin):
    ran = begin("cat; sleep 0.2")
    give(s, ran, b"a", eof=True)
    assert give(s, ran, eof=True).fields["at"] == 1
    refused = give(s, ran, b"b")
    assert refused.errno == errno.EPIPE and "closed" in refused.text
    assert ended(s, ran) == b"a"


def test_an_input_that_is_not_open(s):
    ran = s.start("cat; sleep 0.2", stdin=b"x")
    assert give(s, ran, b"y").errno == errno.EPIPE
    assert ended(s, ran) == b"x"


def test_a_prompt_does_not_end_it(s, begin):
    ran = begin("printf 'name? '; read -r name; echo hello $name")
    s.office.until(lambda: ran.out == b"name? ")
    give(s, ran, b"box\n")
    assert ended(s, ran) == b"name? hello box\n"


def test_it_stays_open_over_a_new_link(s, begin):
    ran = begin("cat")
    give(s, ran, b"one ")
    s.office.until(lambda: ran.out == b"one ")
    s.office.desk.relink()
    s.office.ask("run.resume", rid=ran.rid, out=len(ran.out), err=0)
    give(s, ran, b"two", at=4, eof=True)
    assert ended(s, ran) == b"one two"


def test_a_run_that_cannot_be_started_leaves_nothing(s):
    refused = s.start("cat", open=True, env={}, cwd="/no/such")
    assert refused.started.errno == errno.ENOENT  # the office counts descriptors
