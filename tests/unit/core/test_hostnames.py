"""What labels of hosts stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwood.core import hostnames
from boxwood.core.ids import new_id

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (ULID.lower(), (ULID, 8080)),
        (f"{ULID.lower()}-80", (ULID, 80)),
        ("web", ("web", 8080)),
        ("web-80", ("web", 80)),
        ("web-8080-80", ("web-8080", 80)),
        ("web-0", ("web-0", 8080)),
        ("web-080", ("web-080", 8080)),
        ("web-65536", ("web-65536", 8080)),
        ("a--5", None),
        ("-80", None),
        ("web-", None),
        ("", None),
        ("a.b", None),
        ("a_b", None),
        ("WEB", None),
        ("ü", None),
        ("a" * 64, None),
    ],
)
def test_places(label: str, expected: tuple[str, int] | None) -> None:
    assert hostnames.place(label) == expected


@given(st.integers(1, 65535))
def test_a_label_leads_back_to_its_port(port: int) -> None:
    vm = new_id()
    assert hostnames.place(hostnames.label(vm, port)) == (vm, port)


@given(st.text(max_size=70))
def test_any_text_is_a_place_or_none(text: str) -> None:
    found = hostnames.place(text)
    assert found is None or (1 <= found.port <= 65535 and found.vm)


@pytest.mark.parametrize(
    ("domain", "good"),
    [
        ("localhost", True),
        ("ports.example.com", True),
        ("", False),
        (".x", False),
        ("x.", False),
        ("A", False),
        ("a b", False),
    ],
)
def test_domains(domain: str, good: bool) -> None:
    assert hostnames.is_domain(domain) is good
