"""What has changed in a text, as `diff -u` tells it. In bounded time, whatever the texts are: two that have too little
in common are told as one that went and one that came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

CONTEXT = 3  # lines around what has changed
_MOST_EDITS = 400  # that are looked for: time grows with lines times edits, memory with the square of these

Edit = tuple[str, str]  # ' ', '-' or '+', and the line


def unified(old: str | None, new: str | None, path: str) -> str:
    """None: there is no such file."""
    a, b = _lines(old), _lines(new)
    edits = list(_edits(a, b))
    said = [
        f"--- {'a' + path if old is not None else '/dev/null'}",
        f"+++ {'b' + path if new is not None else '/dev/null'}",
    ]
    for first, last in _hunks(edits):
        said += _hunk(edits, first, last)
    return "\n".join(said) + "\n" if len(said) > 2 else ""


def _lines(text: str | None) -> list[str]:
    """With their ends; only `\\n` ends a line."""
    if not text:
        return []
    lines = text.split("\n")
    last = lines.pop()
    return [line + "\n" for line in lines] + ([last] if last else [])


def _edits(a: Sequence[str], b: Sequence[str]) -> Iterator[Edit]:
    head = 0
    while head < min(len(a), len(b)) and a[head] == b[head]:
        head += 1
    tail = 0
    while tail < min(len(a), len(b)) - head and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    yield from ((" ", line) for line in a[:head])
    yield from _between(a[head : len(a) - tail], b[head : len(b) - tail])
    yield from ((" ", line) for line in a[len(a) - tail :])


def _between(a: Sequence[str], b: Sequence[str]) -> Iterator[Edit]:
    """The shortest way from one to the other (Myers, 1986), if it is short enough."""
    trace = _trace(a, b)
    if trace is None:
        yield from (("-", line) for line in a)
        yield from (("+", line) for line in b)
        return
    back: list[Edit] = []
    x, y = len(a), len(b)
    for d in range(len(trace) - 1, -1, -1):
        reached, k = trace[d], x - y
        down = k == -d or (k != d and reached.get(k - 1, -1) < reached.get(k + 1, -1))
        before = k + 1 if down else k - 1
        from_x = reached.get(before, 0) if d else 0
        from_y = from_x - before if d else 0
        while x > from_x and y > from_y and (d == 0 or (x, y) != (from_x, from_y)) and a[x - 1] == b[y - 1]:
            x, y = x - 1, y - 1
            back.append((" ", a[x]))
        if d:
            back.append(("+", b[from_y]) if down else ("-", a[from_x]))
            x, y = from_x, from_y
    yield from reversed(back)


def _trace(a: Sequence[str], b: Sequence[str]) -> list[dict[int, int]] | None:
    """How far each diagonal was reached before each number of edits; None: there are too many."""
    furthest, trace = {1: 0}, []
    for d in range(min(len(a) + len(b), _MOST_EDITS) + 1):
        trace.append({k: x for k, x in furthest.items() if -d <= k <= d} if d else {})
        for k in range(-d, d + 1, 2):
            down = k == -d or (k != d and furthest.get(k - 1, -1) < furthest.get(k + 1, -1))
            x = furthest[k + 1] if down else furthest[k - 1] + 1
            y = x - k
            while x < len(a) and y < len(b) and a[x] == b[y]:
                x, y = x + 1, y + 1
            furthest[k] = x
            if x >= len(a) and y >= len(b):
                return trace
    return None


def _hunks(edits: Sequence[Edit]) -> Iterator[tuple[int, int]]:
    """Where they begin and end among the edits."""
    first = last = None
    for at, (sign, _) in enumerate(edits):
        if sign == " ":
            continue
        if first is None or last is None:
            first = max(0, at - CONTEXT)
        elif at - last > 2 * CONTEXT:
            yield first, min(len(edits), last + CONTEXT)
            first = at - CONTEXT
        last = at + 1
    if first is not None and last is not None:
        yield first, min(len(edits), last + CONTEXT)


def _hunk(edits: Sequence[Edit], first: int, last: int) -> Iterator[str]:
    a = sum(sign != "+" for sign, _ in edits[:first])
    b = sum(sign != "-" for sign, _ in edits[:first])
    has_a = sum(sign != "+" for sign, _ in edits[first:last])
    has_b = sum(sign != "-" for sign, _ in edits[first:last])
    yield f"@@ -{_span(a, has_a)} +{_span(b, has_b)} @@"
    for sign, line in edits[first:last]:
        yield sign + line.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"


def _span(before: int, count: int) -> str:
    start = before + 1 if count else before
    return str(start) if count == 1 else f"{start},{count}"
