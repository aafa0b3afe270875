"""How docs/compatibility.md's tables are made. That they are true is seen at the end of each family's own file."""

from __future__ import annotations

import pytest

from scenarios import table

CLIENT = table.AGENTKERNEL[0]
ROWS: table.Rows = {(CLIENT, "AgentKernel"): {"run": "works", "browser": "not tried", "list_objects": "refused"}}


@pytest.mark.parametrize("family", table.FAMILIES)
def test_what_is_told_can_be_read_again(family: str) -> None:
    told = table.block(family)
    assert table.render(family, table.parse(told)) == told


def test_what_a_cell_says() -> None:
    said = [
        table.cell(outcomes) for outcomes in (["failed", "works"], ["refused", "failed"], ["broken"], ["failed"], [])
    ]
    assert said == ["works", "refused", "broken", "?", "?"]


def test_rows_are_written_and_read() -> None:
    assert table.parse(table.render("agentkernel", ROWS)) == ROWS


def test_what_works_and_is_told_otherwise() -> None:
    seen = {(CLIENT, "AgentKernel"): {"run": "?", "browser": "works", "list_objects": "refused"}}
    assert table.denied(ROWS, ROWS) == []
    assert len(table.denied(ROWS, seen)) == 1


def test_what_is_not_tried_has_a_reason() -> None:
    settled = table.settled({(CLIENT, "AgentKernel"): {"browser": "?"}})
    assert settled == {(CLIENT, "AgentKernel"): {"browser": "not tried"}}
    for row in ({"run": "?"}, {"browser": "works"}):
        with pytest.raises(AssertionError):
            table.settled({(CLIENT, "AgentKernel"): row})
