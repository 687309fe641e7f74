"""The ports of a local stack: the usual ones when they are free, others when not, the operator's when there are any."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass

from api.config import ApiSettings
from pipeline.errors import SupervisionError
from pipeline.settings import Loaded, chosen_file


@dataclass(frozen=True)
class Ports:
    """The ports of one run: what the children are told, which ones the operator insisted on, what to say about it."""

    environment: dict[str, str]
    insisted: dict[str, bool]
    remarks: tuple[str, ...]


def choose_ports(loaded: Loaded, *, demo: bool) -> Ports:
    """Free ports instead of taken ones, where the operator did not insist; remembered in `<state>/chosen.json`.

    Raises SupervisionError when a port that was asked for is taken.
    """
    settings = loaded.settings
    wanted = {"api.port": (settings.api.host, settings.api.port)}
    if demo:
        wanted["simulator.port"] = (settings.simulator.host, settings.simulator.port)
    chosen: dict[str, int] = {}
    insisted: dict[str, bool] = {}
    remarks: list[str] = []
    for name, (host, port) in wanted.items():
        variable = f"EXPLORER_{name.replace('.', '_').upper()}"
        insisted[name] = port != 0 and not loaded.origin(name).startswith(("default", "profile"))
        if insisted[name]:
            if not port_is_free(host, port):
                raise SupervisionError(
                    f"port {port} of {host} is used by another program",
                    f"stop that program or choose another port with {variable}",
                )
            chosen[name] = port
            continue
        candidates = [port] if port else []
        if name == "api.port" and port:
            # Back to the usual one as soon as it is free; the simulator's address is its identity and stays.
            candidates.insert(0, ApiSettings.model_fields["port"].default)
        chosen[name] = next((each for each in candidates if port_is_free(host, each)), 0) or free_port(host)
        if candidates and chosen[name] != candidates[0]:
            remarks.append(
                f"port {candidates[0]} is used by another program: {variable} is {chosen[name]} for this run"
            )
    path = chosen_file(settings.state)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(chosen), encoding="utf-8")
    environment = {f"EXPLORER_{name.replace('.', '_').upper()}": str(port) for name, port in chosen.items()}
    if demo:
        environment["EXPLORER_SOURCE_HOSTS"] = f"ws://{settings.simulator.host}:{chosen['simulator.port']}"
    return Ports(environment, insisted, tuple(remarks))


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str) -> int:
    """A port that nothing listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
