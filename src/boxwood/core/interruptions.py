"""Which of the runs that were interrupted are begun again.

A run is interrupted when its box goes with the host, or with the engine, and not by its own doing: the rows know it as
running, and no box has it. Of a durable VM it is begun again if somebody relies on it without waiting for it, that is,
if he was told of it before it had ended: an answer 202, the beginning of its events, the fork that started it, the
right to ask for it again with an Idempotency-Key. Whoever waits for his answer learns by the broken connection that
there is none, and may have sent the command again by then: doing it here too would do it twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from boxwood.core.liverun import Options

MOST_RETRIES = 100  # one that takes the host down with it does not do so for ever
_ENDED = "it was interrupted when its host stopped"


class Interrupted(Protocol):
    """A run, as far as it matters here."""

    durable: bool
    background: bool
    retries: int
    options: Options


def why_not_again(run: Interrupted) -> str | None:
    """Why this run of a durable VM is not begun again; None: it is."""
    if not run.background:
        return f"{_ENDED}, and not begun again: whoever had started it was still waiting for its end"
    if run.options.open:
        return f"{_ENDED}, and not begun again: what had been given to its standard input is not kept"
    if run.options.typed:
        return f"{_ENDED}, and not begun again: it was input of a program that is gone"
    if run.options.python:
        return f"{_ENDED}, and not begun again: the variables of its Python context are gone"
    if run.retries >= MOST_RETRIES:
        return f"{_ENDED}, and not begun again: it was {MOST_RETRIES} times before"
    return None
