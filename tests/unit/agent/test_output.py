"""Output is kept until it is acknowledged, no more than a window of it, and can be taken up again."""

from __future__ import annotations

import pytest

from boxwood.engine.agent.run import WINDOW


def ack(office, ran):
    office.ask("run.ack", rid=ran.rid, out=len(ran.out), err=len(ran.err))


def test_slow_acknowledgement_holds_the_writer(s, office):
    office.acks = False
    size = 10_000_000
    ran = s.start(f"head -c {size} /dev/zero; echo end >&2")
    office.until(lambda: len(ran.out) >= WINDOW)
    for _ in range(5):
        office.loop.step(0.02)
    assert len(ran.out) <= WINDOW + (1 << 18) and ran.end is None
    while not ran.end:
        ack(office, ran)
        office.loop.step(0.5)
    assert ran.out == bytes(size) and ran.err == b"end\n" and ran.code == 0
    office.acks = True


def test_the_terminal_is_held_too(s, office):
    office.acks = False
    ran = s.start("yes > $(tty)", timeout=60)
    office.until(lambda: len(ran.out) >= WINDOW)
    for _ in range(20):
        office.loop.step(0.01)
    assert ran.end is None
    office.get("run.kill", rid=ran.rid)
    office.until(lambda: ran.end)
    assert WINDOW <= len(ran.out) <= WINDOW + (1 << 17) and ran.reason == "killed"
    office.acks = True


def test_a_run_ends_without_acknowledgement(s, office):
    """What the pipe still holds comes with the end."""
    office.acks = False
    size = WINDOW + 700_000
    ran = s.do(f"head -c {size} /dev/zero")
    assert len(ran.out) == size
    office.acks = True


def test_resume_after_a_new_link(s, office):
    office.acks = False
    ran = s.start("echo one; echo err >&2; sleep 0.3; echo two")
    office.until(lambda: ran.out and ran.err)
    office.linked = False
    office.until(lambda: office.desk._runs[ran.rid].end)
    office.linked = True
    office.desk.relink()
    known = {run["rid"]: run for run in office.hellos[-1]["runs"]}[ran.rid]
    assert known["sid"] == s.sid and known["end"]["code"] == 0 and (known["out"], known["err"]) == (8, 4)
    assert s.sid in office.hellos[-1]["sessions"]
    for out, err in (4, 4), (0, 0), (2, 1), (8, 4):
        ran.streams = [ran.streams[0][:out], ran.streams[1][:err]]
        ran.end = None
        assert office.get("run.resume", rid=ran.rid, out=out, err=err).errno is None
        assert (ran.out, ran.err, ran.code) == (b"one\ntwo\n", b"err\n", 0)
    ack(office, ran)
    ran.end = None
    assert office.get("run.resume", rid=ran.rid, out=0, err=0).errno is None
    assert (ran.out, ran.err, ran.code) == (b"one\ntwo\n", b"err\n", 0), "what was acknowledged is not kept"
    with pytest.raises(ValueError, match="offset"):
        office.ask("run.resume", rid=ran.rid, out=9, err=0)
    office.ask("run.forget", rid=ran.rid)
    assert office.get("run.resume", rid=ran.rid, out=8, err=4).errno is not None
    office.acks = True


def test_nothing_flows_before_it_is_asked_for(s, office):
    ran = s.start("echo one; sleep 0.2; echo two; sleep 0.2; echo three")
    office.until(lambda: ran.out)
    office.linked = False
    office.until(lambda: office.desk._runs[ran.rid].outputs[0].end >= 8)
    office.linked = True
    office.desk.relink()
    assert ran.out == b"one\n"
    office.get("run.resume", rid=ran.rid, out=4, err=0)
    s.wait(ran)
    assert ran.out == b"one\ntwo\nthree\n"


def test_states_are_told_again(s, office):
    s.run("x=1")
    state = s.state()
    office.states.clear()
    office.desk.relink()
    assert office.states[s.sid] == state


def test_late_output_is_dropped(s, office):
    s.run("exec 7>&1; (exit 0)")
    s.run(
        "echo mine; i=0; while [ $i -lt 3000 ]; do echo 'a line for a run that is over'; i=$((i+1)); done >&7",
        out=b"mine\n",
    )
    s.run("exec 7>&-")


def test_finished_runs_are_bounded(s, office):
    for _ in range(300):
        s.do("true")
    assert len(office.desk.hello()["runs"]) <= 200


def test_senseless_requests(s, office):
    good = {"rid": "A" * 26, "sid": s.sid, "stdin": None}
    for bad in (
        {"rid": "../x"}, {"rid": 5}, {"timeout": "1"}, {"timeout": -1}, {"stdin": 99}, {"stdin": True}, {"prompt": "x"},
        {"env": {"A": 1}}, {"env": {"A\0": "x"}}, {"env": {"": "x"}}, {"env": {"A=": "x"}}, {"env": []}, {"cwd": 5},
        {"cwd": "a\0b"}, {"user": 7, "env": {}},
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError, KeyError)):
            office.ask("run.start", b"true", **{**good, **bad})
    with pytest.raises(ValueError, match="NUL"):
        office.ask("run.start", b"tr\0ue", **good)
    assert office.ask("run.start", b"true", rid="B" * 26, sid="C" * 26, stdin=None).errno is not None
    assert office.ask("no.such", b"").errno is not None
    assert office.ask("run.kill", rid="D" * 26).errno is not None
    for signum in 0, 65, True, "9":
        with pytest.raises(ValueError, match="signal"):
            office.ask("run.signal", rid="D" * 26, signal=signum)
    s.run("echo fine", out=b"fine\n")
