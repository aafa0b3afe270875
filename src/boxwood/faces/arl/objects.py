"""Objects on a server: what is asked of one, whoever it is, and waiting for an object to become what it should be."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import Protocol

from boxwood.faces.arl.errors import TaskTimeout
from boxwood.faces.arl.resources import Object, Plural

PATIENCE = 60.0  # seconds for an answer that nothing is waited for
HELD = 0.2  # seconds: an answer that took so long was held back until there was news, or for as long as that is done
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0  # seconds between two questions to a server that answers at once


class Objects(Protocol):
    """Four requests, to whatever carries them. All raise ApiException, or TaskTimeout after `seconds` without an
    answer."""

    def create(self, plural: Plural, namespace: str, body: Object, *, ours: bool = False) -> Object:
        """`ours`: the name is random, so an object of that name is the one that an earlier attempt has made."""

    def get(
        self, plural: Plural, namespace: str, name: str, seconds: float = PATIENCE, *, news: bool = False
    ) -> Object:
        """`news`: the answer had better wait until there is something new to tell."""

    def list(self, plural: Plural, namespace: str) -> list[Object]: ...

    def delete(self, plural: Plural, namespace: str, name: str) -> None: ...

    def close(self) -> None:
        """Closes the connections; the next request opens others."""


def wait_for(
    objects: Objects,
    plural: Plural,
    namespace: str,
    name: str,
    done: Callable[[Object], bool],
    seconds: float,
    longest_pause: float = LONGEST_PAUSE,
) -> Object:
    """The object as soon as it is `done`, or else as it was seen last after `seconds`; empty if it was never seen.

    Boxwood's server holds its answer back until the object changes, and is asked again at once. A server that answers
    at once, and always the same, is asked at growing intervals.
    """
    deadline, pause = monotonic() + seconds, FIRST_PAUSE
    found: Object = {}
    while (left := deadline - monotonic()) > 0:
        begun, before = monotonic(), found
        try:
            found = objects.get(plural, namespace, name, min(left, PATIENCE), news=True)
        except TaskTimeout:
            continue
        if done(found):
            break
        if monotonic() - begun >= HELD or found.get("metadata") != before.get("metadata"):
            pause = FIRST_PAUSE
        else:
            sleep(max(0.0, min(pause, longest_pause, deadline - monotonic())))
            pause *= 2
    return found
