"""`post-explorer topics`: what is declared, what the broker has, and making the two agree."""

from __future__ import annotations

import json

import click
from confluent_kafka.admin import AdminClient

from pipeline.kafka import check_reachable, make_admin
from pipeline.settings import load
from pipeline.topics import TopicReport, apply_topics, count_records, diff_topics, read_topics
from schemas.topics import TOPICS


@click.group()
def topics() -> None:
    """Compare the broker's topics with schemas/topics and make them agree.

    \b
    Example:
      post-explorer topics diff
      post-explorer topics apply
    """


@topics.command("diff")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def diff_command(context: click.Context, as_json: bool) -> None:
    """Report every difference; exit status 1 if there is one.

    \b
    Example:
      post-explorer topics diff --json
    """
    report = diff_topics(_admin())
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print(report, "broker and schemas/topics agree")
    context.exit(0 if report.agrees else 1)


@topics.command("apply")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with the reports from before and after.")
@click.pass_context
def apply_command(context: click.Context, as_json: bool) -> None:
    """Create missing topics, add partitions, correct settings; exit status 1 if a declared topic still differs.

    Topics that are not declared are reported and left alone.

    \b
    Example:
      EXPLORER_KAFKA_BOOTSTRAP=redpanda:9092 post-explorer topics apply
    """
    before, after = apply_topics(_admin())
    if as_json:
        click.echo(json.dumps({"before": before.to_json(), "after": after.to_json()}, indent=2))
    else:
        _print(before, "nothing to do: broker and schemas/topics agree")
        if before is not after:
            done = len(before.drifts) - len(after.drifts)
            click.echo(f"{done} of {len(before.drifts)} differences removed")
            if after.drifts:
                _print(after, "")
    context.exit(0 if after.declared_agree else 1)


@topics.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_command(as_json: bool) -> None:
    """Show every topic of ours on the broker with its partitions, retention and the records it holds.

    \b
    Example:
      post-explorer topics list
    """
    admin = _admin()
    found = read_topics(admin)
    records = count_records(admin, {name: state.partitions for name, state in found.items()})
    rows = [
        {
            "topic": name,
            "declared": name in TOPICS,
            "partitions": state.partitions,
            "records": records.get(name),
            "cleanup_policy": state.settings.get("cleanup.policy"),
            "retention_ms": int(state.settings.get("retention.ms") or -1),
            "description": TOPICS[name].description if name in TOPICS else None,
        }
        for name, state in sorted(found.items())
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("the broker has none of our topics; `post-explorer topics apply` creates them")
    width = max((len(str(row["topic"])) for row in rows), default=0)
    for row in rows:
        retention = int(str(row["retention_ms"]))
        kept = "for ever" if retention < 0 else f"{retention / 86_400_000:g} d"
        note = "" if row["declared"] else "  (not declared)"
        click.echo(
            f"{row['topic']:<{width}}  {row['partitions']:>3} partitions  {row['records']:>12,} records  {kept}{note}"
        )


def _admin() -> AdminClient:
    settings = load().settings.kafka
    check_reachable(settings)
    return make_admin(settings)


def _print(report: TopicReport, agreement: str) -> None:
    for drift in report.drifts:
        click.echo(str(drift))
    if not report.drifts and agreement:
        click.echo(agreement)
    if report.unknown_settings:
        click.echo(f"skipped, this broker does not know: {', '.join(report.unknown_settings)}")
