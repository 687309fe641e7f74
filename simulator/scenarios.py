"""Named misbehaviours of servers, networks and records, each switchable by setting and at run time.

The list covers section 15 of the Jetstream reference and more. A scenario has a point at which it may fire; it fires at every
`every`-th opportunity after `after`, or at random ones with the probability `share` (drawn from the seed), at most `count` times.
Each counts how often it fired. What a scenario does stands where it happens: `oddities` (events), `misbehaviour` (frames),
`refusals` (upgrades), `archive_api` and
`incidents` (once, when armed).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class Point(StrEnum):
    """What one opportunity is: a generated event, a sent message (on any connection), an upgrade request, an archive request,
    or the arming itself."""

    EVENT = "event"
    FRAME = "frame"
    UPGRADE = "upgrade"
    ARCHIVE = "archive"
    NOW = "now"


@dataclass(frozen=True)
class Scenario:
    """What a scenario does, and the meaning and default of its `amount` (None if it has none)."""

    name: str
    point: Point
    does: str
    amount: float | None = None
    every: int = 1000


def _event(name: str, does: str, amount: float | None = None) -> Scenario:
    return Scenario(name, Point.EVENT, does, amount)


def _frame(name: str, does: str, amount: float | None = None) -> Scenario:
    return Scenario(name, Point.FRAME, does, amount)


def _upgrade(name: str, does: str, amount: float | None = None) -> Scenario:
    return Scenario(name, Point.UPGRADE, does, amount, every=1)


def _archive(name: str, does: str, amount: float | None = None) -> Scenario:
    return Scenario(name, Point.ARCHIVE, does, amount, every=1)


def _now(name: str, does: str, amount: float | None = None) -> Scenario:
    return Scenario(name, Point.NOW, does, amount, every=1)


_ALL = (
    _event("malformed", "a post whose frame is broken on the wire, each flaw in turn"),
    _event("identity-without-handle", "an identity event without a handle"),
    _event("identity-with-handle", "an identity event with a handle"),
    _event("account-without-status", "an account event with active false and no status"),
    _event(
        "account-statuses",
        "an account event with each status in turn, one of them unknown; deleted ones are gone for good",
    ),
    _event("account-reactivated", "a deactivated account becomes active again, then posts"),
    _event("sync", "a sync event as the relay sends it"),
    _event("synthetic-sync", "a sync event with empty blocks, relay seq 0 and empty time"),
    _event("resync", "a sync event, then `amount` creates of the same DID and rev with one time; v1 hides them all", 5),
    _event("shared-time", "one commit of `amount` operations: same rev, same time, different records", 4),
    _event("imported-time", "an event whose time lies `amount` seconds in the past", 3600),
    _event("unseen-record", "an update, then a delete, of a record from before the log began"),
    _event("recreated-record", "create, delete and create again under one record key"),
    _event("unknown-payload", "a frame with a payload type that does not exist; no event"),
    _event("unknown-envelope", "a frame with an envelope type that does not exist; no event"),
    _event("unknown-members", "members nobody knows in the payload and in the record"),
    _event("unknown-collection", "a record of a collection nobody knows"),
    _event("empty-record", "a record that is {}"),
    _event("untyped-record", "a record without $type"),
    _event("mistyped-record", "a record whose $type is another collection's"),
    _event("not-an-object", "a record that is an array, a text, a number, true or null, in turn"),
    _event("wrong-types", "records of each of the frequent collections with every member of another type"),
    _event("missing-members", "records with only one of their required members"),
    _event("null-and-empty", "absent, null, empty text and empty array side by side"),
    _event("bytes-and-links", "a third-party record with $bytes and $link"),
    _event("legacy-blob", "an image in the old blob form"),
    _event("nul", "a text with U+0000"),
    _event("lone-surrogate", "a text with the escape of half a surrogate pair"),
    _event(
        "strange-unicode", "noncharacters, line separators, combining marks, right-to-left overrides, astral characters"
    ),
    _event("escapes", "a text full of backslashes, quotes, <>& as escapes, and escaped solidus"),
    _event("nested", "a record nested `amount` deep, which most parsers accept", 200),
    _event("deep", "a record nested `amount` deep, which no parser accepts", 20_000),
    _event("huge", "a record of `amount` bytes", 1_500_000),
    _event("over-long", "texts, lists and facets far beyond the lexicon's limits"),
    _event("odd-times", "createdAt in the year 0001, in 9999, without zone, with nine digits, as nonsense, in turn"),
    _event("big-numbers", "integers around 2^53 and 2^63, and floats"),
    _event("infinite-number", "numbers that no parser can hold (1e400, 2^64 and more), in turn"),
    _event("duplicate-keys", "an object with the same member twice"),
    _event("long-names", "a record key of 255 characters and a collection of 300"),
    _frame("drop", "the connection ends in the middle of a frame (the client sees 1006)"),
    _frame("reset", "the connection is reset in the middle of a frame"),
    _frame("close-1001", "closing handshake 1001, server shutting down"),
    _frame("close-1000", "closing handshake 1000, as operators do it on legacy hosts"),
    _frame("error-too-slow", "v2: error frame ConsumerTooSlow, then the connection is dropped; v1: dropped"),
    _frame("error-internal", "v2: error frame InternalError, then the connection is dropped; v1: dropped"),
    _frame("error-unknown", "v2: an error frame of unknown name, then the connection is dropped; v1: dropped"),
    _frame("write-stall", "half a frame, then nothing for `amount` seconds, then dropped", 6),
    _frame("silent-stall", "nothing for `amount` seconds while pings are answered, then the stream goes on", 60),
    _frame("half-open", "nothing is sent, read or answered for `amount` seconds, then dropped", 60),
    _frame("no-pong", "from here on the server does not answer this client's pings"),
    _frame("trickle", "one frame in pieces of one byte, `amount` milliseconds apart", 1),
    _frame("fragments", "one message in three WebSocket fragments with a ping between them"),
    _frame("repeat", "the last `amount` messages are sent again", 10),
    _frame("reorder", "two neighbouring events change places, as at a legacy cut-over"),
    _frame("junk-text", "an additional text message that is no JSON"),
    _frame("junk-binary", "an additional binary message that is no zstd frame"),
    _frame("unknown-info", "v2: an additional #info frame of unknown name"),
    _upgrade("refuse-400", "400 InvalidRequest"),
    _upgrade("refuse-401", "401 from a gateway"),
    _upgrade("refuse-429", "429 with Retry-After of `amount` seconds", 1),
    _upgrade("refuse-500", "500 InternalServerError"),
    _upgrade("refuse-502", "502 with a proxy's HTML page"),
    _upgrade("refuse-503", "503 ServiceUnavailable, as during warm-up"),
    _upgrade("refuse-too-old", "v2: 400 CursorTooOld whatever the cursor; v1: nothing happens"),
    _upgrade("slow-upgrade", "the answer to the upgrade takes `amount` seconds", 3),
    _upgrade("drop-upgrade", "the connection ends without an answer"),
    _archive("archive-429", "an archive request is answered 429 with Retry-After of `amount` seconds", 1),
    _archive("archive-503", "an archive request is answered 503"),
    _archive("archive-cut", "the connection ends in the middle of a download"),
    _now("disconnect-all", "all subscribers get 1001"),
    _now("crash", "all connections are dropped at once, as when the server's process dies"),
    _now("warm-up", "all upgrades get 503 for `amount` seconds", 2),
    _now("rotate-dictionary", "a new zstd dictionary; the old id is unknown from now on"),
    _now("raise-floor", "history is forgotten but for the last `amount` events", 1000),
    _now("seq-gap", "`amount` sequence numbers are never used", 1000),
    _now("seq-reset", "the archive is rebuilt empty: sequence numbers start at 1, times go on; connections drop"),
    _now(
        "seq-reuse",
        "the last `amount` events are lost by the server and their numbers used again; connections drop",
        500,
    ),
    _now("time-jump", "nothing happened upstream for `amount` seconds: the clock jumps forward", 7200),
    _now("silence", "no events for `amount` seconds of real time", 20),
    _now("burst", "`amount` events at once", 10_000),
    _now("rate", "from now on `amount` events per second", 350),
    _now("v1-without-cursor", "v1 events lose (amount 1) or regain (amount 0) their cursor member", 1),
    _now("compaction", "the archive drops superseded rows of all sealed segments, which changes their checksums"),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}


class UnknownScenarioError(ValueError):
    """No scenario of that name, or options it does not understand."""


@dataclass
class Armed:
    """A scenario that is switched on, and its counts."""

    every: int
    count: int | None
    after: int
    share: float | None
    amount: float
    draw: random.Random
    seen: int = 0
    fired: int = 0
    next_at: int = 0

    def schedule(self) -> None:
        """Set the opportunity at which it fires next."""
        if self.share is None:
            self.next_at += self.every if self.fired else self.after + self.every - 1
        else:
            gap = int(self.draw.expovariate(self.share)) if self.share < 1.0 else 0
            self.next_at += gap + (1 if self.fired else self.after)


class Scenarios:
    """The scenarios of one simulator; not thread-safe."""

    def __init__(self, seed: int, initial: tuple[str, ...] = ()) -> None:
        self._seed = seed
        self._armed: dict[str, Armed] = {}
        self._retired: dict[str, int] = {}
        for text in initial:
            name, _, options = text.partition(":")
            self.arm(name, dict(option.split("=", 1) for option in options.split(",") if "=" in option))

    def arm(self, name: str, options: dict[str, str]) -> Armed:
        """Switch a scenario on (again); UnknownScenarioError for a bad name or option."""
        scenario = SCENARIOS.get(name)
        if scenario is None:
            raise UnknownScenarioError(f"no scenario {name[:100]!r}; there are {', '.join(SCENARIOS)}")
        unknown = set(options) - {"every", "count", "after", "share", "amount"}
        try:
            every = int(options.get("every", scenario.every))
            count = int(options["count"]) if "count" in options else None
            after = int(options.get("after", 0))
            share = float(options["share"]) if "share" in options else None
            amount = float(options.get("amount", scenario.amount or 0.0))
        except ValueError as error:
            raise UnknownScenarioError(f"scenario {name}: {error}") from error
        if (
            unknown
            or every < 1
            or after < 0
            or (count is not None and count < 0)
            or not 0.0 < (share or 1.0) <= 1.0
            or amount < 0
        ):
            raise UnknownScenarioError(
                f"scenario {name}: every ≥ 1, count ≥ 0, after ≥ 0, 0 < share ≤ 1, amount ≥ 0, nothing else"
            )
        self.disarm(name)
        armed = Armed(every, count, after, share, amount, random.Random(f"{self._seed}/{name}"))
        armed.schedule()
        self._armed[name] = armed
        return armed

    def disarm(self, name: str) -> None:
        """Switch a scenario off; its count stays."""
        armed = self._armed.pop(name, None)
        if armed is not None:
            self._retired[name] = self._retired.get(name, 0) + armed.fired

    def armed(self, point: Point) -> list[str]:
        """Names of what is switched on at a point and not used up."""
        return [
            name
            for name, armed in self._armed.items()
            if SCENARIOS[name].point is point and (armed.count is None or armed.fired < armed.count)
        ]

    def hits(self, name: str, opportunities: int) -> list[int]:
        """Pass `opportunities` and return the offsets among them at which the scenario fires; each counts as fired."""
        armed = self._armed[name]
        offsets = []
        end = armed.seen + opportunities
        while armed.next_at < end and (armed.count is None or armed.fired < armed.count):
            offsets.append(armed.next_at - armed.seen)
            armed.fired += 1
            armed.schedule()
        armed.seen = end
        return offsets

    def amount(self, name: str) -> float:
        """The amount a scenario was armed with."""
        return self._armed[name].amount

    def fired(self, name: str) -> int:
        """How often a scenario fired since the start."""
        armed = self._armed.get(name)
        return self._retired.get(name, 0) + (armed.fired if armed else 0)

    def status(self, name: str) -> dict[str, object]:
        """What a scenario is, whether it is on, and how often it fired."""
        scenario = SCENARIOS[name]
        armed = self._armed.get(name)
        status: dict[str, object] = {
            "name": name,
            "point": scenario.point,
            "does": scenario.does,
            "fired": self.fired(name),
        }
        status["armed"] = armed is not None
        if armed is not None:
            status |= {"every": armed.every, "count": armed.count, "amount": armed.amount, "opportunities": armed.seen}
        return status
