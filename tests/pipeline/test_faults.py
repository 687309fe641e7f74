"""Every fault that orders something of the simulator orders what the simulator understands."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from pipeline.campaign import Outcome
from pipeline.faults import FAULTS, Limits
from simulator.scenarios import SCENARIOS, Scenarios


class Listener:
    """Takes orders in place of a stack."""

    def __init__(self) -> None:
        self.orders: list[str] = []

    def control(self, action: str) -> dict[str, Any]:
        self.orders.append(action)
        return {}


def test_orders_to_the_simulator_are_understood() -> None:
    heard = 0
    for fault in FAULTS:
        listener = Listener()
        if fault.name.startswith("source") and fault.name not in ("source killed", "source frozen"):
            fault.strike(listener, Limits(1.0, 1.0), 0)  # type: ignore[arg-type]
        for order in listener.orders:
            action, _, query = order.partition("?")
            options = dict(parse_qsl(query))
            assert action == "scenario"
            name = options.pop("name")
            assert name in SCENARIOS
            Scenarios(0, ()).arm(name, options)
            heard += 1
    assert heard == 5


def test_names_are_unique_and_every_target_is_one_of_the_two() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert {fault.asked for fault in FAULTS} == {15.0, 30.0}


def test_a_fault_fails_by_its_slowest_recovery_or_by_a_single_event() -> None:
    fault = next(fault for fault in FAULTS if fault.asked == 15.0)
    assert Outcome(fault).gate().passed is None
    assert Outcome(fault, [3.0, 15.0]).gate().passed
    assert Outcome(fault, [3.0, 15.1]).gate().passed is False
    assert Outcome(fault, [3.0], lost=1).gate().passed is False
    assert Outcome(fault, [3.0], repeated=1).gate().passed is False
