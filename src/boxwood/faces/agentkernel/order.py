"""What a caller asks for, checked and said in the words of the client: commands, names, profiles, sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boxwood.faces.agentkernel.errors import ValidationError, coming

VCPUS, MEMORY_MB = 1, 512  # of a sandbox that was not told otherwise, and the most that profile moderate allows
PROFILES = ("permissive", "moderate", "restrictive")

_NAME = re.compile(r"(?!.*[-_]{2})[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9._/:@-]{1,256}")
_NOTE = re.compile(r"agentkernel image=(\S+)")


@dataclass(frozen=True)
class Order:
    """A VM to be made. `image` None: the default one; sizes in processors and MiB."""

    image: str | None = None
    vcpu: int = VCPUS
    memory_mib: int = MEMORY_MB

    @classmethod
    def of(
        cls,
        image: str | None = None,
        *,
        vcpus: int | None = None,
        memory_mb: int | None = None,
        profile: str | None = None,
    ) -> Order:
        """:raises ValidationError: no such profile, no name of an image, or a size that is none.
        :raises ServerError: a profile that cannot be enforced.
        """
        if image is not None and not _IMAGE.fullmatch(image):
            raise ValidationError(f"not the name of an image: {image!r}")
        for name, size in (("vcpus", vcpus), ("memory_mb", memory_mb)):
            if size is not None and size < 1:
                raise ValidationError(f"{name}: at least 1, not {size}")
        cores, memory = VCPUS if vcpus is None else vcpus, MEMORY_MB if memory_mb is None else memory_mb
        if _checked_profile(profile) == "moderate":
            return cls(image, min(cores, VCPUS), min(memory, MEMORY_MB))
        return cls(image, cores, memory)

    @property
    def note(self) -> str | None:
        """What the VM's description keeps of the order: the server knows the golden, not how it was called here."""
        return None if self.image is None else f"agentkernel image={self.image}"


def _checked_profile(profile: str | None) -> str | None:
    wanted = profile.lower() if profile else None
    if wanted == "restrictive":
        what = "profile restrictive (a root file system that is read-only, half a processor)"
        raise coming(what, "moderate is the nearest")
    if wanted is not None and wanted not in PROFILES:
        raise ValidationError(f"no profile {profile!r}: there are {', '.join(PROFILES)}")
    return wanted


def noted_image(description: str | None) -> str | None:
    found = _NOTE.fullmatch(description or "")
    return found[1] if found else None


def exec_text(command: Sequence[str]) -> str:
    """Shell text that runs exactly these arguments. `exec` looks for a program, never for a function, a builtin or a
    keyword; each word in quotes is no assignment and no alias either.

    :raises ValidationError: nothing to run, or something that is not text.
    """
    words: list[object] = [] if isinstance(command, str | bytes) else list(command)
    texts = [word for word in words if isinstance(word, str)]
    if not texts or len(texts) != len(words):
        raise ValidationError("a command is a list of arguments, all of them text, and at least one")
    if any("\0" in text for text in texts):
        raise ValidationError("an argument cannot hold NUL")
    dash = "-- " if texts[0].startswith("-") else ""  # older shells know no -- here
    return f"exec {dash}" + " ".join(_quoted(text) for text in texts)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def checked_name(name: str) -> str:
    """:raises ValidationError: not 1 to 63 letters, digits, single `-` and `_`, a letter or digit at both ends."""
    if not is_name(name):
        raise ValidationError(
            f"not the name of a sandbox: {name!r}; 1 to 63 letters, digits, - and _ (no two of these in a row, none "
            "at an end)"
        )
    return name


def is_name(name: str | None) -> bool:
    return name is not None and _NAME.fullmatch(name) is not None


def environment(env: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """A mapping, or a list of `NAME=value`. :raises ValidationError: an entry of the list is neither."""
    if env is None or isinstance(env, Mapping):
        return dict(env or {})
    if wrong := [pair for pair in env if "=" not in pair[1:]]:
        raise ValidationError(f"env: NAME=value, not {wrong[0]!r}")
    return dict(pair.split("=", 1) for pair in env)


def file_path(path: str) -> str:
    """Absolute, as everywhere in a sandbox. :raises ValidationError: it climbs."""
    if ".." in path.split("/"):
        raise ValidationError(f"path: without .., not {path!r}")
    return "/" + path.lstrip("/")
