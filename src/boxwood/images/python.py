"""The python of an image: `python`, `pip`, and an interpreter where the image's /usr has none."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from boxwood.images.shelf import ImageError

_WHEELS = ("usr/share/python-wheels", "usr/lib/python3*/ensurepip/_bundled", "usr/lib64/python3*/ensurepip/_bundled")
_NOT_TAKEN = ("site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "lib2to3", "__pycache__",
              "EXTERNALLY-MANAGED", "config-*")  # fmt: skip


def equip(root: Path) -> str | None:
    """Give the image whose root directory this is `python3`, `python` and `pip`; a text where one of them cannot be."""
    binaries = root / "usr/bin"
    if not os.path.lexists(binaries / "python3"):
        put_interpreter(root)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        debian = "deb_system" in sysconfig.get_scheme_names()
        packages = root / f"usr/local/lib/python{version}" / ("dist-packages" if debian else "site-packages")
        has_pip = False
    else:
        if not os.path.lexists(binaries / "python"):
            (binaries / "python").symlink_to("python3")
        version = _version(binaries / "python3")
        packages = root / f"usr/local/lib/python{version}/{_local_packages(root)}"
        has_pip = _has_pip(root, version)
    packages.mkdir(parents=True, exist_ok=True)
    if has_pip:
        return None
    wheel = _pip_wheel(root)
    if wheel is None:
        return "no pip: neither the host's python3 (python3-venv) nor the one that runs Boxwood brings its wheel"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    for name in ("pip", "pip3", f"pip{version}"):
        _script(root / "usr/local/bin" / name, f"python{version}")
    return None


def put_interpreter(root: Path) -> None:
    """Copy the interpreter that runs this into /usr/local: a prefix works wherever it is put."""
    prefix, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    local = root / "usr/local"
    source = Path(sysconfig.get_path("stdlib"))
    if not source.is_dir():
        raise ImageError(f"this host has no python3 in /usr, and {source} of the one that runs Boxwood is not there")

    def left_out(_: str, names: list[str]) -> set[str]:
        return {name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in _NOT_TAKEN)}

    shutil.copytree(source, local / "lib" / version, symlinks=True, ignore=left_out, dirs_exist_ok=True)
    (local / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy2(os.path.realpath(sys.executable), local / "bin" / version)
    for name in ("python3", "python"):
        (local / "bin" / name).symlink_to(version)
        if not os.path.lexists(root / "usr/bin" / name):
            (root / "usr/bin" / name).symlink_to(f"../local/bin/{version}")
    libraries = sorted(prefix.glob("lib/libpython3*.so*"))
    for library in libraries:
        shutil.copy2(library, local / "lib", follow_symlinks=False)
    if libraries:
        _prefer_local_libraries(root)


def _prefer_local_libraries(root: Path) -> None:
    """Let the loader look into /usr/local/lib first: the host's own libpython is another one of the same name."""
    (root / "etc/ld.so.conf.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/ld.so.conf.d/00-boxwood-python.conf").write_text("/usr/local/lib\n")
    if not (root / "etc/ld.so.conf").exists():
        (root / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n")
    loader = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if loader is not None:
        subprocess.run([loader, "-r", str(root)], check=True, capture_output=True)


def _version(python: Path) -> str:
    """Of the link python3 → python3.N."""
    if match := re.fullmatch(r"python(3\.\d+)", os.path.basename(os.path.realpath(python))):
        return match[1]
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _local_packages(root: Path) -> str:
    """Debian's interpreter looks into dist-packages, all others into site-packages."""
    return "dist-packages" if (root / "usr/lib/python3/dist-packages").is_dir() else "site-packages"


def _has_pip(root: Path, version: str) -> bool:
    places = ("usr/lib/python3/dist-packages", f"usr/lib/python{version}/site-packages",
              f"usr/lib64/python{version}/site-packages")  # fmt: skip
    return any((root / place / "pip/__main__.py").is_file() for place in places)


def _pip_wheel(root: Path) -> Path | None:
    places = [place for pattern in _WHEELS for place in root.glob(pattern)]
    places += [Path(sysconfig.get_path("stdlib")) / "ensurepip/_bundled", Path(sys.base_prefix) / "share/python-wheels"]
    wheels = [wheel for place in places for wheel in sorted(place.glob("pip-*.whl"))]
    return wheels[-1] if wheels else None


def _script(path: Path, python: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!/usr/bin/env {python}\nimport sys\n\nfrom pip._internal.cli.main import main\n\nsys.exit(main())\n"
    )
    path.chmod(0o755)
