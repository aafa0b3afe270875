"""Every target of `make fuzz` for a moment, with changes that are the same each time: so that none of them rots."""

from __future__ import annotations

import random

import pytest

from fuzz.target import CORPUS, NAMES, load, mutated

CHANGES = 250


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_what_was_found(name):
    target = load(name)
    for data in (b"", *target.seeds):
        target.run(data)


@pytest.mark.parametrize("name", NAMES)
def test_some_changes(name):
    target, noise = load(name), random.Random(name)
    for _ in range(CHANGES):
        data = mutated(target, noise)
        try:
            target.run(data)
        except BaseException as error:
            error.add_note(f"the input: {data[:2000]!r}")
            raise


def test_findings_belong_to_targets():
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= set(NAMES)
