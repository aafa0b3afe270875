"""Rules of time: what they say, how they are shown, and that nothing of traffic hears of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from boxwood.engine import policies
from boxwood.engine.policies import Malformed

NOW = datetime(2026, 11, 22, tzinfo=UTC)
LATER, BEFORE = "2026-11-23T00:00:00Z", "2026-11-21T00:00:00Z"
DENY = {"type": "outbound", "priority": 1, "action": "deny"}


def schedule(action: str = "delete", **members: Any) -> dict[str, Any]:
    return {"type": "schedule", **members, "action": action}


def lifecycle(**when: Any) -> dict[str, Any]:
    return {"type": "lifecycle", "when": when, "action": "delete"}


KEPT = [
    schedule(at=LATER),
    schedule(after_created=1),
    schedule(after_last_running_start=2592000),
    schedule("suspend", at=LATER),
    schedule("suspend", at=BEFORE),
    schedule("suspend", after_created=60),
    schedule("suspend", after_last_running_start=60),
    lifecycle(at=LATER),
    lifecycle(after=60),
]


@pytest.mark.parametrize("rule", KEPT)
def test_what_is_kept_is_shown_as_it_was_written(rule):
    made = policies.parse_update({"rules": {"end": rule}}, NOW).apply(policies.Policies())
    assert made.to_json() == {"end": rule} == policies.parse(made.to_json()).to_json()
    assert made.ordered() == [rule]
    again = policies.parse_ordered({"policies": made.ordered()}, NOW).apply(made)
    assert again.to_json() == {"rule-0": rule}


def test_a_moment_is_one_whatever_its_zone():
    made = policies.parse({"end": schedule(at="2026-11-23t02:00:00+02:00")})
    assert made.to_json() == {"end": schedule(at=LATER)} and made == policies.parse({"end": schedule(at=LATER)})


@pytest.mark.parametrize(
    ("rule", "field", "problem"),
    [
        (schedule(), "end", "exactly one of at, after_created and after_last_running_start says when, not none"),
        (schedule(at=LATER, after_created=5), "end", "not at and after_created"),
        (schedule(after=5), "end.'after'", "there is no such member"),
        (schedule(at=BEFORE), "end.at", "must be in the future: to delete the VM now, delete it"),
        (schedule(at="2026-11-22T00:00:00Z"), "end.at", "must be in the future"),
        (schedule("suspend", at="tomorrow"), "end.at", "a time such as 2030-01-31T12:00:00Z"),
        (schedule("suspend", at="2026-11-23T00:00:00"), "end.at", "with its zone"),
        (schedule("suspend", at="2026-11-23"), "end.at", "a time such as"),
        (schedule("suspend", at="0001-01-01T00:00:00+14:00"), "end.at", "a time such as"),
        (schedule("suspend", at=5), "end.at", "must be a text"),
        (schedule(after_created=0), "end.after_created", "between 1 and 2592000, not 0"),
        (schedule(after_created=2592001), "end.after_created", "between 1 and 2592000"),
        (schedule(after_created=True), "end.after_created", "must be a whole number"),
        (schedule(after_created=1.5), "end.after_created", "must be a whole number"),
        (schedule("allow", after_created=5), "end.action", "must be delete or suspend, not 'allow'"),
        (schedule({"suspend": True}, after_created=5), "end.action", "must be delete or suspend"),
        ({"type": "schedule", "after_created": 5}, "end.action", "must be there"),
        (schedule(after_created=5, priority=1), "end.priority", "no effect on traffic"),
        (schedule(after_created=5, match={}), "end.match", "no effect on traffic"),
        (schedule(after_created=5, auth="open"), "end.auth", "no effect on traffic"),
        ({"type": "lifecycle", "action": "delete"}, "end.when", '{"at": TIME} or {"after": SECONDS}'),
        ({**lifecycle(after=5), "action": "suspend"}, "end.action", "must be delete, not 'suspend'"),
        (lifecycle(), "end.when", "exactly one of at and after says when, not none"),
        (lifecycle(at=LATER, after=5), "end.when", "not at and after"),
        (lifecycle(after_created=5), "end.when.'after_created'", "there is no such member"),
        (lifecycle(at=BEFORE), "end.when.at", "must be in the future"),
        (lifecycle(after=0), "end.when.after", "between 1 and 2592000"),
        ({**lifecycle(after=5), "at": LATER}, "end.'at'", "there is no such member"),
        ({"type": "timer", "action": "delete", "priority": 1}, "end.type", "must be outbound or inbound or schedule or lifecycle"),
    ],
)  # fmt: skip
def test_what_is_refused(rule, field, problem):
    with pytest.raises(Malformed) as refused:
        policies.parse_update({"rules": {"end": rule}}, NOW)
    assert refused.value.field == f"policies.rules.{field}" and problem in refused.value.problem


def test_both_forms_of_a_list_refuse_a_past_deletion_and_what_is_stored_is_read_all_the_same():
    with pytest.raises(Malformed, match=r"policies\[0\]\.at: must be in the future"):
        policies.parse_ordered({"policies": [schedule(at=BEFORE)]}, NOW)
    with pytest.raises(Malformed, match=r"policies\.policies\[0\]\.at: must be in the future"):
        policies.parse_update({"policies": [schedule(at=BEFORE)]}, NOW)
    assert policies.parse({"end": schedule(at=BEFORE)}).to_json() == {"end": schedule(at=BEFORE)}


def test_traffic_knows_nothing_of_them():
    made = policies.parse({"end": schedule(after_created=5), "deny": DENY})
    assert made.of_traffic == policies.parse({"deny": DENY}) and made.of_traffic.outbound == made.outbound
    assert [rule.ident for rule in made.timed] == ["end"] and made.ordered()[-1] == schedule(after_created=5)
    alone = policies.parse({"end": schedule(after_created=5)})
    assert alone and not alone.of_traffic and alone.allows_unmatched and not alone.needs_proxy and not alone.secrets
    plain = policies.parse({"deny": DENY})
    assert plain.of_traffic is plain


def test_they_are_removed_and_counted_as_others_are():
    before = policies.parse({"end": schedule(after_created=5), "deny": DENY})
    assert policies.parse_update({"rules": {"end": None}}, NOW).apply(before).to_json() == {"deny": DENY}
    many = {f"r{n}": schedule(after_created=n + 1) for n in range(256)}
    with pytest.raises(Malformed, match="at most 256 rules, not 258"):
        policies.parse_update({"rules": many}, NOW).apply(before)
