"""Rows of sealed layers: a tree, from every layer to the image it stands on."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

_CHAIN = """
    WITH RECURSIVE chain (id, parent, place, n) AS (
        SELECT id, parent, place, 0 FROM layers WHERE id = ?
        UNION ALL
        SELECT l.id, l.parent, l.place, n + 1 FROM layers l JOIN chain ON l.id = chain.parent
    )
    SELECT id, place FROM chain ORDER BY n
"""
_SIZES = """
    WITH RECURSIVE chain (id, parent, place, bytes) AS (
        SELECT id, parent, place, bytes FROM layers WHERE id = ?
        UNION ALL
        SELECT l.id, l.parent, l.place, l.bytes FROM layers l JOIN chain ON l.id = chain.parent
    )
    SELECT id, bytes FROM chain WHERE place = 'data'
"""
_UNREFERENCED = """
    NOT EXISTS (SELECT 1 FROM vms WHERE base = layers.id)
    AND NOT EXISTS (SELECT 1 FROM vms WHERE box_base = layers.id)
    AND NOT EXISTS (SELECT 1 FROM pins WHERE layer_id = layers.id)
    AND NOT EXISTS (SELECT 1 FROM held WHERE layer_id = layers.id)
    AND NOT EXISTS (SELECT 1 FROM layers child WHERE child.parent = layers.id AND NOT child.doomed)
"""
# A live box stands on what its stack consisted of when it was made, whatever its VM has been put on since.
_HOLD = """
    WITH RECURSIVE above (id) AS (
        SELECT :top UNION ALL SELECT l.id FROM layers l JOIN above ON l.parent = above.id
    )
    INSERT OR IGNORE INTO held (vm_id, layer_id)
    SELECT id, :top FROM vms WHERE box_base IN (SELECT id FROM above)
    UNION SELECT vm_id, :top FROM held WHERE layer_id IN (SELECT id FROM above)
"""
_SHIFT = """
    WITH RECURSIVE above (id) AS (
        SELECT :top UNION ALL SELECT l.id FROM layers l JOIN above ON l.parent = above.id
    )
    UPDATE layers SET depth = depth + :by WHERE id IN (SELECT id FROM above)
"""


@dataclass(frozen=True, slots=True)
class LayerRow:
    id: str
    parent: str | None
    place: str
    depth: int
    doomed: bool


def by_id(connection: sqlite3.Connection, layer_id: str) -> LayerRow | None:
    row = connection.execute("SELECT id, parent, place, depth, doomed FROM layers WHERE id = ?", (layer_id,)).fetchone()
    return None if row is None else LayerRow(*row)


def insert_image(connection: sqlite3.Connection, layer_id: str) -> None:
    """An image layer; known already: nothing."""
    connection.execute(
        "INSERT INTO layers (id, parent, place, depth) VALUES (?, NULL, 'image', 0) ON CONFLICT DO NOTHING", (layer_id,)
    )


def insert(connection: sqlite3.Connection, layer_id: str, parent: str, size: int | None = None) -> int:
    """A layer of the data directory on its parent, of so many bytes, if that is known; returns its depth."""
    row = connection.execute(
        "INSERT INTO layers (id, parent, place, depth, bytes) SELECT ?, id, 'data', depth + 1, ? FROM layers"
        " WHERE id = ? RETURNING depth",
        (layer_id, size, parent),
    ).fetchone()
    if row is None:
        raise LookupError(f"layer {parent} is not there")
    depth: int = row[0]
    return depth


def sizes(connection: sqlite3.Connection, layer_id: str) -> tuple[int, list[str]]:
    """Of all layers from this one down to the image: bytes, and the ids of those of which nobody knows."""
    rows = connection.execute(_SIZES, (layer_id,)).fetchall()
    return sum(size or 0 for _, size in rows), [found for found, size in rows if size is None]


def size(connection: sqlite3.Connection, layer_id: str) -> tuple[int, bool]:
    """Of this layer alone: bytes, and whether nobody knows them yet."""
    row = connection.execute("SELECT bytes FROM layers WHERE id = ?", (layer_id,)).fetchone()
    return (0, True) if row is None or row[0] is None else (row[0], False)


def set_size(connection: sqlite3.Connection, layer_id: str, size: int) -> None:
    connection.execute("UPDATE layers SET bytes = ? WHERE id = ?", (size, layer_id))


def moved(connection: sqlite3.Connection, old: str, target: str) -> bool:
    """`target` holds what `old` does: let it take its place. False: `old` is not there any more, or nothing stands on
    it; nothing changed."""
    row = by_id(connection, old)
    if row is None or row.doomed or not stood_on(connection, old):
        return False
    connection.execute(
        "INSERT INTO layers (id, parent, place, depth, bytes) SELECT ?, parent, place, depth, bytes FROM layers"
        " WHERE id = ?",
        (target, old),
    )
    connection.execute(_HOLD, {"top": old})
    connection.execute("UPDATE vms SET base = ? WHERE base = ?", (target, old))
    connection.execute("UPDATE vms SET fork_base = ? WHERE fork_base = ?", (target, old))
    connection.execute("UPDATE layers SET parent = ? WHERE parent = ?", (target, old))
    return True


def chain(connection: sqlite3.Connection, layer_id: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """All layers from this one down, and those of them that belong to an image."""
    rows = connection.execute(_CHAIN, (layer_id,)).fetchall()
    return tuple(row[0] for row in rows), frozenset(row[0] for row in rows if row[1] == "image")


def merged(connection: sqlite3.Connection, top: str, target: str) -> bool:
    """`target` shows what `top` and all below it, down to the image, showed: let everything that stood on `top` stand
    on it. False: `top` is not there any more, or nothing stands on it (so nobody would ever let go of `target`), and
    nothing was changed."""
    old = by_id(connection, top)
    if old is None or old.doomed or not stood_on(connection, top):
        return False
    ids, images = chain(connection, top)
    image = next((layer for layer in ids if layer in images), None)
    if image is None:
        raise LookupError(f"layer {top} stands on no image")
    insert(connection, target, image)
    connection.execute(_HOLD, {"top": top})
    connection.execute("UPDATE vms SET base = ? WHERE base = ?", (target, top))
    connection.execute("UPDATE vms SET fork_base = ? WHERE fork_base = ?", (target, top))
    connection.execute("UPDATE layers SET parent = ? WHERE parent = ?", (target, top))
    connection.execute(_SHIFT, {"top": target, "by": 1 - old.depth})
    connection.execute("UPDATE layers SET depth = 1 WHERE id = ?", (target,))
    return True


def deep(connection: sqlite3.Connection, above: int) -> list[str]:
    """Layers that VMs stand on, with more than so many layers over the image, the deepest first."""
    rows = connection.execute(
        "SELECT DISTINCT l.id, l.depth FROM layers l JOIN vms v ON v.base = l.id"
        " WHERE l.depth > ? ORDER BY l.depth DESC",
        (above,),
    )
    return [row[0] for row in rows]


def stood_on(connection: sqlite3.Connection, layer_id: str) -> bool:
    """Whether a VM or another layer does; a live box's VM may stand on what took this one's place already."""
    sql = "SELECT EXISTS (SELECT 1 FROM vms WHERE base = :id) OR EXISTS (SELECT 1 FROM layers WHERE parent = :id)"
    return bool(connection.execute(sql, {"id": layer_id}).fetchone()[0])


def doom(connection: sqlite3.Connection, candidate: str) -> None:
    """Mark this layer, if nothing refers to it, and then those below that were only there for it."""
    at: str | None = candidate
    while at is not None:
        row = connection.execute(
            f"UPDATE layers SET doomed = 1 WHERE id = ? AND place = 'data' AND NOT doomed AND {_UNREFERENCED}"
            " RETURNING parent",
            (at,),
        ).fetchone()
        at = None if row is None else row[0]


def doom_all(connection: sqlite3.Connection) -> None:
    """`doom` for every layer: at the start, when nobody remembers what was let go of."""
    leaves = connection.execute(
        f"SELECT id FROM layers WHERE place = 'data' AND NOT doomed AND {_UNREFERENCED}"
    ).fetchall()
    for (layer_id,) in leaves:
        doom(connection, layer_id)


def doomed(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT id FROM layers WHERE doomed")]


def delete(connection: sqlite3.Connection, layer_ids: list[str]) -> None:
    """Rows of doomed layers whose directories are gone."""
    connection.executemany("DELETE FROM layers WHERE id = ? AND doomed", [(layer_id,) for layer_id in layer_ids])


def data_ids(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT id FROM layers WHERE place = 'data'")}


def superseded(connection: sqlite3.Connection) -> list[str]:
    """Layers that are there for a live box only: its VM has been put on a merged one."""
    sql = "SELECT box_base FROM vms WHERE box_base <> base UNION SELECT layer_id FROM held"
    return [row[0] for row in connection.execute(sql)]


def hold(connection: sqlite3.Connection, vm_id: str, base: str, layers: Sequence[str]) -> None:
    """The VM's box is being made of these layers, of which another may have taken the place of one by now."""
    connection.execute("DELETE FROM held WHERE vm_id = ?", (vm_id,))
    below, _ = chain(connection, base)
    if replaced := next((layer for layer in layers if layer not in below), None):
        connection.execute("INSERT INTO held (vm_id, layer_id) VALUES (?, ?)", (vm_id, replaced))
