"""A faithful Jetstream server (v1 and v2) over a seeded synthetic network; its ledger is the truth in tests.

What happens to one event: `generator` (frequent kinds) or `rare` draws it from the `population` with `records`, `text` and `ids`;
`oddities` and `poison` add what scenarios ask for; `network` appends it to the `log`; `connection` sends it as `wire`, `blocks`
and `flaws` shape it, unless `misbehaviour`, `refusals` or `incidents` interfere. `cursors` says where a subscription begins;
`archive` serves sealed history as segment files. `ledger` reads the log without any of this running.
"""
