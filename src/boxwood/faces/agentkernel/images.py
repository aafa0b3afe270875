"""Which golden an image name stands for. Asked of the server once, and again when a golden has gone.

In this order: what the caller said (`AgentKernel(images={…})`); a golden of that very name, with a dash for what no
golden's name can hold (`node:22-alpine` is what was imported as node-22-alpine); for the names of `ON_HOST` the golden
that was made of the server's own system, which has a shell and python3. Any other name is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from boxwood.client.fields import VMFields
from boxwood.faces.agentkernel.errors import ValidationError

HOST = "ubuntu"  # the golden made of the server's own system
ON_HOST = frozenset({"alpine:3.20", "alpine:3.24", "python:3.12-alpine", "python:3.12-slim"})  # as in the server

_OTHER = re.compile(r"[^A-Za-z0-9._-]+")


class Images:
    """`given`: the caller's own table, from image names to names of goldens."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self._given = dict(given or {})
        self._ids: dict[str, str] = {}

    @property
    def known(self) -> bool:
        """Has the server been asked?"""
        return bool(self._ids)

    def learn(self, goldens: Iterable[VMFields]) -> None:
        self._ids = {vm.name: vm.id for vm in goldens if vm.name is not None}

    def forget(self) -> None:
        self._ids = {}

    def taken(self, name: str) -> bool:
        """Is it a golden's name? A sandbox of that name could not be asked for."""
        return name in self._ids

    def source(self, image: str | None) -> str:
        """The golden to fork, by its id: one of the caller's own VMs may have the same name.

        :raises ValidationError: there is no such image; the message says how to get it.
        """
        names = self._names(image)
        for name in names:
            if (found := self._ids.get(name)) is not None:
                return found
        if HOST in names and not self._ids:
            return HOST  # a server that still makes its first golden: it says so itself
        wanted = image or HOST
        raise ValidationError(
            f"image {wanted}: not on this server; `boxwood image import {golden_name(wanted)} ROOTFS.tar` brings it "
            f"there, or AgentKernel(images={{{wanted!r}: NAME}}) names another golden for it"
        )

    def _names(self, image: str | None) -> tuple[str, ...]:
        if image is None:
            return (HOST,)
        if image in self._given:
            return (self._given[image],)
        own = golden_name(image)
        return (own, HOST) if image in ON_HOST else (own,)


def golden_name(image: str) -> str:
    """What the image is to be imported as."""
    return _OTHER.sub("-", image).strip("-")[:64]
