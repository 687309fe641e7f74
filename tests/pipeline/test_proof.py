"""The proof finds what is lost, repeated or unknown, also where the numbers agree."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.proof import Digests, compare, identity_of, tid_text
from schemas.identity import commit_identity, relay_identity, sync_identity
from simulator.config import SimulatorSettings
from simulator.ledger import Ledger
from simulator.network import Network

texts = st.text(st.characters(exclude_characters="\x1f\x00"), max_size=5)
identities = st.tuples(st.sampled_from(["commit", "sync"]), st.none() | texts, texts)


def digests(found: list[tuple[str | None, ...]]) -> Digests:
    made = Digests()
    for identity in found:
        made.add(*identity)
    return made


@given(
    kept=st.lists(identities, unique=True, max_size=20),
    lost=st.lists(identities, unique=True, max_size=5),
    unknown=st.lists(identities, unique=True, max_size=5),
    repeats=st.lists(st.integers(0, 19), max_size=5),
    told_twice=st.lists(st.integers(0, 19), max_size=5),
)
def test_each_kind_of_error_is_counted_by_itself(
    kept: list[tuple[str | None, ...]],
    lost: list[tuple[str | None, ...]],
    unknown: list[tuple[str | None, ...]],
    repeats: list[int],
    told_twice: list[int],
) -> None:
    lost = [entry for entry in lost if entry not in kept]
    unknown = [entry for entry in unknown if entry not in kept and entry not in lost]
    again = [kept[at] for at in repeats if at < len(kept)]
    sent = kept + lost + [kept[at] for at in told_twice if at < len(kept)]
    found = compare("table", digests(sent), digests(kept + again + unknown))
    assert (found.lost, found.repeated, found.unknown) == (len(lost), len(again), len(unknown))
    assert (found.sent, found.rows) == (len(kept) + len(lost), len(kept) + len(again) + len(unknown))
    assert found.holds == (not lost and not again and not unknown)


def test_one_lost_and_one_twice_do_not_cancel() -> None:
    found = compare("table", digests([("a",), ("b",)]), digests([("a",), ("a",)]))
    assert (found.rows, found.lost, found.repeated) == (2, 1, 1)
    assert not found.holds


def test_the_identity_of_the_ledger_is_the_contracts(tmp_path: Path) -> None:
    network = Network(SimulatorSettings(data_dir=tmp_path, history_hours=0.2, history_rate=5.0, accounts=1000))
    for _ in network.history():
        pass
    network.close()
    kinds = set()
    for event in Ledger(tmp_path).events():
        kinds.add(event.kind)
        if event.kind == "commit":
            assert event.collection is not None
            assert event.rkey is not None
            assert event.rev is not None
            assert event.operation is not None
            expected = commit_identity(event.did, event.collection, event.rkey, event.rev, event.operation)
        elif event.kind == "sync":
            expected = sync_identity(event.did, event.record["rev"])
        else:
            expected = relay_identity(event.kind, event.did, event.record.get("seq"), event.record.get("time"))
        assert identity_of(event) == expected
    assert "commit" in kinds


@given(st.integers(0, 2**63 - 1))
def test_a_tid_sorts_as_its_number(value: int) -> None:
    assert len(tid_text(value)) == 13
    assert value == 2**63 - 1 or tid_text(value) < tid_text(value + 1)
