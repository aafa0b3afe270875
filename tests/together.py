"""Many cases of one test on what it was given once: to make a server anew for each takes longer than most of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def together(names: str | Sequence[str], cases: Iterable[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Like `pytest.mark.parametrize`, one case after the other in one test: for those that leave nothing behind. A
    failure says with which it was. `names`: parted by commas, or a tuple; of several, each case is a tuple."""
    parts = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    given = [dict(zip(parts, case if len(parts) > 1 else (case,), strict=True)) for case in cases]
    assert given

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        async def each_awaited(**fixtures: Any) -> None:
            for case in given:
                with _told(case):
                    await test(**fixtures, **case)

        @functools.wraps(test)
        def each(**fixtures: Any) -> None:
            for case in given:
                with _told(case):
                    test(**fixtures, **case)

        made = each_awaited if inspect.iscoroutinefunction(test) else each
        signature = inspect.signature(test)
        left = [one for name, one in signature.parameters.items() if name not in parts]
        made.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return made

    return decorate


@contextmanager
def _told(case: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"the case: {case!r}")
        raise
