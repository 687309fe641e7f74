"""Ports: the usual one when free, another one when not, and never another than the one that was asked for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.config import ApiSettings
from pipeline.errors import SupervisionError
from pipeline.ports import choose_ports, free_port, port_is_free
from pipeline.settings import load


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def environment(state: Path, **more: str) -> dict[str, str]:
    return {"EXPLORER_STATE": str(state), "EXPLORER_PROFILE": "demo", **more}


def test_a_port_that_was_asked_for_is_used_or_refused(tmp_path: Path, taken: int) -> None:
    port = free_port("127.0.0.1")
    ports = choose_ports(load(environment(tmp_path, EXPLORER_API_PORT=str(port))), demo=True)
    assert ports.environment["EXPLORER_API_PORT"] == str(port)
    assert ports.insisted == {"api.port": True, "simulator.port": False}
    with pytest.raises(SupervisionError, match=f"port {taken} of 127.0.0.1 is used"):
        choose_ports(load(environment(tmp_path, EXPLORER_API_PORT=str(taken))), demo=True)


def test_zero_is_any_free_port(tmp_path: Path) -> None:
    ports = choose_ports(load(environment(tmp_path, EXPLORER_API_PORT="0")), demo=False)
    assert port_is_free("127.0.0.1", int(ports.environment["EXPLORER_API_PORT"]))
    assert ports.remarks == ()


def test_the_usual_port_that_is_taken_is_replaced_and_that_is_told(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApiSettings.model_fields["port"], "default", taken)
    ports = choose_ports(load(environment(tmp_path)), demo=True)
    assert ports.environment["EXPLORER_API_PORT"] != str(taken)
    assert any(f"port {taken} is used by another program" in remark for remark in ports.remarks)


def test_the_simulator_keeps_its_address_between_runs(tmp_path: Path) -> None:
    first = choose_ports(load(environment(tmp_path, EXPLORER_SIMULATOR_PORT="0")), demo=True)
    again = choose_ports(load(environment(tmp_path)), demo=True)
    assert again.environment["EXPLORER_SIMULATOR_PORT"] == first.environment["EXPLORER_SIMULATOR_PORT"]
    assert again.environment["EXPLORER_SOURCE_HOSTS"] == first.environment["EXPLORER_SOURCE_HOSTS"]
