"""What can be set: defaults, then DATA/config.toml, then BOXWOOD_* of the environment, then what the caller says.

The names of the file's keys are those of the fields below; the environment's are the same in capitals behind
`BOXWOOD_` (`BOXWOOD_IDLE_SECONDS=10`); a list's entries stand between commas there.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from boxwood.core.hostnames import is_domain
from boxwood.engine.levels import LEVELS

MIB = 1 << 20
PIDS_LEAST = 16  # a box that can have fewer processes is of no use
NOFILE_LEAST = 1024  # … and one whose agent can have fewer files open
NETWORKS = ("internet", "none")  # what a VM can have
DIALECTS = ("agentkernel", "arl-kubernetes", "arl-gateway")  # other systems' protocols that can be switched off

# What other systems' names of images stand for where nothing else is said: the image of this host.
IMAGE_NAMES = {
    "alpine:3.20": "arkuntu",
    "alpine:3.24": "arkuntu",
    "python:3.12-alpine": "arkuntu",
    "python:3.12-slim": "arkuntu",
}


class ConfigError(ValueError):
    """A setting is wrong; the text names it, where it came from and what it may be."""


@dataclass(frozen=True, slots=True)
class Config:
    """`data` and `images` are directories; the names end in their units; `vcpu` 0 is no bound."""

    data: Path
    images: Path = Path("/var/cache/boxwood/images")
    host: str = "127.0.0.1"
    port: int = 18888
    kubernetes_port: int = -1  # of the https listener for kubectl and its like; -1: the port after `port`
    arl_port: int = 0  # on which ARL's gateway protocol is served without its prefix; 0: nowhere
    idle_seconds: float = 60.0  # a box that has nothing to do for so long is parked
    pool_vms: int = 512  # that may wait in all pools together
    pool_vms_each: int = 256  # … in those of one organisation
    ready_boxes: int = 8  # booted ahead of demand, of the images and VMs that are forked these days
    awake_ms: float = 20.0  # after a request in which idle processors do not go to sleep; 0: they do as they like
    vms_most: int = 100_000  # there may be, of all organisations
    boxes_most: int = 4096  # live boxes at once; idle ones are parked for others
    memory_spare_mib: int = 256  # of the host's, without which no more boxes are booted
    disk_spare_mib: int = 256  # … no more VMs are made
    vcpu: int = 0
    memory_mib: int = 2048
    pids: int = 4096
    disk_mib: int = 0  # above its image, of a VM that is forked and was not told otherwise; 0: no limit
    disk_mib_most: int = 0  # ceiling of what a VM can be given, and what those have that were given none; 0: none
    nofile: int = 0  # open files of each process; 0: what the host gives
    io_weight: int = 100  # each box's share of the disk's time, beside 100 of all else; 0: it is not shared out
    vcpu_most: int = 0  # ceilings of what a VM can be given; 0: none
    memory_mib_most: int = 0
    pids_most: int = 0
    nofile_most: int = 0
    output_bytes: int = 64 * MIB  # kept of each stream of a run
    runs_kept: int = 10_000  # of each VM: ended runs, the newest
    runs_kept_bytes: int = 1024 * MIB  # … with so much output
    runs_kept_seconds: float = 30 * 86400.0  # … for so long
    records_bytes: int = 1024 * MIB  # of the objects that other systems' protocols keep for one organisation
    idempotency_seconds: float = 48 * 3600.0  # that the key of a request is remembered
    uploads_seconds: float = 24 * 3600.0  # that what has come of a file is kept until the rest comes
    log_bytes: int = 64 * MIB  # of each file in DATA/log, and of the older one beside it
    file_bytes: int = 1024 * MIB  # largest file that can be written
    requests_per_second: float = 2000.0  # of one API key; 0: as many as come
    requests_burst: int = 4000  # … at once after a rest
    requests_at_once: int = 10_000  # … that have not been answered yet; 0: as many as come
    bodies_bytes: int = 256 * MIB  # of one organisation's requests that are in memory until they are answered
    wait_seconds: float = 300.0  # longest time a request waits for the end of a run
    arl_hold_seconds: float = 240.0  # how long ARL's gateway holds a request for its result, before it says 202
    layers_merged_above: int = 48
    layers_refused_above: int = 400
    require: str = ""  # level of isolation below which no server starts: basic, limits, full; empty: what boxes need
    network: str = "internet"  # of a VM that was not told otherwise; or "none"
    network_allow: tuple[str, ...] = ()  # private addresses and names that VMs may reach all the same
    ports_domain: str = "localhost"  # VM-PORT.DOMAIN is a port of a VM; empty: nothing is
    ssh: str = ""  # ADDRESS:PORT at which VMs take SSH; empty: nowhere
    share_client_config: bool = False  # the host image has the host's pip, npm and apt settings and its certificates
    dialects: tuple[str, ...] = DIALECTS  # which of them are spoken
    image_names: Mapping[str, str] = field(default_factory=lambda: dict(IMAGE_NAMES))  # goldens by images' names

    @classmethod
    def load(cls, data: Path | str | None = None, *, environ: Mapping[str, str] | None = None, **given: Any) -> Config:
        """`data`: the data directory, else `BOXWOOD_DATA`, else the user's default one. ConfigError."""
        environ = os.environ if environ is None else environ
        place = Path(data or environ.get("BOXWOOD_DATA") or default_data()).expanduser().absolute()
        values: dict[str, Any] = {"data": place}
        origins: dict[str, str] = {}
        if os.geteuid() != 0:
            values["images"] = default_images()
        known = {one.name: one for one in fields(cls) if one.name != "data"}
        file = place / "config.toml"
        for name, value in _read_file(file).items():
            if name not in known:
                raise ConfigError(f"{file}: unknown setting {name!r}; known are {', '.join(sorted(known))}")
            values[name], origins[name] = value, str(file)
        for name in known:
            if text := environ.get(f"BOXWOOD_{name.upper()}"):
                values[name], origins[name] = text, f"BOXWOOD_{name.upper()}"
        for name, value in given.items():
            if value is not None:
                values[name], origins[name] = value, "the caller"
        for name in known.keys() & values.keys():
            values[name] = _convert(name, str(known[name].type), values[name], origins[name])
        return cls(**values)

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}: it must be between {low:g} and {high:g}")
        bounded = (("vcpu", 1), ("memory_mib", 64), ("pids", PIDS_LEAST), ("nofile", NOFILE_LEAST), ("disk_mib", 16))
        for name, least in bounded:
            self._check_ceiling(name, least)
        if 0 < self.io_weight < 10:
            raise ConfigError(f"io_weight is {self.io_weight}: it must be 0 (no shares) or 10 to 1000")
        if not self.host:
            raise ConfigError("host is empty: give an address to listen on, such as 127.0.0.1")
        if self.network not in NETWORKS:
            raise ConfigError(f"network is {self.network!r}: it must be {' or '.join(NETWORKS)}")
        if self.ports_domain and not is_domain(self.ports_domain):
            raise ConfigError(
                f"ports_domain is {self.ports_domain!r}: it must be a name in small letters like localhost, or empty"
            )
        if self.require and self.require not in LEVELS:
            raise ConfigError(f"require is {self.require!r}: it must be {' or '.join(LEVELS)}, or empty")
        if unknown := set(self.dialects) - set(DIALECTS):
            raise ConfigError(f"dialects names {sorted(unknown)[0]!r}: known are {', '.join(DIALECTS)}, or none")

    def _check_ceiling(self, name: str, least: int) -> None:
        """A VM that is not told otherwise must fit under the ceiling, and one that is of use too."""
        default, most = getattr(self, name), getattr(self, f"{name}_most")
        if 0 < most < least:
            raise ConfigError(f"{name}_most is {most}: it must be 0 (no ceiling) or at least {least}")
        if most and default > most:
            raise ConfigError(f"{name} is {default}, more than {name}_most, {most}: lower it or raise the ceiling")
        if name in ("nofile", "disk_mib") and 0 < default < least:
            raise ConfigError(f"{name} is {default}: it must be 0 (what the host gives) or at least {least}")


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("port", 0, 65535),
    ("kubernetes_port", -1, 65535),
    ("arl_port", 0, 65535),
    ("idle_seconds", 0, 30 * 86400),
    ("pool_vms", 0, 100_000),
    ("pool_vms_each", 0, 100_000),
    ("ready_boxes", 0, 1000),
    ("awake_ms", 0, 1000),
    ("vms_most", 0, 1 << 40),
    ("boxes_most", 1, 1 << 20),
    ("memory_spare_mib", 0, 1 << 24),
    ("disk_spare_mib", 0, 1 << 34),
    ("vcpu", 0, 255),
    ("memory_mib", 0, 1 << 24),
    ("pids", PIDS_LEAST, 1 << 22),
    ("disk_mib", 0, 1 << 23),
    ("disk_mib_most", 0, 1 << 23),
    ("nofile", 0, 1 << 20),
    ("io_weight", 0, 1000),
    ("vcpu_most", 0, 255),
    ("memory_mib_most", 0, 1 << 24),
    ("pids_most", 0, 1 << 22),
    ("nofile_most", 0, 1 << 20),
    ("output_bytes", 65536, 1 << 40),
    ("runs_kept", 1, 1 << 40),
    ("runs_kept_bytes", 0, 1 << 44),
    ("runs_kept_seconds", 0, 100 * 366 * 86400),
    ("records_bytes", 16 * MIB, 1 << 44),
    ("idempotency_seconds", 60, 100 * 366 * 86400),
    ("uploads_seconds", 60, 100 * 366 * 86400),
    ("log_bytes", 65536, 1 << 44),
    ("file_bytes", 1, 1 << 44),
    ("requests_per_second", 0, 1e9),
    ("requests_burst", 1, 1 << 40),
    ("requests_at_once", 0, 1 << 40),
    ("bodies_bytes", 32 * MIB, 1 << 44),
    ("wait_seconds", 0, 3600),
    ("arl_hold_seconds", 0, 3600),
    ("layers_merged_above", 1, 400),
    ("layers_refused_above", 2, 480),
)


def default_data() -> Path:
    """The data directory of whoever runs this: the machine's for root, else the user's own."""
    return Path("/var/lib/boxwood") if os.geteuid() == 0 else Path("~/.local/share/boxwood").expanduser()


def default_images() -> Path:
    """Where images are that all data directories of whoever runs this share."""
    return Path("/var/cache/boxwood/images") if os.geteuid() == 0 else default_data() / "images"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _convert(name: str, kind: str, value: Any, origin: str) -> Any:
    wanted, fits, make = _KINDS[kind]
    try:
        if isinstance(value, fits) and (bool in fits or not isinstance(value, bool)):
            return make(value)
    except ValueError:
        pass
    raise ConfigError(f"{origin}: {name} is {value!r}, not {wanted}")


def _truth(value: bool | str) -> bool:
    """ValueError."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, str) and value.strip().lower() not in words:
        raise ValueError
    return words[value.strip().lower()] if isinstance(value, str) else value


def _texts(value: str | list[Any] | tuple[Any, ...]) -> tuple[str, ...]:
    """ValueError."""
    entries = value.split(",") if isinstance(value, str) else value
    if not all(isinstance(entry, str) for entry in entries):
        raise ValueError
    return tuple(entry.strip() for entry in entries if entry.strip())


def _names(value: str | dict[str, Any]) -> dict[str, str]:
    """Over the defaults; a name that stands for nothing is none. ValueError."""
    pairs = dict(_pair(entry) for entry in _texts(value)) if isinstance(value, str) else value
    if not all(isinstance(stands_for, str) for stands_for in pairs.values()):
        raise ValueError
    return {name: stands_for for name, stands_for in {**IMAGE_NAMES, **pairs}.items() if stands_for}


def _pair(entry: str) -> tuple[str, str]:
    """ValueError."""
    name, stands_for = entry.split("=")
    return name.strip(), stands_for.strip()


# What a setting of each type must be, the types of what may stand for it, and how it is made of that.
_KINDS: dict[str, tuple[str, tuple[type, ...], Callable[[Any], Any]]] = {
    "Path": ("a path", (str, Path), lambda value: Path(value).expanduser().absolute()),
    "int": ("a whole number", (int, str), int),
    "float": ("a number", (int, float, str), float),
    "str": ("a text", (str,), str),
    "bool": ("true or false", (bool, str), _truth),
    "tuple[str, ...]": ("a list of texts", (str, list, tuple), _texts),
    "Mapping[str, str]": ("a table of texts", (str, dict), _names),
}
