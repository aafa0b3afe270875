"""Python contexts on a real server with real boxes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from boxwood import (
    VM,
    AsyncBoxwood,
    BadRequest,
    PythonContext,
    PythonError,
    PythonResult,
    RunExited,
    RunOutput,
    Session,
)
from commandline import Command
from servers import Server


@pytest.fixture(scope="module")
def vm(boxwood_server: Server) -> Iterator[VM]:
    with boxwood_server.client() as box, box.fork("ubuntu") as vm:
        yield vm


@pytest.fixture
def ctx(vm: VM) -> Iterator[Session]:
    with vm.python() as ctx:
        yield ctx


def interrupted(ctx: Session, code: str, word: str = "here\n", **how: object) -> list[object]:
    """Its events; SIGINT when it has said the word."""
    events = []
    for event in ctx.run_stream(code, **how):  # type: ignore[arg-type]
        events.append(event)
        if isinstance(event, RunOutput) and event.text == word:
            ctx.interrupt()
    return events


def test_variables_live_on_and_values_are_results(ctx: Session) -> None:
    assert ctx.kind == "python"
    first = ctx.run("import math\nx = 20\ndef twice(n):\n    return 2 * n\nprint('hello')")
    assert (first.exit_code, first.stdout, first.stderr, first.results, first.error) == (0, "hello\n", "", [], None)
    assert first.context == PythonContext(new=True, number=1, lost=None)
    second = ctx.run("twice(x) + math.floor(2.5)")
    assert second.result is not None and second.result.text == "42" and second.results[0].kind == "value"
    assert second.context == PythonContext(new=False, number=2, lost=None)
    assert ctx.run("_ + 1").result == PythonResult("value", {"text/plain": "43"})
    assert ctx.run("x = 5\nx;").results == []
    assert ctx.refresh().cwd == "/root"


def test_an_exception_is_told_with_its_frames(ctx: Session) -> None:
    done = ctx.run("def f(n):\n    return 1 / n\nf(0)")
    assert (done.state, done.exit_code, done.fail_reason) == ("completed", 1, None)
    error = done.error
    assert error is not None and (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert [(f.file, f.line, f.name, f.source) for f in error.frames] == [
        ("<run 1>", 3, "<module>", "f(0)"),
        ("<run 1>", 2, "f", "return 1 / n"),
    ]
    assert error.traceback == done.stderr and error.traceback.startswith("Traceback (most recent call last):\n")
    wrong = ctx.run("x = 3\ny = = 4")
    assert wrong.exit_code == 1 and wrong.error is not None and wrong.error.name == "SyntaxError"
    assert (wrong.error.frames[-1].line, wrong.error.frames[-1].source) == (2, "y = = 4")
    assert ctx.run("'x' in globals()").result.text == "False", "nothing of what cannot be compiled is executed"


def test_ends_that_are_none_of_the_context(ctx: Session) -> None:
    ctx.run("kept = 1")
    assert ctx.run("import sys; sys.exit(3)").exit_code == 3
    assert ctx.run("exit()").exit_code == 0
    said = ctx.run("sys.exit('no')")
    assert (said.exit_code, said.stderr, said.error) == (1, "no\n", None)
    forked = ctx.run("import os\nif os.fork():\n    os.wait()\nprint('me')\n1 / 0")
    assert (forked.stdout, forked.exit_code) == ("me\nme\n", 1)
    assert forked.error is not None and len(forked.results) == 0
    assert ctx.run("kept").result.text == "1"


def test_representations(ctx: Session) -> None:
    ctx.run("""
class Rich:
    def _repr_html_(self): return "<b>ü</b>"
    def _repr_png_(self): return bytes([0x89, 0, 255])
    def _repr_svg_(self): return "<svg/>"
    def _repr_markdown_(self): return "**b**"
    def _repr_json_(self): return {"a": [1]}
    def _repr_latex_(self): raise ValueError("broken")
    def __repr__(self): return "rich"
""")
    done = ctx.run("display(1, 'two')\nRich()")
    one, two, rich = done.results
    assert (one.kind, one.text, two.text) == ("display", "1", "'two'")
    assert (rich.text, rich.html, rich.svg, rich.markdown) == ("rich", "<b>ü</b>", "<svg/>", "**b**")
    assert (rich.png, rich.json, rich.latex) == (b"\x89\0\xff", {"a": [1]}, None)
    assert "_repr_latex_ failed: ValueError: broken" in done.stderr and done.exit_code == 0
    assert ctx.run("{'a': [1, None, 'x']}").result.json == {"a": [1, None, "x"]}


def test_standard_input(ctx: Session) -> None:
    assert ctx.run("input('name? ') + input()", stdin="bo\nb\n").result.text == "'bob'"
    assert ctx.run("input()").error.name == "EOFError", "the rest of the last run's is not there"
    begun = ctx.run("import sys\nfor line in sys.stdin: print(line.upper(), end='')", stdin_open=True, background=True)
    begun.write_stdin("one\n")
    for event in begun.events():
        if isinstance(event, RunOutput):
            assert event.text == "ONE\n"
            begun.close_stdin()
    assert begun.refresh().exit_code == 0


def test_all_that_is_written_is_there_byte_for_byte(ctx: Session) -> None:
    done = ctx.run(
        "import ctypes, os, subprocess, sys\n"
        "sys.stdout.write('py;'); sys.stdout.flush()\n"
        "ctypes.CDLL(None).printf(b'C;'); ctypes.CDLL(None).fflush(None)\n"
        "os.write(1, bytes([0, 255]))\nsubprocess.run(['printf', 'sub'])\n"
        "ctypes.CDLL(None).puts(b'late')\nos.write(2, b'e\\xff')"
    )
    assert (done.stdout_bytes, done.stderr_bytes) == (b"py;C;\0\xffsublate\n", b"e\xff")
    many = ctx.run("sys.stdout.buffer.write(bytes(range(256)) * 40_000);")
    assert many.stdout_bytes == bytes(range(256)) * 40_000
    assert ctx.run("sys.stdout.close()").exit_code == 0
    assert ctx.run("print('again')").stdout == "again\n"


def test_await_outside_of_functions(ctx: Session) -> None:
    assert ctx.run("import asyncio\nawait asyncio.sleep(0)\nawait asyncio.sleep(0, 'slept')").result.text == "'slept'"
    ctx.run("task = asyncio.get_event_loop_policy().get_event_loop().create_task(asyncio.sleep(0, 7))")
    assert ctx.run("await task").result.text == "7"


def test_an_interrupt_leaves_the_context(ctx: Session) -> None:
    ctx.run("kept = 'still here'")
    for code in (
        "print('here')\nwhile True: pass",
        "import asyncio\nprint('here')\nawait asyncio.sleep(1000)",
        "import subprocess\nsubprocess.run('echo here; sleep 1000', shell=True)",
    ):
        events = interrupted(ctx, code, timeout=60)
        assert isinstance(events[-1], RunExited) and events[-1].exit_code == 1
        assert [event.name for event in events if isinstance(event, PythonError)] == ["KeyboardInterrupt"]
    after = ctx.run("kept")
    assert after.result.text == "'still here'" and after.context == PythonContext(False, 5, None)


def test_a_timeout_leaves_the_context_if_the_code_stops(ctx: Session) -> None:
    ctx.run("kept = 1")
    late = ctx.run(
        "import time, subprocess\np = subprocess.Popen(['sleep', '1000'], start_new_session=True)\ntime.sleep(1000)",
        timeout=0.3,
    )
    assert (late.state, late.fail_reason) == ("failed", "timed out after 0.3 s")
    assert late.error is not None and late.error.name == "KeyboardInterrupt"
    assert ctx.run("kept, p.wait()").result.text == "(1, -9)"
    deaf = ctx.run("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", timeout=0.3)
    assert deaf.state == "failed" and "did not stop and was killed, and its variables are lost" in deaf.fail_reason
    new = ctx.run("'kept' in globals()")
    assert new.result.text == "False" and new.context is not None and new.context.new
    assert new.context.lost == "the interpreter did not stop when its run had timed out, and was killed"


def test_cancel(ctx: Session) -> None:
    ctx.run("kept = 1")
    begun = ctx.run("print('here')\nwhile True: pass", background=True)
    for event in begun.events():
        if isinstance(event, RunOutput):
            assert begun.cancel() is True
            break
    assert begun.refresh().state == "cancelled"
    assert ctx.run("kept").context == PythonContext(False, 3, None)


@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        ("import os; print('last', flush=True); os._exit(3)", 3, "ended with exit code 3"),
        ("import ctypes; print('last', flush=True); ctypes.string_at(0)", 139, "was killed by signal 11"),
        pytest.param(
            "import os; print('last', flush=True); os.kill(os.getpid(), 9)",
            137,
            "was killed by signal 9",
            marks=pytest.mark.full,
        ),
        pytest.param(
            "import os; print('last', flush=True); os.execvp('sh', ['sh', '-c', 'exit 5'])",
            5,
            "ended with exit code 5",
            marks=pytest.mark.full,
        ),
    ],
)
def test_what_ends_the_interpreter_is_told_twice(ctx: Session, code: str, exit_code: int, reason: str) -> None:
    ctx.run("kept = 1\nimport subprocess\nchild = subprocess.Popen(['sleep', '4321'])")
    done = ctx.run(code)
    assert (done.state, done.exit_code, done.stdout) == ("failed", exit_code, "last\n")
    assert done.fail_reason.startswith(f"the interpreter {reason}, and its variables are lost")
    new = ctx.run("'kept' in globals()")
    assert new.result.text == "False" and new.context == PythonContext(True, 1, f"the interpreter {reason}")
    assert ctx.vm.run("pgrep -f 'sleep 4321'", env={}).stdout == "", "what it had started goes with it"
    assert ctx.run("1").context == PythonContext(False, 2, None)


def test_what_a_run_leaves_is_not_the_next_ones(ctx: Session) -> None:
    """Processes and threads live on in the context; what they write between runs, or into an older one, is nobody's."""
    ctx.run("import subprocess, threading\np = subprocess.Popen('while echo noise; do sleep 0.01; done', shell=True)")
    assert ctx.run("print('mine')").stdout == "mine\n"
    assert ctx.run("p.poll() is None").result.text == "True"
    said = ctx.run("seen = threading.Event()\nthreading.Thread(target=lambda: (seen.wait(), print('late'))).start()")
    assert said.stdout == ""
    assert ctx.run("seen.set()\nimport time\nwhile threading.active_count() > 1: time.sleep(0.01)").stdout == "late\n"


def test_daemons_are_reaped(ctx: Session) -> None:
    """They come back to somebody who waits for them: a context that starts many does not fill up with the dead."""
    daemons = (
        "import os\nfor _ in range(20):\n    if not os.fork():\n        os.fork()\n        os._exit(0)\n    os.wait()"
    )
    assert ctx.run(daemons).exit_code == 0
    count = "until ! grep -qs '^State:.Z' /proc/[0-9]*/status; do sleep 0.01; done"
    assert ctx.vm.run(count, env={}, timeout=30).exit_code == 0


def test_results_that_are_too_large_are_cut_and_said_to_be(ctx: Session) -> None:
    text = ctx.run("'x' * 1_000_000").result
    assert text is not None and len(text.text or "") == 256 << 10 and text.truncated == {"text/plain": 1_000_002}
    ctx.run("class Big:\n    def _repr_html_(self): return 'x' * (5 << 20)\n    def __repr__(self): return 'big'")
    big = ctx.run("Big()").result
    assert big is not None and (big.text, big.html, big.truncated) == ("big", None, {"text/html": 5 << 20})
    many = ctx.run("for _ in range(100): display('y' * 200_000)")
    assert many.exit_code == 0 and 30 < len(many.results) < 100
    assert len(many.results) + many.results_lost == 100
    assert len(ctx.run("for n in range(3000): display(n)").results) == 1000


def test_events(ctx: Session) -> None:
    events = list(ctx.run_stream("print('out')\ndisplay(1)\n1 / 0"))
    kinds = [type(event).__name__ for event in events]
    assert kinds[0] == "RunStarted" and kinds[-1] == "RunExited"
    assert [event for event in events if isinstance(event, PythonContext)] == [PythonContext(True, 1, None)]
    assert [event.text for event in events if isinstance(event, PythonResult)] == ["1"]
    assert [event.name for event in events if isinstance(event, PythonError)] == ["ZeroDivisionError"]
    run = ctx.vm.get_run(events[0].run_id)  # type: ignore[union-attr]
    again = list(run.events())
    assert [e for e in again if isinstance(e, PythonResult | PythonError | PythonContext)] == [
        e for e in events if isinstance(e, PythonResult | PythonError | PythonContext)
    ]
    assert run.error is not None and run.results[0].text == "1"


def test_a_stream_goes_on_where_it_was(boxwood_server: Server, ctx: Session) -> None:
    """Its ids say how far reports have been told: none is told twice, none is left out."""
    run = ctx.run("for n in range(5): display(n)")
    path = f"{boxwood_server.url}/v1/vms/{ctx.vm.id}/runs/{run.run_id}/events"
    headers = {"authorization": f"Bearer {boxwood_server.key}"}
    whole = httpx2.get(path, headers=headers).text
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in whole.strip().split("\n\n")]
    for number, block in enumerate(blocks[:-1]):
        rest = httpx2.get(path, headers={**headers, "last-event-id": block["id"]}).text
        kinds = [line for line in rest.split("\n") if line.startswith("event: result")]
        assert len(kinds) == sum(later["event"] == "result" for later in blocks[number + 1 :]), block


def test_what_a_context_cannot_be_given(ctx: Session) -> None:
    for how in ({"env": {"A": "b"}}, {"cwd": "/tmp"}, {"user": "nobody"}):
        with pytest.raises(BadRequest, match="not in a Python context"):
            ctx.vm.run("1", session=ctx, **how)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="kind"):
        ctx.vm.create_session(kind="ruby")


def test_without_python_it_is_said_how_to_get_it(boxwood_server: Server) -> None:
    with boxwood_server.client() as box, box.fork("ubuntu") as vm, vm.python(env={"PATH": "/nowhere"}) as ctx:
        done = ctx.run("1")
        assert done.state == "failed" and "there is no python3 in this VM: install it" in (done.fail_reason or "")
        assert done.results == [] and done.stdout == ""


def test_a_fork_has_no_interpreter_and_says_so(boxwood_server: Server) -> None:
    """Directory and environment go over, variables do not; the source keeps its own."""
    with boxwood_server.client() as box, box.fork("ubuntu") as vm:
        ctx = vm.python()
        ctx.run("import os\nos.chdir('/tmp')\nos.environ['WHO'] = 'me'\nkept = 1")
        with vm.fork() as fork:
            other = next(session for session in fork.sessions() if session.kind == "python")
            done = other.run("import os\n'kept' in globals(), os.getcwd(), os.environ['WHO']")
            assert done.result.text == "(False, '/tmp', 'me')"
            assert done.context is not None and done.context.new
            assert done.context.lost and "forked" in done.context.lost
        assert ctx.run("kept").context == PythonContext(False, 2, None)


def test_shells_know_nothing_of_it(boxwood_server: Server, vm: VM) -> None:
    """Members of contexts are in no answer about shells: strict clients reject what they do not know."""
    headers = {"authorization": f"Bearer {boxwood_server.key}"}
    url = f"{boxwood_server.url}/v1/vms/{vm.id}"
    session = httpx2.post(f"{url}/sessions", headers=headers, json={}).json()
    run = httpx2.post(
        f"{url}/runs", headers=headers, json={"command": "true", "session_id": session["session_id"]}
    ).json()
    again = httpx2.get(f"{url}/runs/{run['run_id']}", headers=headers).json()
    for told in (session, run, again):
        assert not {"kind", "results", "exception", "context", "results_lost"} & told.keys()
    events = httpx2.get(f"{url}/runs/{run['run_id']}/events", headers=headers).text
    assert "id: 0.0\n" in events, "ids as they were"


async def test_awaitable(boxwood_server: Server) -> None:
    async with AsyncBoxwood(url=boxwood_server.url, api_key=boxwood_server.key) as box, await box.fork("ubuntu") as vm:
        one, two = await vm.python(), await vm.python(cwd="/tmp")
        done = await asyncio.gather(one.run("x = 1"), two.run("x = 2\nimport os\nos.getcwd()"))
        assert done[1].result is not None and done[1].result.text == "'/tmp'"
        said = [event async for event in one.run_stream("x")]
        assert [event.text for event in said if isinstance(event, PythonResult)] == ["1"]


def test_runs_wait_their_turn(ctx: Session) -> None:
    done = []
    threads = [
        threading.Thread(target=lambda n=n: done.append(ctx.run(f"l = globals().get('l', []) + [{n}]\nlen(l)")))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run.result.text for run in done) == [str(n) for n in range(1, 9)]


@pytest.mark.parametrize("before", ["print('a')", "print('a', end='')", "print('a' * 6_000_000)", "os.write(2, b'a')"])
def test_what_was_printed_before_a_result_is_told_before_it(ctx: Session, before: str) -> None:
    """More of it than is sent at once, too; to who listens while it runs, and to who comes later."""
    events = list(ctx.run_stream(f"import os, sys\n_ = {before}\n7"))
    kinds = [type(event) for event in events if isinstance(event, RunOutput | PythonResult | PythonContext)]
    assert kinds == [PythonContext, *[RunOutput] * (len(kinds) - 2), PythonResult] and len(kinds) > 2
    again = [
        event for event in ctx.vm.get_run(events[-1].run_id).events() if isinstance(event, RunOutput | PythonResult)
    ]
    assert isinstance(again[-1], PythonResult) and len(again) > 1
    assert not any(isinstance(event, PythonResult) for event in again[:-1])


def test_what_was_printed_before_an_exception_is_told_before_it(ctx: Session) -> None:
    events = [event for event in ctx.run_stream("print('a', end='')\n1 / 0") if not isinstance(event, PythonContext)]
    told = [getattr(event, "stream", type(event)) for event in events]
    assert told.index("stdout") < told.index(PythonError), told


def test_the_command(boxwood: Command, vm: VM, tmp_path: Path) -> None:
    before = len(vm.sessions())
    done = boxwood("python", vm.id, "-c", "print('a')\n'\\x1b[2J'")
    assert (done.returncode, done.stdout) == (0, b"a\n'\\x1b[2J'\n"), done.stderr
    (tmp_path / "source.py").write_text("import sys\nsys.exit(7)")
    assert boxwood("python", vm.id, str(tmp_path / "source.py")).returncode == 7
    failed = boxwood("python", vm.id, stdin=b"1 / 0")
    assert failed.returncode == 1 and failed.stderr.endswith(b"ZeroDivisionError: division by zero\n")
    assert len(vm.sessions()) == before, "contexts of its own are gone"
    with vm.python() as ctx:
        assert boxwood("python", vm.id, "--session", ctx.id, "-c", "x = 6").returncode == 0
        told = json.loads(boxwood("python", vm.id, "--session", ctx.id, "--json", "-c", "x * 7").stdout)
        assert told["results"] == [{"kind": "value", "data": {"text/plain": "42"}, "truncated": {}}]
        assert told["context"] == {"new": False, "number": 2, "lost": None}
    assert boxwood("python", vm.id, "--session", vm.session().id, "-c", "1").returncode == 2
