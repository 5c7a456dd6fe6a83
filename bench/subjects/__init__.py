"""The table of subjects: what stands between the load and the upstream, how it is started, how its books are read.

A new subject is a row in the table of its group: a name, where its program is, and how to start it on a free port of
the loopback address so that it passes everything on to an upstream. One whose program is not found is left out, and
the report says so.
"""

from bench.subjects.base import Address, Served, Subject, Upstream, address_in
from bench.subjects.floors import FLOORS
from bench.subjects.ours import OURS, audit_ledger, audit_money
from bench.subjects.peers import PEERS
from bench.subjects.watched import WATCHED

SUBJECTS = (*FLOORS, *OURS, *WATCHED, *PEERS)

__all__ = [
    "FLOORS",
    "OURS",
    "PEERS",
    "SUBJECTS",
    "WATCHED",
    "Address",
    "Served",
    "Subject",
    "Upstream",
    "address_in",
    "audit_ledger",
    "audit_money",
]
