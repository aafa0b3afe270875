"""A program and its arguments as one text, and back: how a run that is started without a shell is kept and shown.

The text is quoted as for a shell, so that whoever copies it into one gets the same.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_WORD = re.compile(r"""'[^']*(?:'"'"'[^']*)*'|[^' ]+""")


def text_of(argv: Sequence[str]) -> str:
    return shlex.join(argv)


def argv_of(text: str) -> tuple[str, ...]:
    """Of a text that `text_of` has made. Its megabytes are read on the event loop: no lexer."""
    return tuple(_bare(word) for word in _WORD.findall(text))


def _bare(word: str) -> str:
    return word[1:-1].replace("""'"'"'""", "'") if word.startswith("'") else word
