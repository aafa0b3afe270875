"""Patterns of paths: `*`, `?` and `[…]` within a name, `**` for any number of directories, `{a,b}` for either.

A name that begins with a dot is as any other. A pattern is matched while a tree is walked, one name after the other,
so that directories in which nothing can match are not looked into.
"""

from __future__ import annotations

import errno
import fnmatch
import re

from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.place import told

_MOST_FORMS = 64  # that braces make of one pattern
PATTERN_CHARACTERS = 1024
_ANY = None  # for `**`
States = frozenset[tuple[int, int]]


class Glob:
    """States say how far each form of the pattern has come: begin with `start`, go on with `step`."""

    def __init__(self, pattern: object) -> None:
        if not isinstance(pattern, str) or not pattern or len(pattern) > PATTERN_CHARACTERS or "\0" in pattern:
            raise Refusal(errno.EINVAL, f"pattern: 1 to {PATTERN_CHARACTERS} characters, without NUL")
        self._forms = [_segments(form) for form in _forms(pattern)]
        self.start = self._closed((form, 0) for form in range(len(self._forms)))

    def step(self, states: States, name: bytes) -> States:
        """One name further down."""
        text = told(name)
        following = set()
        for form, at in states:
            if at == len(self._forms[form]):
                continue
            wanted = self._forms[form][at]
            if wanted is _ANY:
                following.add((form, at))
            elif wanted.match(text):
                following.add((form, at + 1))
        return self._closed(following)

    def matches(self, states: States) -> bool:
        return any(at == len(self._forms[form]) for form, at in states)

    def goes_on(self, states: States) -> bool:
        """Can anything below match?"""
        return any(at < len(self._forms[form]) for form, at in states)

    def fits(self, path: bytes) -> bool:
        """A whole path below the top; a pattern of one name is held against the last one."""
        parts = path.split(b"/")
        if all(len(form) == 1 for form in self._forms):
            parts = parts[-1:]
        states = self.start
        for part in parts:
            states = self.step(states, part)
        return self.matches(states)

    def _closed(self, states: object) -> States:
        """`**` may stand for nothing."""
        found, waiting = set(), list(states)  # type: ignore[call-overload]
        while waiting:
            form, at = waiting.pop()
            if (form, at) not in found:
                found.add((form, at))
                if at < len(self._forms[form]) and self._forms[form][at] is _ANY:
                    waiting.append((form, at + 1))
        return frozenset(found)


def _segments(form: str) -> list[re.Pattern[str] | None]:
    names = form.split("/")
    if any(name in ("", ".", "..") for name in names):
        raise Refusal(errno.EINVAL, f"pattern: below the directory, without empty parts, '.' and '..': {form[:100]}")
    if names[-1] == "**":
        names.append("*")  # what is below, not the directory itself
    try:
        return [_ANY if name == "**" else re.compile(fnmatch.translate(name), re.DOTALL) for name in names]
    except re.error as error:
        raise Refusal(errno.EINVAL, f"pattern: {error}") from None


def _forms(pattern: str) -> list[str]:
    """All that braces stand for; one without a comma, or without its other half, stands for itself."""
    forms, done = [pattern], []
    while forms:
        form = forms.pop()
        found = _braces(form)
        if found is None:
            done.append(form)
        else:
            start, end, parts = found
            forms += [form[:start] + part + form[end:] for part in parts]
        if len(forms) + len(done) > _MOST_FORMS:
            raise Refusal(errno.EINVAL, f"pattern: its braces stand for more than {_MOST_FORMS} patterns")
    return done


def _braces(form: str) -> tuple[int, int, list[str]] | None:
    """The first innermost pair with a comma: where it begins and ends, and its parts."""
    start = -1
    for at, character in enumerate(form):
        if character == "{":
            start = at
        elif character == "}" and start >= 0:
            parts = form[start + 1 : at].split(",")
            if len(parts) > 1:
                return start, at + 1, parts
            start = -1
    return None
