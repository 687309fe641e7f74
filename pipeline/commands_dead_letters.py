"""`post-explorer dead-letters`: what was set aside, why, and another try."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from pipeline.errors import CheckFailedError, SettingsError
from pipeline.kafka import check_reachable
from pipeline.messages import read_messages
from pipeline.options import INSTANT, show_time
from pipeline.settings import Settings, load
from schemas.bodies import DeadLetter
from schemas.errors import DeadLetterReason
from schemas.framing import split
from schemas.topics import DEAD_LETTER

_SHOWN_BYTES = 100


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
            raw = letter.raw[:_SHOWN_BYTES].decode("utf-8", "backslashreplace").replace("\n", "\\n")
            click.echo(f"{stored.name:<8} {show_time(letter.received_us)} {letter.reason}: {letter.detail}  | {raw}")
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


def _find(settings: Settings, name: str) -> Stored:
    partition, _, offset = name.partition(":")
    if not (partition.isdigit() and offset.isdigit()):
        raise SettingsError(f"{name!r} names no dead letter", "write PARTITION:OFFSET as `dead-letters list` prints it")
    for stored in stored_letters(settings):
        if (stored.partition, stored.offset) == (int(partition), int(offset)):
            return stored
    raise CheckFailedError(f"there is no dead letter {name}", "see `post-explorer dead-letters list`")
