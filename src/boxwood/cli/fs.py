"""`boxwood fs`: the files of a VM, where `cp` is not what is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from boxwood.cli.options import Json, Place, connect, place
from boxwood.cli.output import age, note, say, say_json, table

if TYPE_CHECKING:
    from boxwood import FileInfo

app = typer.Typer(
    help="List, move, delete, search and watch files of a VM.", rich_markup_mode=None, no_args_is_help=True
)
Where = Annotated[str, typer.Argument(metavar="VM:PATH", help="A path in a VM, absolute.")]
_MARKS = {"directory": "d", "symlink": "l", "fifo": "p", "socket": "s", "character": "c", "block": "b"}


@app.command("ls")
def ls(where: Where, json: Json = False) -> None:
    """List a directory."""
    vm, path = _parted(where)
    with connect() as box:
        found = list(box.vm(vm).files.list(path))
    if json:
        say_json(_plain(found))
    else:
        table(("MODE", "OWNER", "SIZE", "AGE", "NAME"), map(_row, found))


@app.command("stat")
def stat(
    where: Where,
    follow: Annotated[bool, typer.Option("--follow", "-L", help="Of a link: what it leads to.")] = False,
    json: Json = False,
) -> None:
    """Say what lies at a path."""
    vm, path = _parted(where)
    with connect() as box:
        found = box.vm(vm).files.stat(path, follow=follow)
    if json:
        say_json(_plain([found])[0])
    else:
        table(("MODE", "OWNER", "SIZE", "AGE", "NAME"), [_row(found)])


@app.command("mkdir")
def mkdir(
    where: Where,
    parents: Annotated[
        bool, typer.Option("--parents", "-p", help="Those above it too; no error if it is there.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a directory."""
    vm, path = _parted(where)
    with connect() as box:
        made = box.vm(vm).files.mkdir(path, parents=parents)
    if json:
        say_json({"created": made})


@app.command("mv")
def mv(
    where: Where,
    to: Annotated[str, typer.Argument(metavar="PATH", help="The new path itself, in the same VM.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="What is there gives way.")] = False,
    json: Json = False,
) -> None:
    """Give a file or a directory another path."""
    vm, path = _parted(where)
    if not to.startswith("/"):
        _refuse("the new path is absolute, without the VM in front of it")
    with connect() as box:
        box.vm(vm).files.move(path, to, replace=force)
    if json:
        say_json({"path": _text(to)})


@app.command("rm")
def rm(
    where: Where,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="A directory with all below it.")] = False,
    json: Json = False,
) -> None:
    """Delete a file or a directory."""
    vm, path = _parted(where)
    with connect() as box:
        removed = box.vm(vm).files.remove(path, recursive=recursive)
    if json:
        say_json({"removed": removed})


@app.command("chmod")
def chmod(
    mode: Annotated[str, typer.Argument(help="Permission bits in octal, like 755.")], where: Where, json: Json = False
) -> None:
    """Change permission bits."""
    vm, path = _parted(where)
    try:
        bits = int(mode, 8)
    except ValueError:
        _refuse(f"permission bits in octal, not {mode!r}")
    with connect() as box:
        box.vm(vm).files.chmod(path, bits)
    if json:
        say_json({"mode": bits})


@app.command("find")
def find(
    where: Where,
    pattern: Annotated[str, typer.Argument(help="* ? [abc] in a name, ** across directories, {a,b}; quote it.")] = "**",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most.")] = 10_000,
    json: Json = False,
) -> int:
    """Find what below a directory has a path of this pattern."""
    vm, path = _parted(where)
    with connect() as box:
        found = box.vm(vm).files.glob(path, pattern, limit=limit)
    if json:
        say_json({"entries": _plain(found.entries), "truncated": found.truncated})
    else:
        for info in found.entries:
            say(info.path)
    return _cut(found.truncated, json)


@app.command("grep")
def grep(
    pattern: Annotated[str, typer.Argument(help="A regular expression.")],
    where: Where,
    fixed: Annotated[bool, typer.Option("--fixed", "-F", help="The pattern is a text.")] = False,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i", help="Large and small letters are one.")] = False,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="GLOB", help="Only such files; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many lines at most.")] = 10_000,
    json: Json = False,
) -> int:
    """Find lines of text below a directory, or in a file. Exit code 1: there are none."""
    vm, path = _parted(where)
    with connect() as box:
        found = box.vm(vm).files.search(
            path, pattern, literal=fixed, ignore_case=ignore_case, include=include or (), limit=limit
        )
    if json:
        matches = [
            {"path": _text(m.path), "line": m.line, "column": m.column, "text": _text(m.text)} for m in found.matches
        ]
        say_json({"matches": matches, "truncated": found.truncated, "engine": found.engine})
    else:
        for match in found.matches:
            say(f"{match.path}:{match.line}:{match.text}")
    return _cut(found.truncated, json) or (0 if found.matches else 1)


@app.command("watch")
def watch(
    where: Where,
    recursive: Annotated[bool, typer.Option(help="Also what is below its directories.")] = True,
    json: Json = False,
) -> None:
    """Tell of changes below a directory until it is gone, or Ctrl-C."""
    vm, path = _parted(where)
    with connect() as box:
        for change in box.vm(vm).files.watch(path, recursive=recursive):
            if json:
                moved = {} if change.to is None else {"to": _text(change.to)}
                say_json({"kind": change.kind, "path": _text(change.path), **moved, "directory": change.directory})
            elif change.kind in ("watching", "overflow", "incomplete", "gone"):
                note(f"({change.kind})")
            else:
                say(f"{change.kind:<10} {change.path}" + (f" -> {change.to}" if change.to is not None else ""))


def _parted(where: str) -> Place:
    found = place(where)
    if found is None:
        _refuse(f"VM:PATH, with a path that is absolute, not {where!r}")
    return found


def _row(info: FileInfo) -> tuple[str, str, int, str, str]:
    mode = f"{_MARKS.get(info.kind, '-')} {info.mode:04o}"
    name = info.path + (f" -> {info.target}" if info.target is not None else "")
    return mode, f"{info.uid}:{info.gid}", info.size, age(info.modified_at), name


def _plain(found: list[FileInfo]) -> list[dict[str, object]]:
    """For JSON, which cannot say what is no UTF-8."""
    return [
        {
            "path": _text(one.path), "kind": one.kind, "size": one.size, "mode": one.mode, "uid": one.uid,
            "gid": one.gid, "links": one.links, "modified_at": one.modified_at,
            "target": None if one.target is None else _text(one.target),
        }
        for one in found
    ]  # fmt: skip


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode(errors="replace")


def _cut(truncated: str | None, json: bool) -> int:
    """Whoever takes a part for all of it is to notice: exit code 1."""
    if truncated is not None and not json:
        note(f"boxwood: this is not all: there is more than the {truncated} allowed")
    return 0 if truncated is None else 1


def _refuse(why: str) -> NoReturn:
    raise typer.BadParameter(why)
