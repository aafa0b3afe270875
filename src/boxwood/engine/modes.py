"""Whose a directory of layers is: files on disk belong to other ids with root than without, and the two never mix.

As root layers are canonical, whoever runs the boxes. Without root they belong to one user and to his subordinate ids:
a file `rootless.json` in a data directory says to which.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from boxwood.engine.api import EngineUnavailable
from boxwood.engine.idmap import IdMap

NAME = "rootless.json"
_LARGEST = 4096


def claim(directory: Path, ids: IdMap | None, *, layers: bool = True) -> None:
    """The directory is used by a server with these ids (None: root's) from now on. EngineUnavailable: it is
    another's. `layers`: of VMs, which may hold any of the ids; else what this user has made himself."""
    found = _read(directory / NAME)
    if ids is None:
        if found is not None:
            raise EngineUnavailable(
                f"{directory} belongs to a server without root, of uid {found.get('uid')}: run it as that user, or "
                "give another directory"
            )
        return
    if (owner := os.stat(directory).st_uid) != ids.uid:
        raise EngineUnavailable(f"{directory} belongs to uid {owner}: give one that is your own")
    wanted = ids.owner() if layers else {"uid": ids.uid}
    if found is None:
        _write(directory / NAME, wanted)
    elif _fits(found, ids, layers):
        if found != wanted:
            _write(directory / NAME, wanted)
    else:
        raise EngineUnavailable(
            f"the files of VMs in {directory} belong to {_told(found)}, but this server has {_told(wanted)}: configure "
            "what there was (/etc/subuid and /etc/subgid), or give another data directory"
        )


def _fits(found: dict[str, int], ids: IdMap, layers: bool) -> bool:
    """More ids than before are no harm, others are."""
    if found.get("uid") != ids.uid or not layers:
        return found.get("uid") == ids.uid
    if found.get("count", 1) == 1:
        return found.get("gid") == ids.gid
    same = all(found.get(name) == value for name, value in ids.owner().items() if name != "count")
    return same and found["count"] <= ids.count


def _told(owner: dict[str, int]) -> str:
    count = owner.get("count", 1) - 1
    ids = f"uid {owner.get('uid')}, gid {owner.get('gid', '?')}"
    if count < 1:
        return f"{ids} without subordinate ids"
    return f"{ids} and {count} subordinate ids from {owner.get('subuid')} (uids) and {owner.get('subgid')} (gids) on"


def _read(path: Path) -> dict[str, int] | None:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_LARGEST))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EngineUnavailable(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(value, int) for value in found.values()):
        raise EngineUnavailable(f"{path} makes no sense: it says whose ids the files beside it have")
    return found


def _write(path: Path, owner: dict[str, int]) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(owner) + "\n")
    draft.rename(path)
