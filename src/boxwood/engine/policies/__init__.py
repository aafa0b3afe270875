"""Network policies: what their words mean, and what they say to connections, names and requests.

Nothing here opens, sends or stores anything: text in, verdicts out. The router judges connections and names by it, the
proxy requests, the server what its callers write. docs/policies.md is the same for people.
"""

from boxwood.engine.policies.actions import SERVERS, Action, Gate, Rewrite
from boxwood.engine.policies.connections import ConnectionVerdict, Outcome, connection_verdict, name_verdict
from boxwood.engine.policies.document import (
    HIDDEN,
    Policies,
    Update,
    parse,
    parse_ordered,
    parse_update,
    secret_name,
    secret_value,
)
from boxwood.engine.policies.hosts import HostPattern, canonical
from boxwood.engine.policies.match import Match
from boxwood.engine.policies.reading import Malformed
from boxwood.engine.policies.requests import (
    Answer,
    Request,
    RequestVerdict,
    Sought,
    inbound_verdict,
    request_verdict,
    stays_open,
    takes_strangers,
)
from boxwood.engine.policies.rules import Rule, Unavailable
from boxwood.engine.policies.spellings import all_spellings
from boxwood.engine.policies.templates import Token, expand
from boxwood.engine.policies.timed import TimedRule

__all__ = [
    "HIDDEN",
    "SERVERS",
    "Action",
    "Answer",
    "ConnectionVerdict",
    "Gate",
    "HostPattern",
    "Malformed",
    "Match",
    "Outcome",
    "Policies",
    "Request",
    "RequestVerdict",
    "Rewrite",
    "Rule",
    "Sought",
    "TimedRule",
    "Token",
    "Unavailable",
    "Update",
    "all_spellings",
    "canonical",
    "connection_verdict",
    "expand",
    "inbound_verdict",
    "name_verdict",
    "parse",
    "parse_ordered",
    "parse_update",
    "request_verdict",
    "secret_name",
    "secret_value",
    "stays_open",
    "takes_strangers",
]
