"""Which file work helpers do."""

from __future__ import annotations

from boxwood.engine.agent.helpers import Work
from boxwood.engine.agent.listing import glob, list_directory
from boxwood.engine.agent.packing import pack
from boxwood.engine.agent.removal import move_tree, remove_tree
from boxwood.engine.agent.search import search
from boxwood.engine.agent.unpacking import unpack
from boxwood.engine.agent.watch import watch

WORKS: dict[str, Work] = {
    "list": list_directory,
    "glob": glob,
    "search": search,
    "remove": remove_tree,
    "move": move_tree,
    "pack": pack,
    "unpack": unpack,
    "watch": watch,
}
