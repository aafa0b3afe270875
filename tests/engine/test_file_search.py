"""Text looked for by ripgrep where the VM has it. BOXWOOD_TEST_RG names a real one to try it with; else one stands in
that says what ripgrep 13 was seen to say."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from boxfixtures import Runner
from boxwood.engine.api import GuestError
from boxwood.engine.fileapi import TextQuery

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]

STAND_IN = r"""#!/usr/bin/python3
import base64, json, os, re, sys
options, (where,) = sys.argv[1:-2], sys.argv[-1:]
pattern = options.pop(); options.pop()
assert {"--json", "--no-config", "--no-ignore", "--hidden"} <= set(options), options
try:
    found = re.compile((re.escape(pattern) if "--fixed-strings" in options else pattern).encode(), re.I if "--ignore-case" in options else 0)
except re.error as error:
    print("regex parse error:", error, file=sys.stderr); sys.exit(2)
said = lambda raw: {"text": raw.decode()} if raw.isascii() else {"bytes": base64.b64encode(raw).decode()}
def look(name, data):
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if b"\0" in data or not (match := found.search(line)): continue
        print(json.dumps({"type": "match", "data": {"path": said(name), "lines": said(line), "line_number": number,
            "submatches": [{"match": said(match[0]), "start": match.start(), "end": match.end()}]}}), flush=True)
print(json.dumps({"type": "begin", "data": {}}))
if where == "-":
    look(b"<stdin>", sys.stdin.buffer.read())
else:
    for root, directories, names in os.walk(b"."):
        directories.sort()
        for name in sorted(names):
            path = root + b"/" + name
            if os.path.isfile(path) and not os.path.islink(path): look(path, open(path, "rb").read())
"""


@pytest.fixture
async def program(runner: Runner) -> None:
    real = os.environ.get("BOXWOOD_TEST_RG")
    await runner.box.write_file("/usr/local/bin/rg", Path(real).read_bytes() if real else STAND_IN.encode(), 0o755)


async def test_it_finds_what_our_own_walk_finds(runner: Runner, program: None) -> None:
    await runner.run(
        r"mkdir -p /w/d /w/.hidden; cd /w; printf 'one\ntwo needle three\n' > a; printf 'Needle\n' > d/b.txt; echo a > .gitignore;"
        r"printf 'needle' > .hidden/c; printf 'needle\0' > binary; mkfifo pipe; ln -s a link; printf 'x\xffneedle\n' > raw;"
        "printf needle > \"$(printf 'n\\xffame')\""
    )
    files = runner.box.files
    for query in (
        TextQuery("needle"), TextQuery("n.{3}le", ignore_case=True), TextQuery("n.edle", literal=True),
        TextQuery("needle", include=("*.txt", "a")), TextQuery("needle", exclude=(".hidden/**",)),
    ):  # fmt: skip
        ours = await files.search(
            b"/w",
            TextQuery(query.pattern, query.literal, query.ignore_case, query.include, query.exclude, "builtin"),
            limit=100,
            seconds=30,
        )
        theirs = await files.search(b"/w", query, limit=100, seconds=30)
        assert (theirs.engine, ours.engine) == ("ripgrep", "builtin")
        assert sorted(theirs.matches, key=repr) == sorted(ours.matches, key=repr)
    one = await files.search(b"/w/a", TextQuery("two"), limit=5, seconds=30)
    assert [(match.path, match.line, match.column) for match in one.matches] == [(b"a", 2, 1)]
    assert (await files.search(b"/w", TextQuery("e"), limit=2, seconds=30)).truncated == "limit"
    with pytest.raises(GuestError, match="pattern") as refused:
        await files.search(b"/w", TextQuery("(", engine="ripgrep"), limit=1, seconds=30)
    assert refused.value.errno == errno.EINVAL
    assert (await files.search(b"/w", TextQuery("nothing of the kind"), limit=1, seconds=30)).matches == ()
    for engine in ("ripgrep", "builtin"):
        with pytest.raises(GuestError, match="regular files"):
            await files.search(b"/w/pipe", TextQuery("x", engine=engine), limit=1, seconds=30)


HARM = [
    'while :; do echo \'{"type":"match"\'; done',
    "cat /dev/zero",
    'yes \'{"type":"match","data":{"path":{"text":"x"},"lines":{"text":"y"},"line_number":-1,"submatches":[{"start":0}]}}\'',
    "trap '' TERM; while :; do :; done",
    "(sleep 1000 &); exec sleep 1000",
]


async def test_those_that_mean_harm(runner: Runner) -> None:
    """It is a program of the VM: it can say what it likes, for as long as was asked for."""
    await runner.run("mkdir /w; echo x > /w/a")
    for script in HARM:
        await runner.box.write_file("/usr/local/bin/rg", f"#!/bin/sh\n{script}\n".encode(), 0o755)
        begun = time.monotonic()
        found = await runner.box.files.search(b"/w", TextQuery("x"), limit=10, seconds=0.3)
        assert found.truncated == "seconds" and time.monotonic() - begun < 60, script
        assert (await runner.run("echo on")).text == "on\n", script


async def test_one_that_names_what_is_elsewhere(runner: Runner) -> None:
    """Nothing that it says is opened; a path that leads out is no answer, and neither is the box that gives one."""
    said = '{"type":"match","data":{"path":{"text":"../../etc/shadow"},"lines":{"text":"y"},"line_number":1,"submatches":[{"start":0}]}}'
    await runner.box.write_file("/usr/local/bin/rg", f"#!/bin/sh\necho '{said}'\n".encode(), 0o755)
    await runner.run("mkdir /w; echo x > /w/a")
    assert (await runner.box.files.search(b"/w", TextQuery("x"), limit=10, seconds=5)).matches == ()
