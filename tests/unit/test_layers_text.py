"""Line differences: what is told turns one text into the other, and takes bounded time whatever they are."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from boxwood.engine.layers import text
from boxwood.engine.layers.text import unified

LINES = st.lists(st.sampled_from(["a", "b", "c", "", "-x", "+x", " ", "\r", "\u2028"]), max_size=30)
TEXTS = st.builds(lambda lines, end: "\n".join(lines) + ("\n" if end else ""), LINES, st.booleans())


def applied(old: str, told: str) -> str:
    """What `patch` would make of a text."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", old)
    made: list[str] = []
    at = 0
    parts = told.split("\n")[2:-1]
    for number, line in enumerate(parts):
        if hunk := re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@", line):
            start = int(hunk[1]) - (hunk[2] != "0")
            made += lines[at:start]
            at = start
            continue
        if line.startswith("\\"):
            continue
        ends = not (number + 1 < len(parts) and parts[number + 1].startswith("\\"))
        content = line[1:] + ("\n" if ends else "")
        if line[0] in " -":
            assert lines[at] == content
            at += 1
        if line[0] in " +":
            made.append(content)
    return "".join(made + lines[at:])


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_it_turns_one_text_into_the_other(old: str, new: str) -> None:
    told = unified(old, new, "/f")
    assert (told == "") == (old == new)
    if told:
        assert applied(old, told) == new


def test_few_lines_around_few_changes_are_told() -> None:
    old = "".join(f"{n}\n" for n in range(100))
    told = unified(old, old.replace("\n50\n", "\nfifty\n"), "/f")
    assert told == "--- a/f\n+++ b/f\n@@ -48,7 +48,7 @@\n 47\n 48\n 49\n-50\n+fifty\n 51\n 52\n 53\n"
    assert unified(old, old.replace("\n1\n", "\n").replace("\n90\n", "\n"), "/f").count("@@ -") == 2


def test_new_files_and_those_that_are_gone() -> None:
    assert unified(None, "x\n", "/f") == "--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+x\n"
    assert unified("x", None, "/f") == "--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n\\ No newline at end of file\n"
    assert unified("x\n", "x\n", "/f") == ""


def test_texts_with_too_little_in_common_are_told_as_a_whole() -> None:
    old = "".join(f"old {n}\nboth\n" for n in range(2000))
    new = "".join(f"new {n}\nboth\n" for n in range(2000))
    assert applied(old, told := unified(old, new, "/f")) == new
    assert told.count("\n-both") > 1000
    assert text._trace([f"{n}" for n in range(5000)], [f"x{n}" for n in range(5000)]) is None
