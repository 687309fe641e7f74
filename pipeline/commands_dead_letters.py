"""`post-explorer dead-letters`: what was set aside, why, and another try."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from pipeline import services
from pipeline.errors import CheckFailedError, SettingsError
from pipeline.kafka import check_reachable, make_producer
from pipeline.messages import read_messages
from pipeline.options import INSTANT, show_time
from pipeline.settings import Settings, load
from schemas.bodies import DeadLetter, decode_body
from schemas.errors import BadRecord, DeadLetterReason
from schemas.framing import split
from schemas.topics import DEAD_LETTER, TOPICS

_SHOWN_BYTES = 100
_SAME_IN_ALL = b'{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#'
"""How nearly every v2 frame begins; an excerpt says more without it."""
_FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class Stored:
    """A dead letter and where it lies in its topic."""

    partition: int
    offset: int
    letter: DeadLetter

    @property
    def name(self) -> str:
        """How commands name it: partition:offset."""
        return f"{self.partition}:{self.offset}"

    def facts(self) -> dict[str, Any]:
        """As JSON values; bytes that are no UTF-8 are escaped."""
        letter = self.letter
        return {
            "id": self.name,
            "reason": letter.reason,
            "detail": letter.detail,
            "stage": letter.stage,
            "received": show_time(letter.received_us),
            "source_host": letter.source_host,
            "protocol": letter.protocol,
            "seq": letter.seq,
            "did": letter.did,
            "collection": letter.collection,
            "topic": letter.topic,
            "partition": letter.partition,
            "offset": letter.offset,
            "raw": letter.raw.decode("utf-8", "backslashreplace"),
        }


def stored_letters(settings: Settings, since_us: int | None = None) -> Iterator[Stored]:
    """Every dead letter on the broker, or those set aside since a time."""
    check_reachable(settings.kafka)
    for message in read_messages(settings.kafka, [DEAD_LETTER]):
        if message.value is not None:
            letter = DeadLetter.decode(split(message.value)[1])
            if since_us is None or letter.received_us >= since_us:
                yield Stored(message.partition, message.offset, letter)


@click.group("dead-letters")
def dead_letters() -> None:
    """See what could not be let in or written, and why.

    \b
    Example:
      post-explorer dead-letters list --since 1d
    """


@dead_letters.command("list")
@click.option("--reason", type=click.Choice([reason.value for reason in DeadLetterReason]), help="Only this reason.")
@click.option("--stage", type=click.Choice(["producer", "writer"]), help="Only those set aside there.")
@click.option("--since", type=INSTANT, help="Set aside since: RFC 3339, or 2h for two hours ago.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Lines to print.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the whole frame.")
def list_command(reason: str | None, stage: str | None, since: int | None, limit: int, as_json: bool) -> None:
    """List them, and how many there are for each reason.

    \b
    Example:
      post-explorer dead-letters list --reason not_json --limit 5
    """
    counts: Counter[str] = Counter()
    printed = 0
    for stored in stored_letters(load().settings, since):
        letter = stored.letter
        if (reason and letter.reason != reason) or (stage and letter.stage != stage):
            continue
        counts[letter.reason] += 1
        if printed >= limit:
            continue
        printed += 1
        if as_json:
            click.echo(json.dumps(stored.facts(), ensure_ascii=False))
        else:
            raw = letter.raw.removeprefix(_SAME_IN_ALL)[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
            where = (
                f"seq {letter.seq}"
                if letter.seq is not None
                else f"offset {letter.offset}"
                if letter.topic
                else "no seq"
            )
            excerpt = raw.replace("\n", "\\n").replace("\r", "\\r")
            click.echo(
                f"{stored.name:<8} {show_time(letter.received_us)} {letter.reason}: {letter.detail}"
                f"  ({letter.topic or letter.source_host or 'unknown source'}, {where})  | {excerpt}"
            )
    summary = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    click.echo(f"{counts.total()} dead letters" + (f": {summary}" if summary else ""), err=as_json)


@dead_letters.command()
@click.argument("name", metavar="PARTITION:OFFSET")
@click.option("--raw", is_flag=True, help="Only the original bytes, as they came.")
def show(name: str, raw: bool) -> None:
    """Show one with its original bytes.

    \b
    Example:
      post-explorer dead-letters show 0:17 --raw > frame.json
    """
    stored = _find(load().settings, name)
    if raw:
        sys.stdout.buffer.write(stored.letter.raw)
    else:
        click.echo(json.dumps(stored.facts(), indent=2, ensure_ascii=False))


@dead_letters.command()
@click.argument("names", metavar="[PARTITION:OFFSET]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them, or all of --reason.")
@click.option("--reason", type=click.Choice([reason.value for reason in DeadLetterReason]), help="Only this reason.")
@click.option("--dry-run", is_flag=True, help="Say what would be published.")
def retry(names: tuple[str, ...], everything: bool, reason: str | None, dry_run: bool) -> None:
    """Publish again what this release can read, after an update or once the broker takes what it refused.

    Letters stay in their topic. Trying one twice is harmless: the lake drops what it has. Exit status 1 when one still
    cannot be read.

    \b
    Example:
      post-explorer dead-letters retry --all --reason unknown_schema --dry-run
      post-explorer dead-letters retry 0:17 0:23
    """
    if bool(names) == everything:
        raise click.UsageError("name the letters, or say --all")
    settings = load().settings
    letters = [
        stored
        for stored in stored_letters(settings)
        if (everything or stored.name in names) and (reason is None or stored.letter.reason == reason)
    ]
    missing = set(names) - {stored.name for stored in letters}
    if missing:
        raise CheckFailedError(f"there is no dead letter {', '.join(sorted(missing))}", "see `dead-letters list`")
    records, still_bad = _readable(settings, letters)
    for stored, why in still_bad:
        click.echo(f"{stored.name}: still {why}")
    if not dry_run:
        _publish(settings, records)
    click.echo(
        f"{len(records)} {'can be published' if dry_run else 'published'}, {len(still_bad)} still cannot be read"
    )
    if still_bad:
        raise CheckFailedError(f"{len(still_bad)} dead letters still cannot be read", "see the reasons above")


@dataclass(frozen=True)
class _Record:
    topic: str
    key: str | None
    value: bytes
    timestamp_ms: int


def _readable(settings: Settings, letters: list[Stored]) -> tuple[list[_Record], list[tuple[Stored, str]]]:
    """The records that come out of `letters` now, and the letters that are still bad, with the reason."""
    from producers.retry import retried

    framing, lookup = services.framing(settings), services.lookup(settings)
    good: list[_Record] = []
    bad: list[tuple[Stored, str]] = []
    for stored in letters:
        letter = stored.letter
        try:
            if letter.stage == "writer":
                reference, body = split(letter.raw)
                schema = lookup(reference)
                if schema is None or letter.topic is None:
                    raise BadRecord(DeadLetterReason.UNKNOWN_SCHEMA, str(reference))
                decode_body(schema, body)
                good.append(_Record(letter.topic, letter.did, letter.raw, (letter.time_us or 0) // 1000))
            else:
                again = retried(letter)
                value = framing.frame(TOPICS[again.topic].schema, again.body)
                good.append(_Record(again.topic, again.key, value, again.timestamp_ms))
        except BadRecord as error:
            bad.append((stored, str(error)))
    return good, bad


def _publish(settings: Settings, records: list[_Record]) -> None:
    failures: list[str] = []
    producer = make_producer(settings.kafka)
    for record in records:
        producer.produce(
            record.topic,
            record.value,
            record.key,
            timestamp=record.timestamp_ms,
            on_delivery=lambda error, _: failures.append(str(error)) if error is not None else None,
        )
        producer.poll(0)
    unanswered = producer.flush(_FLUSH_SECONDS)
    if unanswered or failures:
        raise CheckFailedError(
            f"{unanswered + len(failures)} records were not taken by the broker: {failures[:1] or 'no answer'}",
            "check the broker with `post-explorer doctor` and try again; repeating is harmless",
        )


def _find(settings: Settings, name: str) -> Stored:
    partition, _, offset = name.partition(":")
    if not (partition.isdigit() and offset.isdigit()):
        raise SettingsError(f"{name!r} names no dead letter", "write PARTITION:OFFSET as `dead-letters list` prints it")
    for stored in stored_letters(settings):
        if (stored.partition, stored.offset) == (int(partition), int(offset)):
            return stored
    raise CheckFailedError(f"there is no dead letter {name}", "see `post-explorer dead-letters list`")
