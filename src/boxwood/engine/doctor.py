"""What this host gives to boxes: every layer of isolation is tried, none is guessed from a version or a file.

`python -m boxwood.engine.doctor` tries them in forked children of a clean, single-threaded process, so that `checks`
can be asked for from a server with threads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from boxwood.engine import levels
from boxwood.engine.trials import root, rootless
from boxwood.engine.trials.common import Check

_ROOTS_PLACES = ("/var/lib/boxwood", "/var/cache/boxwood/images")
_OWN_PLACES = ("~/.local/share/boxwood", "~/.local/share/boxwood/images")  # of who is not root
_SECONDS = 60


def checks(data: Path, images: Path) -> list[Check]:
    """Try everything for boxes whose layers lie in `data` and `images`. Takes about 0.3 s."""
    command = [
        sys.executable,
        "-I",
        "-m",
        "boxwood.engine.doctor",
        "--json",
        "--data",
        str(data),
        "--images",
        str(images),
    ]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
        env={"PATH": os.environ.get("PATH", os.defpath)},
    )
    try:
        known = {member.name for member in fields(Check)}
        said = json.loads(done.stdout)["checks"]
        return [Check(**{name: found[name] for name in known}) for found in said]
    except (ValueError, KeyError, TypeError):
        text = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return [Check("doctor", False, f"the trials could not be made: {text[-1]}", "see the log of the server")]


def missing(found: Sequence[Check]) -> list[Check]:
    """Those without which no box runs."""
    return [check for check in found if check.required and not check.active]


def unmet(level: str, found: Sequence[Check]) -> list[Check]:
    """What is missing for a level, with why and how to get it, in the level's order. ValueError: no such level."""
    by_name = {check.name: check for check in found}
    untried = "it was not tried, for something that it needs is missing"
    return [by_name.get(name) or Check(name, False, untried) for name in levels.lacking(level, found)]


def told(lacking: Sequence[Check]) -> str:
    """What is missing, in one line."""
    return "; ".join(f"{one.name}: {one.why} ({one.fix})" if one.fix else f"{one.name}: {one.why}" for one in lacking)


def try_all(data: Path, images: Path) -> list[Check]:
    """The trials themselves; forks, so not in a process with threads."""
    return root.try_all(data, images) if os.geteuid() == 0 else rootless.try_all(data, images)


def _line(check: Check) -> str:
    state = "yes" if check.active else "NO " if check.required else "no "
    fix = f"\n{'':24} → {check.fix}" if check.fix and not check.active else ""
    return f"{state}  {check.name:18} {check.why}{fix}"


def _report(found: Sequence[Check]) -> dict[str, object]:
    """For programs. `level`: the highest that is met; `levels`: what is missing for each; of each check its level."""
    return {
        "ok": not missing(found),
        "level": levels.reached(found),
        "levels": {
            level: {"met": not (names := levels.lacking(level, found)), "missing": names} for level in levels.LEVELS
        },
        "checks": [{**asdict(check), "level": levels.level_of(check.name)} for check in found],
    }


def _text(found: Sequence[Check]) -> str:
    above = [level for level in levels.LEVELS if levels.lacking(level, found)]
    lack = f"; {above[0]} lacks {', '.join(levels.lacking(above[0], found))}" if above else ""
    return "\n".join([*map(_line, found), "", f"level: {levels.reached(found)}{lack}"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="boxwood doctor", description="What this host gives to boxes.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--require", choices=tuple(levels.LEVELS), help="fail unless this level is met")
    parser.add_argument("--data", type=Path, help="default: where this user's server has its data")
    parser.add_argument("--images", type=Path, help="default: where this user's server has its images")
    options = parser.parse_args()
    data, images = _ROOTS_PLACES if os.geteuid() == 0 else _OWN_PLACES
    places = (
        options.data or Path(os.environ.get("BOXWOOD_DATA") or data).expanduser(),
        options.images or Path(os.environ.get("BOXWOOD_IMAGES") or images).expanduser(),
    )
    found = try_all(*places)
    sys.stdout.write((json.dumps(_report(found)) if options.json else _text(found)) + "\n")
    return 1 if missing(found) or (options.require and unmet(options.require, found)) else 0


if __name__ == "__main__":
    sys.exit(main())
