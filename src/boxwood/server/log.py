"""The server's log: lines on stderr. What boxes and clients say is quoted in it, so only text gets through."""

from __future__ import annotations

import logging
import sys


class PlainFormatter(logging.Formatter):
    """Control characters, of a terminal's escape sequences say, are shown, not sent."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return "\n  ".join(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line) for line in lines
        )


def set_up() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("boxwood").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # its warnings are for the asking, without a key
    logging.getLogger("uvicorn.access").disabled = True
