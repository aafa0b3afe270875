"""The interpreter of a Python context, without a box: run by this Python, spoken to as an agent does."""

from __future__ import annotations

import array
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boxwood.engine.agent.interpreter import _BOOT
from boxwood.engine.guest import python_program

# Other versions of Python that this machine happens to have, the oldest supported one among them where it does.
FOUND = [*Path.home().glob(".pyenv/versions/*/bin/python3"), *Path("/usr/bin").glob("python3.[0-9]*[0-9]")]
OTHERS = [
    str(path)
    for path in FOUND
    if re.match(r"3\.(8|9|\d\d)", path.parts[-3] if ".pyenv" in path.parts else path.name[6:])
]


class Done:
    def __init__(self, code: int, out: bytes, err: bytes, reports: bytes, env: bytes) -> None:
        self.code, self.out, self.err, self.env = code, out, err.decode(), env
        self.records = [json.loads(line) for line in reports.splitlines()]
        self.results: list[Any] = [record["result"] for record in self.records if "result" in record]
        self.errors = [record["error"] for record in self.records if "error" in record]

    @property
    def text(self) -> str | None:
        return self.results[-1]["data"]["text/plain"] if self.results else None


class Interpreter:
    def __init__(self, exe: str, cwd: Path, env: dict[str, str]) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(30)
        self.sock.send(python_program())
        self.process = subprocess.Popen([exe, "-c", _BOOT.decode()], stdin=theirs, cwd=cwd, env={**os.environ, **env})
        theirs.close()
        self.number = 0
        self.word = self.sock.recv(1 << 16)

    def run(self, source: str | bytes, stdin: bytes = b"", after: Any = None) -> Done:
        self.number += 1
        given = [os.memfd_create("source"), os.memfd_create("stdin")]
        for fd, data in zip(given, (source if isinstance(source, bytes) else source.encode(), stdin), strict=True):
            os.write(fd, data)
            os.lseek(fd, 0, os.SEEK_SET)
        pipes = [os.pipe() for _ in range(3)]
        fds = array.array("i", given + [writing for _, writing in pipes])
        self.sock.sendmsg([b"run %d" % self.number], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        for fd in fds:
            os.close(fd)
        got: list[bytearray] = [bytearray() for _ in pipes]
        readers = [threading.Thread(target=_drain, args=(pipe[0], into)) for pipe, into in zip(pipes, got, strict=True)]
        for reader in readers:
            reader.start()
        if after is not None:
            after()
        word, _, env = self.sock.recv(1 << 16).partition(b"\0")
        for reader in readers:
            reader.join()
        assert word, "it has closed its channel"
        done, number, code = word.split()
        assert (done, int(number)) == (b"done", self.number)
        return Done(int(code), bytes(got[0]), bytes(got[1]), bytes(got[2]), env)

    def close(self) -> int:
        self.sock.close()
        return self.process.wait(30)


def _drain(fd: int, into: bytearray) -> None:
    with open(fd, "rb", buffering=0) as pipe:
        while data := pipe.read(1 << 16):
            into += data


@pytest.fixture
def py(tmp_path: Path) -> Iterator[Interpreter]:
    made = Interpreter(sys.executable, tmp_path, {})
    yield made
    made.close()


@pytest.mark.parametrize("exe", [sys.executable, *OTHERS])
def test_it_runs_in_any_python_that_a_vm_may_have(exe: str, tmp_path: Path) -> None:
    py = Interpreter(exe, tmp_path, {})
    assert py.word == b"ready"
    assert py.run("def f(n):\n    return 1 / n\nx = 3").records == []
    assert py.run("f(x) * 3").text == "1.0"
    failed = py.run("f(0)")
    assert failed.code == 1 and failed.errors[0]["name"] == "ZeroDivisionError"
    assert [frame["source"] for frame in failed.errors[0]["frames"]] == ["f(0)", "return 1 / n"]
    assert py.run("import asyncio\nawait asyncio.sleep(0, 'a')").text == "'a'"
    assert py.run("class A:\n    pass\nimport pickle\npickle.loads(pickle.dumps(A())).__class__ is A").text == "True"
    assert py.run("raise SystemExit(9)").code == 9
    assert py.close() == 0, "it ends when nobody speaks to it any more"


def test_values(py: Interpreter) -> None:
    assert [py.run(code).text for code in ("None", "x = 1", "1;", "# nothing", "", "'a;'", "(1,\n2)")] == [
        None, None, None, None, None, "'a;'", "(1, 2)",
    ]  # fmt: skip
    assert py.run("_").text == "(1, 2)"
    assert py.run("def f(): pass\nf").text.startswith("<function f at 0x")
    assert py.run("import sys\nsys.displayhook = lambda value: print('mine', value)\n5").out == b"mine 5\n"


def test_lines_end_as_python_has_them(py: Interpreter) -> None:
    assert [py.run(code).text for code in ("1\r2", "1\r\n2;", "'\u2028';\n3\r")] == ["2", None, "3"]
    failed = py.run("a = '\x0c\u2028'\r1 / 0\r\n")
    assert failed.errors[0]["frames"][-1]["line"] == 2 and failed.errors[0]["frames"][-1]["source"] == "1 / 0"


def test_a_class_is_no_instance_and_a_mock_answers_to_nothing(py: Interpreter) -> None:
    py.run("class Odd:\n    def _repr_html_(self): return 'h'\n    def __getattr__(self, name): return lambda: 'any'")
    assert py.run("Odd").results[0]["data"].keys() == {"text/plain"}
    assert py.run("Odd()").results[0]["data"].keys() == {"text/plain", "text/html"}
    bundled = py.run(
        "class B:\n    def _repr_mimebundle_(self, **how): return {'a/b': 'c', 'text/plain': 't'}, {}\nB()"
    )
    assert bundled.results[0]["data"] == {"a/b": "c", "text/plain": "t"}


def test_representations_that_are_no_json(py: Interpreter) -> None:
    py.run(
        "class N:\n    def _repr_json_(self): return float('nan')\nclass O:\n    def _repr_json_(self): return {1, 2}"
    )
    for name in "NO":
        done = py.run(f"{name}()")
        assert done.code == 0 and done.results[0]["data"].keys() == {"text/plain"} and "is no JSON" in done.err
    assert py.run("'\\ud800'").text == "'\\ud800'"
    assert py.run("class S:\n    def __repr__(self): return '\\ud800'\nS()").text == "\\ud800"
    assert py.run("a = []\na.append(a)\na").results[0]["data"] == {"text/plain": "[[...]]"}


def test_a_repr_that_fails_is_the_runs_error(py: Interpreter) -> None:
    done = py.run("class Bad:\n    def __repr__(self): raise KeyError('k')\nBad()")
    assert (done.code, done.errors[0]["name"], done.results) == (1, "KeyError", [])
    worse = py.run("class Worse(Exception):\n    def __str__(self): raise Worse\nraise Worse")
    assert worse.code == 1 and worse.errors[0]["name"] == "Worse"


def test_tracebacks(py: Interpreter) -> None:
    deep = py.run("def g(n):\n    return g(n + 1)\ng(0)")
    assert deep.errors[0]["name"] == "RecursionError" and 90 <= len(deep.errors[0]["frames"]) <= 101
    assert deep.errors[0]["frames"][0]["source"] == "g(0)"
    caused = py.run("try:\n    1 / 0\nexcept Exception as e:\n    raise ValueError('v') from e")
    assert "direct cause" in caused.errors[0]["traceback"] and caused.err == caused.errors[0]["traceback"]
    assert "<boxwood>" not in caused.err
    hooked = py.run("import sys\nsys.excepthook = lambda *a: print('hooked', a[0].__name__)\n1 / 0")
    assert (hooked.out, hooked.err, hooked.errors[0]["name"]) == (
        b"hooked ZeroDivisionError\n",
        "",
        "ZeroDivisionError",
    )
    assert len(py.run("raise ValueError('x' * 1_000_000)").errors[0]["value"]) < 10_000


def test_syntax(py: Interpreter) -> None:
    for wrong in ("x = = 1", "return 1", "if True:\nx", "'\\ud800", "\0"):
        done = py.run(wrong)
        assert done.code == 1 and done.errors[0]["name"] in ("SyntaxError", "IndentationError", "ValueError"), wrong
    assert py.run(b"\xff").errors[0]["name"] == "UnicodeDecodeError"
    assert py.run("from __future__ import annotations\nx: nothing.here = 1").code == 0
    assert py.run("y: nothing.here = 2").code == 0, "as at a prompt, it holds from then on"


def test_sources_are_found_again(py: Interpreter) -> None:
    assert "1 + 1" in py.run("import inspect\ndef f():\n    return 1 + 1\ninspect.getsource(f)").text
    for _ in range(520):
        py.run("0;")
    assert py.run("import linecache\nsum(name.startswith('<run') for name in linecache.cache) <= 500").text == "True"


def test_an_interrupt_when_nothing_runs_is_nothing(py: Interpreter) -> None:
    os.kill(py.process.pid, signal.SIGINT)
    assert py.run("1").text == "1"


def test_an_interrupt(py: Interpreter) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    path = f"/proc/{os.getpid()}/fd/{write}"

    def interrupt() -> None:
        os.read(read, 1)
        os.kill(py.process.pid, signal.SIGINT)

    code = f"f = open({path!r}, 'wb', buffering=0)\nf.write(b'x')\nwhile True: pass"
    assert py.run(code, after=interrupt).errors[0]["name"] == "KeyboardInterrupt"
    caught = "try:\n    f.write(b'x')\n    while True: pass\nexcept KeyboardInterrupt:\n    caught = 1\ncaught"
    assert py.run(caught, after=interrupt).text == "1"
    awaited = "import asyncio\nf.write(b'x')\nawait asyncio.sleep(1000)"
    assert py.run(awaited, after=interrupt).errors[0]["name"] == "KeyboardInterrupt"
    assert py.run("await asyncio.sleep(0, 2)").text == "2"
    os.close(read)
    os.close(write)


def test_a_fork_that_goes_on_is_not_the_interpreter(py: Interpreter) -> None:
    done = py.run("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint(bool(pid))\npid")
    assert sorted(done.out.split()) == [b"False", b"True"] and len(done.results) == 1
    failed = py.run("pid = os.fork()\nif not pid: 1 / 0\nos.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])")
    assert failed.text == "1" and failed.errors == [] and "ZeroDivisionError" in failed.err


def test_too_much_is_left_out_and_counted(py: Interpreter) -> None:
    done = py.run("for n in range(60): display('y' * 250_000)")
    assert len(done.results) < 60 and done.records[-1] == {"dropped": 60 - len(done.results)}
    assert sum(len(json.dumps(record)) for record in done.records) < 9 << 20


def test_the_environment_is_told_unless_it_is_too_much(py: Interpreter) -> None:
    assert b"WHO=me\0" in py.run("import os\nos.environ['WHO'] = 'me'").env
    assert b"MPLBACKEND" not in py.run("os.environ['MPLBACKEND']").env
    assert py.run("os.environ['BIG'] = 'x' * 100_000").env == b""


def test_whoever_closes_the_channel_ends_the_interpreter(tmp_path: Path) -> None:
    py = Interpreter(sys.executable, tmp_path, {})
    os.set_blocking(py.sock.fileno(), True)
    with pytest.raises((AssertionError, TimeoutError)):
        py.run("import os\nos.closerange(3, 1024)")
    assert py.process.wait(30) != 0
    py.sock.close()


PYPLOT = """
import sys
from matplotlib import _pylab_helpers, figure
def figure_(n): return _pylab_helpers.Gcf.add(figure.Figure(n))
def show(*a, **k): raise RuntimeError("nobody looks")
def close(what): _pylab_helpers.Gcf.figures.clear()
"""
HELPERS = """
class Manager:
    def __init__(self, figure):
        self.canvas = type("Canvas", (), {"figure": figure})
class Gcf:
    figures = []
    @classmethod
    def get_all_fig_managers(cls): return list(cls.figures)
    @classmethod
    def add(cls, figure):
        cls.figures.append(Manager(figure))
        return figure
"""
FIGURE = """
class Figure:
    def __init__(self, n): self.n = n
    def savefig(self, file, **how): file.write(b"PNG%d" % self.n)
    def __repr__(self): return "<Figure>"
"""
PANDAS = """
import json
class DataFrame:
    def __init__(self, rows): self.rows = rows
    def head(self, n): return DataFrame(self.rows[:n])
    def to_json(self, **how): return json.dumps({"columns": ["a"], "data": [[row] for row in self.rows]})
    def __len__(self): return len(self.rows)
    def __repr__(self): return "frame"
    def _repr_html_(self): return "<table>"
"""


@pytest.fixture
def libraries(tmp_path: Path) -> Iterator[Interpreter]:
    """Stand-ins that have of matplotlib and pandas what is asked of them."""
    package = tmp_path / "matplotlib"
    package.mkdir()
    for name, text in {"__init__": "", "pyplot": PYPLOT, "_pylab_helpers": HELPERS, "figure": FIGURE}.items():
        (package / f"{name}.py").write_text(text)
    (tmp_path / "pandas.py").write_text(PANDAS)
    made = Interpreter(sys.executable, tmp_path, {})
    yield made
    made.close()


def test_figures(libraries: Interpreter) -> None:
    shown = libraries.run("import matplotlib.pyplot as plt\nplt.figure_(1)\nplt.show()\nprint('then')\nplt.figure_(2);")
    assert [(one["kind"], one["data"]["image/png"]) for one in shown.results] == [
        ("figure", "UE5HMQ=="), ("figure", "UE5HMg=="),
    ]  # fmt: skip
    assert libraries.run("plt.figure_(3)").results[0]["kind"] == "value"
    once = libraries.run("plt.figure_(4)")
    assert len(once.results) == 1, "the value of the last expression, and not once more as an open figure"
    assert libraries.run("1").text == "1"
    failed = libraries.run("plt.figure_(5)\n1 / 0")
    assert failed.code == 1 and len(failed.results) == 1


def test_frames(libraries: Interpreter) -> None:
    data = libraries.run("import pandas\npandas.DataFrame(list(range(5000)))").results[0]["data"]
    assert data["text/html"] == "<table>" and data["text/plain"] == "frame"
    frame = data["application/json"]
    assert (frame["columns"], frame["rows"], len(frame["data"])) == (["a"], 5000, 1000)
