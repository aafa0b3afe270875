"""What of the host's client settings was not shared, for the notes of an image: names of settings, never a value.

A name is told only if it is one that we know: in a broken file the name itself may be somebody's password.
"""

from __future__ import annotations


class LeftOut(Exception):
    """A setting does not go into an image; the text, a constant, says why."""


GIVES_ACCESS = "it gives access"
UNKNOWN = "not known to be harmless"
OF_THIS_HOST = "a path of this host"
NO_CERTIFICATE = "names no certificate"
UNREADABLE = "cannot be read"


class Omissions:
    """Gathers what is left out or changed; `notes` is one line for each tool."""

    def __init__(self) -> None:
        self._left_out: dict[str, dict[str, str]] = {}
        self._without_access: dict[str, set[str]] = {}
        self._unnamed: dict[str, int] = {}

    def leave_out(self, tool: str, name: str | None, reason: str) -> None:
        """`name` None: one that must not be told."""
        if name is None:
            self._unnamed[tool] = self._unnamed.get(tool, 0) + 1
        else:
            self._left_out.setdefault(tool, {})[name] = reason

    def without_access(self, tool: str, name: str) -> None:
        """The address is shared, the user and password in it are not."""
        self._without_access.setdefault(tool, set()).add(name)

    def notes(self) -> tuple[str, ...]:
        tools = sorted({*self._left_out, *self._without_access, *self._unnamed})
        return tuple(f"client settings of {tool}: {'; '.join(self._said(tool))}" for tool in tools)

    def _said(self, tool: str) -> list[str]:
        said = []
        if names := self._without_access.get(tool):
            said.append(f"shared without what gives access: {', '.join(sorted(names))}")
        words = [f"{name} ({reason})" for name, reason in sorted(self._left_out.get(tool, {}).items())]
        if count := self._unnamed.get(tool):
            words.append(f"{count} more ({UNKNOWN})")
        if words:
            said.append(f"left out: {', '.join(words)}")
        return said
