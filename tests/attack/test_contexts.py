"""Source that turns on the interpreter that runs it: what it says in that one's place is bounded, checked, and harms no
other VM."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from amounts import amount
from attack.test_streams import resident
from boxwood import VM, Session
from servers import Server

# The descriptor of a kind, as seen from a run: the way to the agent, or that for reports.
FIND = """
import gc, os, stat
interpreter = next(o for o in gc.get_objects() if type(o).__name__ == "Interpreter")
control, reports = interpreter.control, interpreter.reports.fd
def say(data):
    while data: data = data[os.write(reports, data):]
"""


@pytest.fixture(scope="module")
def vm(boxwood_server: Server) -> Iterator[VM]:
    with boxwood_server.client() as box, box.fork("ubuntu") as vm:
        yield vm


@pytest.fixture
def ctx(vm: VM) -> Iterator[Session]:
    with vm.python() as ctx:
        yield ctx


FORGED = (
    "b'not json\\n'",
    "b'{}\\n'",
    "b'[]\\n'",
    "b'\\xff\\xfe\\n'",
    "b'\\0' * 100 + b'\\n'",
    """b'{"result": 5}\\n'""",
    """b'{"result": {"kind": "value"}}\\n'""",
    """b'{"result": {"kind": "evil", "data": {}}}\\n'""",
    """b'{"result": {"kind": "value", "data": {"a/b": ' + b'[' * 100_000 + b']' * 100_000 + b'}}}\\n'""",
    """b'{"result": {"kind": "value", "data": {"a/b": ' + b'[' * 500 + b']' * 500 + b'}}}\\n'""",
    """b'{"error": {"name": "N", "value": "", "traceback": "", "frames": ' + b'[' * 9000 + b'}}\\n'""",
    """b'{"error": {"name": "N", "value": "", "traceback": "", "frames": [{"file": "", "line": 1e99, "name": ""}]}}\\n'""",
    """b'{"dropped": -5}\\n'""",
    """b'{"result": {"kind": "value", "data": {"a/b": "\\\\ud800"}}}\\n'""",
)


def test_forged_reports_are_left_out_and_counted(ctx: Session) -> None:
    for forged in FORGED:
        done = ctx.run(f"{FIND}\nsay({forged})\n'real'")
        assert done.exit_code == 0, (forged, done.stderr)
        assert ([result.text for result in done.results], done.results_lost) == (["'real'"], 1), forged
        assert len(list(ctx.vm.get_run(done.run_id).events())) >= 4, ("the stream leaves it out too", forged)


def test_a_forged_context_is_not_believed(ctx: Session) -> None:
    """What the agent says of the interpreter comes first and stays."""
    done = ctx.run(FIND + """say(b'{"context": {"new": false, "number": 99, "lost": "forged"}}\\n')""")
    assert done.context is not None and (done.context.new, done.context.number, done.context.lost) == (True, 1, None)


def test_reports_without_end_cost_the_server_no_memory(boxwood_server: Server, ctx: Session) -> None:
    before = resident(boxwood_server.pid)
    done = ctx.run(
        FIND + f"line = b'x' * (1 << 20)\nfor _ in range({amount(100, 200)}): say(line)\nsay(b'\\n')\nprint('done')",
        timeout=60,
    )
    assert (done.state, done.stdout) == ("completed", "done\n")
    assert resident(boxwood_server.pid) - before < 64
    assert ctx.run("1").result.text == "1"


@pytest.mark.parametrize(
    "word",
    [
        "b'done 1 999'",
        pytest.param("b'done x'", marks=pytest.mark.full),
        "b'ready'",
        pytest.param("b'x' * 60_000", marks=pytest.mark.full),
        "b'done 1 0\\0' + b'=' * 60_000",
    ],
)
def test_forged_words_to_the_agent_end_the_run_or_the_context(vm: VM, ctx: Session, word: str) -> None:
    """And nothing else: the VM goes on, as does another context in it."""
    with vm.python() as other:
        other.run("x = 1")
        run = ctx.run(f"{FIND}\ncontrol.send({word})\nimport time\ntime.sleep(1000)", timeout=amount(0.5, 1))
        assert run.ended
        ctx.run("0", timeout=amount(0.5, 1))  # one that has said its end too early is interrupted in its place
        assert ctx.run("5").result.text == "5"
        assert other.run("x").result.text == "1"


def test_an_end_that_is_said_too_early_does_not_mix_runs_up(ctx: Session) -> None:
    """The interpreter goes on with code that it said was over: its output is nobody's, and the next run has its own."""
    early = ctx.run(
        f"{FIND}\ncontrol.send(b'done 1 7')\nimport time\nfor _ in range(200): print('late'); time.sleep(0.001)"
    )
    assert early.exit_code == 7
    assert "late" not in ctx.run("print('mine')").stdout


def test_a_context_cannot_be_reached_from_another_vm(boxwood_server: Server, ctx: Session) -> None:
    run = ctx.run("'secret'")
    with boxwood_server.client() as box, box.fork("ubuntu") as stranger:
        url = f"{boxwood_server.url}/v1/vms/{stranger.id}"
        headers = {"authorization": f"Bearer {boxwood_server.key}"}
        for path in (f"sessions/{ctx.id}", f"runs/{run.run_id}", f"runs/{run.run_id}/events"):
            assert httpx2.get(f"{url}/{path}", headers=headers).status_code == 404
        body = {"command": "1", "session_id": ctx.id}
        assert httpx2.post(f"{url}/runs", headers=headers, json=body).status_code == 404


def test_what_is_planted_for_python_is_the_vms_own_matter(vm: VM, ctx: Session) -> None:
    """A sitecustomize, a python3 along PATH: they run in the box, as what they are, and nowhere else."""
    vm.run(
        "mkdir -p /root/bin && printf '#!/bin/sh\\necho planted\\nexit 3' > /root/bin/python3 && chmod +x /root/bin/python3"
    )
    with vm.create_session(kind="python", env={"PATH": "/root/bin:/usr/bin:/bin"}) as planted:
        done = planted.run("1")
        assert (done.state, done.exit_code, done.stdout) == ("failed", 3, "planted\n")
    assert ctx.run("1").exit_code == 0
