"""Makes the blocking SDK, src/boxwood/client/_sync, from the awaitable one, src/boxwood/client/_async; faces likewise.

python tools/unasync.py            write it
python tools/unasync.py --check    exit 1, naming the files, if it is not current
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

BOXWOOD = Path(__file__).resolve().parent.parent / "src" / "boxwood"
NOTE = "# Made from ../_async/{name} by tools/unasync.py: change that one.\n"

# Each with the modules where the two forms really differ.
HAND_WRITTEN = {
    BOXWOOD / "client": {"connection.py", "forward.py", "socket.py"},
    BOXWOOD / "faces/agentkernel": {"forms.py"},
}
RULES = [
    (r"\[(\w+) async for \1 in (.+)\]", r"list(\2)"),
    (r"\bAwaitable\[None\]", "None"),
    (r"import AsyncIterator, Awaitable, Callable", "import Callable, Iterator"),
    (r"\bawait\s+", ""),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"\bAsyncGenerator\[(\w+), None\]", r"Generator[\1, None, None]"),
    (r"\bAsync([A-Z]\w*)", r"\1"),
    (r"\ba(iter_bytes|next)\b", r"\1"),
    (r"\baclose\b", "close"),
    (r"\bfrom asyncio import to_thread as to_thread\b", "\nfrom boxwood.client.mirror import here as to_thread"),
    (r"\bfrom asyncio import Semaphore\b", "from threading import Semaphore"),
    (r"\bfrom asyncio import sleep\b", "from time import sleep"),
    (r"\bboxwood\.(client|faces\.agentkernel)\._async\b", r"boxwood.\1._sync"),
    (r"The awaitable SDK, and the source from which tools/unasync\.py makes the blocking one in \.\./_sync\.",
     "The blocking SDK."),
    (r"The awaitable client, and the source from which tools/unasync\.py makes the blocking one in \.\./_sync\.",
     "The blocking client."),
]  # fmt: skip


def blocking(source: str, name: str) -> str:
    """The blocking form of an awaitable module's text."""
    for pattern, replacement in RULES:
        source = re.sub(pattern, replacement, source)
    source = re.sub(r"^from collections\.abc import (.+)$", _sorted, source, flags=re.MULTILINE)
    if left := re.search(r"\b(async|await|asyncio)\b", source):
        raise SystemExit(f"{name}: {left.group()!r} is left; teach tools/unasync.py about it")
    return NOTE.format(name=name) + source


def _sorted(line: re.Match[str]) -> str:
    """Names that have become others, in their order, each once."""
    return "from collections.abc import " + ", ".join(sorted(set(line[1].split(", "))))


def generated() -> dict[Path, str]:
    """Every file of the blocking SDK and what has to be in it."""
    return {
        home / "_sync" / path.name: blocking(path.read_text("utf-8"), path.name)
        for home, by_hand in HAND_WRITTEN.items()
        for path in sorted((home / "_async").glob("*.py"))
        if path.name not in by_hand
    }


def outdated() -> list[Path]:
    """Files that are missing, differ, or have no source."""
    wanted = generated()
    found = (
        path
        for home, by_hand in HAND_WRITTEN.items()
        for path in (home / "_sync").glob("*.py")
        if path.name not in by_hand
    )
    there = {path: path.read_text("utf-8") for path in found}
    return sorted(path for path in {*wanted, *there} if wanted.get(path) != there.get(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is not current")
    if parser.parse_args().check:
        stale = outdated()
        sys.exit("not current, run tools/unasync.py: " + ", ".join(map(str, stale)) if stale else 0)
    for home in HAND_WRITTEN:
        (home / "_sync").mkdir(exist_ok=True)
    wanted = generated()
    for path in outdated():
        if path in wanted:
            path.write_text(wanted[path], "utf-8")
        else:
            path.unlink()


if __name__ == "__main__":
    main()
