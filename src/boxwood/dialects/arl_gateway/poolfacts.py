"""What this protocol has to say of a pool, whoever made it: its image and its profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from boxwood.core.model import Pool
from boxwood.dialects.arl_gateway import words

PROFILE = "default"
ABOUT = "arl-gateway"  # the member of a pool's `about`


class PoolFacts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    image: str
    profile: str = PROFILE

    def about(self) -> dict[str, Any]:
        return {ABOUT: msgspec.to_builtins(self)}


def of(pool: Pool) -> PoolFacts:
    """Of one that was made elsewhere: the image that it was made from."""
    told = pool.about.get(ABOUT)
    if isinstance(told, Mapping):
        try:
            return msgspec.convert(told, PoolFacts)
        except msgspec.ValidationError:
            pass
    image = pool.about.get("image")
    name = image if isinstance(image, str) and image else pool.source_name or ""
    return PoolFacts(image=words.normalised(name) if name else "")
