"""What a run in a Python context gives beside its output: results, the exception that has ended it, its interpreter.

All of it comes from inside the VM: what a text or a picture holds is the VM's own choice.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec


class PythonResult(msgspec.Struct, frozen=True):
    """A value as often as it can be shown: `data` by MIME type, text as it is, base64 of what is binary, JSON decoded.

    `kind`: value (of the last expression), display (shown by `display()`) or figure (of matplotlib, open at the end).
    `truncated`: by MIME type, the size of what was too large: text/plain is cut, others are left out.
    """

    kind: str = "value"
    data: dict[str, Any] = {}
    truncated: dict[str, int] = {}

    @property
    def text(self) -> str | None:
        """text/plain: what an interactive interpreter would print."""
        return self._text("text/plain")

    @property
    def html(self) -> str | None:
        return self._text("text/html")

    @property
    def markdown(self) -> str | None:
        return self._text("text/markdown")

    @property
    def svg(self) -> str | None:
        return self._text("image/svg+xml")

    @property
    def latex(self) -> str | None:
        return self._text("text/latex")

    @property
    def png(self) -> bytes | None:
        return self._bytes("image/png")

    @property
    def jpeg(self) -> bytes | None:
        return self._bytes("image/jpeg")

    @property
    def json(self) -> Any:
        """application/json: of a data frame {"columns", "data", "rows", …}, of a list or dict itself. None: there is
        none."""
        return self.data.get("application/json")

    def _text(self, mime: str) -> str | None:
        said = self.data.get(mime)
        return said if isinstance(said, str) else None

    def _bytes(self, mime: str) -> bytes | None:
        try:
            return base64.b64decode(self._text(mime) or "", validate=True) or None
        except (binascii.Error, ValueError):
            return None


class PythonFrame(msgspec.Struct, frozen=True):
    """One level of a traceback; `source`: the line, where it is known."""

    file: str
    line: int
    name: str = ""
    source: str = ""


class PythonError(msgspec.Struct, frozen=True):
    """The exception that has ended a run: the name of its class and its text. `frames`: the outermost first.
    `traceback`: as python3 prints it; stderr has it too."""

    name: str
    value: str = ""
    traceback: str = ""
    frames: list[PythonFrame] = []


class PythonContext(msgspec.Struct, frozen=True):
    """The interpreter that a run had. `new`: it has no variables of earlier runs. `number`: which of its runs this is.
    `lost`: what became of the interpreter before it, if there was one."""

    new: bool = False
    number: int = 0
    lost: str | None = None
