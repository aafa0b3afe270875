"""How values and exceptions are shown: MIME bundles, figures, frames of tracebacks. The front part of one program, of
which `python.py` is the rest."""

from __future__ import annotations

import linecache
import sys

TYPE_CHECKING = False  # `typing` takes longer to load than all of this
if TYPE_CHECKING:
    from typing import Any

MOST_FRAMES = 100
MOST_TEXT = 8 << 10  # characters of an exception's own text
MOST_PLAIN = 256 << 10  # characters of a value as text: more is cut off
MOST_DATA = 4 << 20  # characters of any other representation: a larger one is left out
MOST_ROWS = 1000  # of a data frame as JSON
METHODS = (
    ("_repr_html_", "text/html"), ("_repr_markdown_", "text/markdown"), ("_repr_svg_", "image/svg+xml"),
    ("_repr_png_", "image/png"), ("_repr_jpeg_", "image/jpeg"), ("_repr_pdf_", "application/pdf"),
    ("_repr_latex_", "text/latex"), ("_repr_json_", "application/json"),
    ("_repr_javascript_", "application/javascript"),
)  # fmt: skip


def bundle(interpreter: Any, value: Any) -> Any:
    """({MIME type: text, or JSON}, {MIME type: size of what was too large})."""
    data: Any = {}
    truncated: Any = {}
    kind = type(value)
    text = repr(value)
    if isinstance(value, type):
        found: Any = {}
    else:
        found = asked(value, kind)
    if is_figure(value):
        interpreter.shown.add(id(value))
        found = dict(found, **{"image/png": picture(value)})
    frame = rows_of(value)
    if frame is not None:
        found = dict(found, **{"application/json": frame})
    elif kind in (dict, list) and "application/json" not in found and is_json(value):
        found = dict(found, **{"application/json": value})
    for mime, said in dict(found, **{"text/plain": found.get("text/plain", text)}).items():
        put(str(mime), said, data, truncated)
    return data, truncated


def put(mime: str, said: Any, data: Any, truncated: Any) -> None:
    if said is None:
        return
    if isinstance(said, (bytes, bytearray)):
        import binascii

        said = binascii.b2a_base64(bytes(said), newline=False).decode()
    if isinstance(said, str):
        said = said.encode("utf-8", "backslashreplace").decode()
        size = len(said)
        if mime == "text/plain" and size > MOST_PLAIN:
            said, truncated[mime] = said[:MOST_PLAIN], size
        elif size > MOST_DATA:
            truncated[mime] = size
            return
    else:
        import json

        try:
            size = len(json.dumps(said, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            sys.stderr.write(f"boxwood: {mime} is no JSON: {cut(safe_text(error))}\n")
            return
        if size > MOST_DATA:
            truncated[mime] = size
            return
    data[mime] = said


def asked(value: Any, kind: Any) -> Any:
    """What the value says of itself. Asked of its class: an instance may answer to any name."""
    method = getattr(kind, "_repr_mimebundle_", None)
    if callable(method):
        said = guarded(lambda: method(value, include=None, exclude=None), "_repr_mimebundle_")
        if isinstance(said, tuple):
            said = said[0] if said else None
        if isinstance(said, dict):
            return {mime: part for mime, part in said.items() if isinstance(mime, str)}
    found = {}
    for name, mime in METHODS:
        method = getattr(kind, name, None)
        if callable(method):
            said = guarded(lambda method=method: method(value), name)
            if isinstance(said, tuple):  # with metadata
                said = said[0] if said else None
            if said is not None:
                found[mime] = said
    return found


def guarded(ask: Any, name: str) -> Any:
    """A representation that fails costs only itself."""
    try:
        return ask()
    except Exception as error:
        sys.stderr.write(f"boxwood: {name} failed: {type(error).__name__}: {cut(safe_text(error))}\n")
        return None


def is_json(value: Any) -> bool:
    import json

    try:
        return len(json.dumps(value, allow_nan=False)) <= 64 << 10
    except (TypeError, ValueError, RecursionError):
        return False


def rows_of(value: Any) -> Any:
    """A data frame's first rows as JSON: columns, data, and how many rows there are."""
    root = (type(value).__module__ or "").partition(".")[0]
    if root == "pandas" and hasattr(value, "head") and hasattr(value, "to_json"):
        import json

        said = guarded(lambda: json.loads(value.head(MOST_ROWS).to_json(orient="split", date_format="iso")), "to_json")
        return None if said is None else dict(said, rows=len(value))
    if root == "polars" and hasattr(value, "head") and hasattr(value, "rows"):
        return guarded(lambda: polars_rows(value), "rows")
    return None


def polars_rows(value: Any) -> Any:
    import json

    rows = json.loads(json.dumps([list(row) for row in value.head(MOST_ROWS).rows()], default=str))
    return {"columns": list(value.columns), "data": rows, "rows": len(value)}


# --- figures


def is_figure(value: Any) -> bool:
    return (type(value).__module__ or "").startswith("matplotlib.") and callable(getattr(value, "savefig", None))


def picture(figure: Any) -> bytes:
    import io

    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def show_figures(interpreter: Any) -> None:
    """What pyplot has open, each once, and closed then."""
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    plot = sys.modules.get("matplotlib.pyplot")
    if helpers is None or plot is None:
        return
    figures = [manager.canvas.figure for manager in helpers.Gcf.get_all_fig_managers()]
    for figure in figures:
        if id(figure) not in interpreter.shown:
            interpreter.show(figure, "figure")
    plot.close("all")


class PlotFinder:
    """Makes `matplotlib.pyplot.show()` show figures as results, from when it is imported on."""

    def __init__(self, interpreter: Any) -> None:
        self.interpreter = interpreter

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "matplotlib.pyplot" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        loader: Any = spec and spec.loader
        if loader is not None and hasattr(loader, "exec_module"):
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                module.show = lambda *args, **how: show_figures(self.interpreter)

            loader.exec_module = exec_module
        return spec


# --- exceptions


def safe_text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return ""


def cut(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "…"


def told(error: BaseException) -> str:
    """As python3 prints it, bounded."""
    import traceback

    text = "".join(traceback.TracebackException.from_exception(error, limit=-MOST_FRAMES).format())
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > 16 * MOST_TEXT:
        text = text[: 8 * MOST_TEXT] + "\n…\n" + text[-8 * MOST_TEXT :]
    return text


def frames_of(error: BaseException) -> Any:
    """The outermost first: file, line, name of the function, and the line of source where it is known."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        code, line = trace.tb_frame.f_code, trace.tb_lineno or 0
        found.append(frame_of(code.co_filename, line, code.co_name, trace.tb_frame.f_globals))
        if len(found) > MOST_FRAMES:
            del found[MOST_FRAMES // 2]  # of an endless recursion the ends are of interest
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        found.append(frame_of(str(error.filename), error.lineno or 0, "<module>", None))
    return found


def frame_of(file: str, line: int, name: str, names: Any) -> Any:
    source = linecache.getline(file, line, names).strip()
    return {"file": cut(file), "line": line, "name": cut(name), "source": cut(source)}
