"""Everything between "read on from this position" and an open connection: host, wire, cursor, compression, delays.

Keeps what is learnt from failures; `producers.service` asks it for the next attempt and tells it how that went.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from producers import wire_v1, wire_v2
from producers.backoff import Disposition, delays, disposition
from producers.compression import Dictionary, ServedDictionaries, decompressing, load_dictionary
from producers.config import SourceSettings
from producers.connection import Connection, Opening, open_connection
from producers.cursor import Position
from producers.errors import ConnectFailedError, HandshakeRefusedError, SourceSettingsError
from producers.hosts import Host, HostRotation, Protocol, subscribe_url
from producers.resume import Resume, resume_after, resume_at_time, resume_live, resume_oldest
from producers.tls import client_context
from producers.wire import Decoder

logger = logging.getLogger("explorer.producers")


class Opened(NamedTuple):
    """An open connection and what to read it with."""

    connection: Connection
    decode: Decoder
    hello: bytes | None
    """The message the server waits for before it sends anything; None when it does not."""


class Attempt(NamedTuple):
    """An attempt under way."""

    host: Host
    protocol: Protocol
    resume: Resume
    opening: Opening[Opened]


class Connector:
    """Makes attempts and learns from them. `now` is monotonic seconds, given by the caller."""

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._tls = client_context(settings.ca_file)
        self._rotation = HostRotation(
            settings.hosts, settings.protocol, settings.failures_before_switch, settings.return_after
        )
        self._served = ServedDictionaries(settings.open_timeout, self._tls)
        self._v1_dictionary: Dictionary | None = None
        if settings.compression == "zstd" and settings.dictionary is not None:
            self._v1_dictionary = load_dictionary(settings.dictionary)
        self._lost: str | None = None
        self._delays = self._new_delays()

    @property
    def host(self) -> Host:
        """The host in use or to be tried next."""
        return self._rotation.current

    def attempt(self, position: Position | None) -> Attempt:
        """Begin to connect to the current host, to read on after `position`; does not block."""
        return self._attempt(self._rotation.current, position)

    def attempt_preferred(self, position: Position | None, now: float) -> Attempt | None:
        """Begin to connect to the preferred host beside a connection elsewhere, when that is due."""
        preferred = self._rotation.preferred
        if preferred is None or not self._rotation.due_to_return(now):
            return None
        return self._attempt(preferred, position)

    def returned(self) -> None:
        """Make the preferred host the current one: its connection is taken over."""
        self._rotation.return_to_preferred()

    def progressed(self) -> None:
        """Note that a connection delivered events: delays and failures start anew."""
        self._lost = None
        self._rotation.connected()
        self._delays = self._new_delays()

    def history_lost(self, cause: str) -> None:
        """Note that the host does not honour the stored sequence: the next attempt resumes by time and reports a gap."""
        self._lost = cause

    def bad_compression(self) -> None:
        """Note that frames did not decompress: the dictionary is fetched again, and given up when it is the same."""
        self._served.refused(self._rotation.current.url)

    def ended(self, now: float, *, delivered: bool) -> float:
        """Note that an open connection ended; returns the seconds to wait before the next attempt."""
        if not delivered:
            self._rotation.failed(now)
        return next(self._delays)

    def failed(self, attempt: Attempt, failure: ConnectFailedError, now: float) -> float:
        """Note that an attempt failed; returns the seconds to wait before the next.

        Raises SourceSettingsError when no host is left that could ever serve us.
        """
        host = attempt.host
        at_once = False
        match disposition(failure):
            case Disposition.CURSOR_TOO_OLD:
                at_once = self._lost is None
                self._lost = "cursor_too_old"
            case Disposition.UNKNOWN_DICTIONARY:
                at_once = True
                self._served.refused(host.url)
            case Disposition.NOT_THIS_WIRE:
                at_once = self._rotation.lacks_wire(now)
            case Disposition.REFUSED:
                self._refuse(host, failure, now)
                at_once = True
            case Disposition.RETRY:
                self._rotation.failed(now)
        if at_once:
            logger.info("%s: %s; trying again differently", host.url, failure.cause, extra={"host": host.name})
            return 0.0
        delay = next(self._delays)
        if isinstance(failure, HandshakeRefusedError) and failure.retry_after is not None:
            delay = max(delay, failure.retry_after)
        logger.warning(
            "%s: %s; next attempt in %.1f s%s",
            host.url,
            failure.cause,
            delay,
            "" if self._rotation.current is host else f", with {self._rotation.current.url}",
            extra={"host": host.name, "delay": round(delay, 2)},
        )
        return delay

    def _refuse(self, host: Host, failure: ConnectFailedError, now: float) -> None:
        logger.error("%s refuses us for good: %s", host.url, failure.cause, extra={"host": host.name})
        self._rotation.refuse(failure.cause, now)
        if not self._rotation.usable:
            raise SourceSettingsError(
                f"no source serves this subscription; {host.url} says: {failure.cause}",
                "correct EXPLORER_SOURCE_HOSTS, the filters or EXPLORER_SOURCE_AUTHORIZATION",
            )

    def _attempt(self, host: Host, position: Position | None) -> Attempt:
        protocol = host.protocol
        resume = self._resume(host, position)
        return Attempt(host, protocol, resume, Opening(lambda: self._open(host, protocol, resume)))

    def _open(self, host: Host, protocol: Protocol, resume: Resume) -> Opened:
        """Runs in a thread of its own. Raises ConnectFailedError."""
        settings = self._settings
        dictionary: Dictionary | None = None
        if settings.compression == "zstd":
            dictionary = self._served.of(host.url) if protocol == "v2" else self._v1_dictionary
        decode: Decoder
        if protocol == "v2":
            decode = wire_v2.decode
            query = wire_v2.parameters(settings, resume.cursor, dictionary.id if dictionary is not None else None)
            hello = None
        else:
            decode = wire_v1.decode
            query = wire_v1.parameters(settings, resume.cursor, compress=dictionary is not None)
            hello = wire_v1.hello(settings)
        authorization = settings.authorization
        try:
            connection = open_connection(
                subscribe_url(host, protocol, query),
                subprotocols=(wire_v2.SUBPROTOCOL,) if protocol == "v2" else (),
                headers=(("Authorization", authorization.get_secret_value()),) if authorization is not None else (),
                timeout=settings.open_timeout,
                max_size=settings.max_frame_bytes,
                tls=self._tls,
            )
        except HandshakeRefusedError as refused:
            if disposition(refused) is Disposition.NOT_THIS_WIRE:
                refused.cause = f"no Jetstream {protocol} at this address ({refused.cause})"
                if settings.protocol != "auto":
                    refused.cause += "; EXPLORER_SOURCE_PROTOCOL=auto tries the other wire as well"
            raise
        if dictionary is not None:
            decode = decompressing(decode, dictionary, settings.max_frame_bytes)
        return Opened(connection, decode, hello)

    def _resume(self, host: Host, position: Position | None) -> Resume:
        if position is not None:
            if position.host != host.name:
                # A source clock that runs ahead of ours must not make another host skip the time in between.
                position = position._replace(time_us=min(position.time_us, time.time_ns() // 1000))
            return resume_after(position, host.name, int(self._settings.switch_margin * 1_000_000), self._lost)
        match self._settings.start:
            case "live":
                return resume_live()
            case "oldest":
                return resume_oldest()
            case moment:
                return resume_at_time(int(datetime.fromisoformat(moment).timestamp() * 1_000_000))

    def _new_delays(self) -> Iterator[float]:
        return delays(self._settings.backoff_first, self._settings.backoff_longest)
