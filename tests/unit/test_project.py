"""What holds the project together: the package that is built, the documents that go with it, what imports what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import boxwood

HOME = Path(__file__).parents[2]
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
SOURCES = sorted((HOME / "src").rglob("*.py"))
DOCUMENTS = [HOME / "README.md", HOME / "CHANGELOG.md", *sorted((HOME / "docs").rglob("*.md"))]
MOST_LINES = 700


def _named(path: Path) -> str:
    return str(path.relative_to(HOME))


def test_one_version() -> None:
    assert PROJECT["version"] == boxwood.__version__
    assert f"## {boxwood.__version__}" in (HOME / "CHANGELOG.md").read_text()


def test_every_dependency_is_explained() -> None:
    told = (HOME / "docs/decisions.md").read_text()
    names = [re.split(r"[<>=!~ ]", requirement)[0] for requirement in PROJECT["dependencies"]]
    assert [name for name in names if not re.search(rf"\b{name}\b", told)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_readme_names_targets_that_exist() -> None:
    makefile = (HOME / "Makefile").read_text()
    named = set(re.findall(r"make ([a-z-]+)", (HOME / "README.md").read_text()))
    assert {target for target in named if f"\n{target}:" not in makefile} == set()


@pytest.mark.parametrize("source", SOURCES, ids=_named)
def test_sources(source: Path) -> None:
    text = source.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module says what it is for"
    assert text.count("\n") <= MOST_LINES, "one noun per file"


def test_the_zygote_loads_neither_sdk_nor_server() -> None:
    """It forks boxes: what it has loaded, every box has."""
    program = "import sys; import boxwood.engine.zygote; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & {"starlette", "uvicorn", "httpx2", "msgspec", "typer", "rich", "sqlite3", "ssl", "http"} == set()
    assert not [name for name in done.stdout.split() if name.startswith("boxwood.client")]


def test_the_wheel(tmp_path: Path) -> None:
    """Pure Python, with migrations, type marker and licence, and nothing that is only ours."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=HOME, check=True, capture_output=True)
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(path.relative_to(HOME / "src")) for path in SOURCES}
    assert sources <= set(names)
    assert "boxwood/py.typed" in names and any(name.endswith(".sql") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"boxwood", f"boxwood-{boxwood.__version__}.dist-info"}


def test_bench_puts_tables_between_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HOME / "bench"))
    import measure
    import report as reports

    series = measure.Series("x", values=[3.0, 1.0, 2.0])
    assert (series.p50, series.percentile(0.99)) == (2.0, 3.0)
    report = reports.Report({"kernel": "6"}, "today")
    report.add("section", [series])
    report.ratio("x over x", series, series, 1.5)
    report.ratio("x over nothing", series, None, 1.5)
    assert report.met and report.remarks == ["not judged: x over nothing"]
    report.ratio("at least twice", series, series, 2, at_least=True)
    assert not report.met
    page = tmp_path / "page.md"
    page.write_text(f"before\n{reports.BEGIN}\nold\n{reports.END}\nafter\n")
    reports.insert(page, reports.full(report))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "**missed**" in text
    for document in (HOME / "README.md", HOME / "docs/benchmarks.md"):
        assert document.read_text().count(reports.BEGIN) == document.read_text().count(reports.END) == 1


def test_every_number_in_the_readme_is_one_of_the_benchmarks() -> None:
    measured = re.compile(r"\d[\d.,]* (?:µs|ms|s|[KMG]iB|runs/s|×)(?!\w)")
    page = set(measured.findall((HOME / "docs/benchmarks.md").read_text()))
    told = measured.findall((HOME / "README.md").read_text())
    assert len(told) > 10 and [number for number in told if number not in page] == []
