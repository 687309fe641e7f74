"""Which server to use next: an ordered list, fail-over after repeated failures, return to the preferred one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote, urlsplit

from producers import wire_v1, wire_v2

Protocol = Literal["v1", "v2"]


@dataclass
class Host:
    """One server: `name` is what cursors and rows call it (host, and port when one is given)."""

    url: str
    wires: list[Protocol]
    """Wires still to be tried, the one in use first."""
    refused: str | None = field(default=None)
    """Why this server will never serve us; None while it may."""

    @property
    def name(self) -> str:
        """Host, with its port when the URL has one."""
        return urlsplit(self.url).netloc

    @property
    def protocol(self) -> Protocol:
        """The wire in use."""
        return self.wires[0]


class HostRotation:
    """Says which host to connect to. `now` is any monotonic clock in seconds, given by the caller."""

    def __init__(self, urls: Sequence[str], protocol: str, failures_before_switch: int, return_after: float) -> None:
        self._hosts = [_host(url, protocol) for url in urls]
        self._index = 0
        self._failures = 0
        self._failures_before_switch = failures_before_switch
        self._return_after = return_after
        self._away_since: float | None = None

    @property
    def current(self) -> Host:
        """The host to use now."""
        return self._hosts[self._index]

    @property
    def preferred(self) -> Host | None:
        """The first host that is not refused, when it is another one than the current; None otherwise."""
        first = next((host for host in self._hosts if host.refused is None), None)
        return first if first is not None and first is not self.current else None

    @property
    def usable(self) -> bool:
        """Whether any host is left that has not refused us for good."""
        return any(host.refused is None for host in self._hosts)

    def connected(self) -> None:
        """Note progress with the current host."""
        self._failures = 0

    def failed(self, now: float) -> bool:
        """Note a failed attempt; True when that moved us to another host."""
        self._failures += 1
        if self._failures < self._failures_before_switch:
            return False
        return self._advance(now)

    def lacks_wire(self, now: float) -> bool:
        """Note that the current host does not have the wire's path; True when another wire or host is to be tried at once."""
        wires = self.current.wires
        if len(wires) == 1:
            return self.failed(now)
        # The missing wire stays as the last choice: a proxy may answer 404 while the server behind it restarts.
        wires.append(wires.pop(0))
        first_time = self._failures == 0
        return self.failed(now) or first_time

    def refuse(self, why: str, now: float) -> None:
        """Take the current host out for good."""
        self.current.refused = why
        self._advance(now)

    def due_to_return(self, now: float) -> bool:
        """Whether it is time to try the preferred host again; asking restarts the clock when it is."""
        if self.preferred is None or self._away_since is None or now - self._away_since < self._return_after:
            return False
        self._away_since = now
        return True

    def return_to_preferred(self) -> None:
        """Make the preferred host the current one."""
        host = self.preferred
        if host is not None:
            self._index = self._hosts.index(host)
            self._failures = 0
            self._away_since = None

    def _advance(self, now: float) -> bool:
        start = self._index
        self._failures = 0
        for step in range(1, len(self._hosts) + 1):
            index = (start + step) % len(self._hosts)
            if self._hosts[index].refused is None:
                self._index = index
                break
        self._away_since = now if self.preferred is not None else None
        return self._index != start


def subscribe_url(host: Host, protocol: Protocol, parameters: Sequence[tuple[str, str]]) -> str:
    """The URL of the websocket on `host`, below any path its URL already has."""
    path = wire_v2.PATH if protocol == "v2" else wire_v1.PATH
    query = "&".join(f"{name}={quote(value, safe=':.*')}" for name, value in parameters)
    return host.url.rstrip("/").removesuffix(path) + path + (f"?{query}" if query else "")


def _host(url: str, protocol: str) -> Host:
    path = urlsplit(url).path.rstrip("/")
    if path.endswith(wire_v2.PATH):
        return Host(url, ["v2"])
    if path.endswith(wire_v1.PATH):
        return Host(url, ["v1"])
    if protocol == "v1":
        return Host(url, ["v1"])
    if protocol == "v2":
        return Host(url, ["v2"])
    return Host(url, ["v2", "v1"])
