"""For random posts, deletions, accounts and filters, every answer equals a plain Python filter over the same events."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api import bounds as bounds_module
from api import posts_query, ranking
from api.aggregates import CountPlan, Group, GroupPlan, Interval, run_counts, run_groups
from api.bounds import HIGHEST, bounds_of
from api.columns import publish, to_json
from api.current import IS_RECORD, CurrentState
from api.engine import Engine
from api.filters import PostFilters
from api.identifiers import tid_text
from api.posts_query import Selection, narrow
from api.relation import READ_FILES, Lake
from api.search import SearchPlan, Sort, run_search
from api.snapshots import scan
from lake import account_index, engagement_bounds, named_keys, text_index
from lake.account_index import AccountIndex
from lake.bloom import FilterIndex
from lake.manifest import hour_of
from tests.api.lake_builder import POST, START_US, LakeBuilder, did

WORDS = ["cat", "Cat", "category", "dog", "hot-dog", "猫", "100%", "a_b", "naïve", "#cats", "new york", "🎉", "x.y"]
TAGS = ["cats", "Ünï", "go"]
LINKS = [
    "https://www.a.example/x?y=1",
    "http://b.a.example/x",
    "https://A.example",
    "https://notа.example/x",
    "at://no",
]
LANGS = [["en"], ["en-US"], ["EN", "pt-BR"], ["pt"], [], None]
LIKE = "app.bsky.feed.like"


def random_lake(builder: LakeBuilder, seed: int) -> None:
    """Some hundred events with everything that filters look at, in several commits and hours."""
    rng = random.Random(seed)
    posts: list[dict[str, Any]] = []
    for number in range(260):
        builder.tick(rng.choice([0, 0.5, 30, 900]))
        author = did(rng.randrange(6))
        choice = rng.random()
        if choice < 0.06 and posts:
            builder.delete(rng.choice(posts)["uri"])
        elif choice < 0.12 and posts:
            old = rng.choice(posts)
            if old["operation"] != "delete":
                builder.post(old["did"], random_text(rng), operation="update", rkey=old["rkey"], **features(rng, posts))
        elif choice < 0.14:
            status = rng.choice(["deleted", "deactivated", "takendown", "throttled", None])
            builder.account(author, active=status is None, status=status)
        elif choice < 0.15:
            builder.sync(author)
        elif choice < 0.4 and posts:
            subject = rng.choice(posts[-4:])
            like = builder.record(LIKE, author, subject_uri=subject["uri"], subject_cid=subject["cid"])
            if rng.random() < 0.2:
                builder.tick(1)
                builder.delete(like["uri"])
        else:
            rkey = {"rkey": f"odd-{number}"} if rng.random() < 0.1 else {}
            posts.append(
                builder.post(author, random_text(rng), resync=rng.random() < 0.05, **features(rng, posts), **rkey)
            )
        if number % 40 == 39:
            builder.commit()
    builder.commit()


def random_text(rng: random.Random) -> str | None:
    return None if rng.random() < 0.03 else " ".join(rng.choices(WORDS, k=rng.randrange(1, 5)))


def features(rng: random.Random, posts: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"langs": rng.choice(LANGS)}
    facets: list[Any] = []
    if rng.random() < 0.3:
        facets.append({"features": [{"$type": "app.bsky.richtext.facet#tag", "tag": rng.choice(TAGS)}]})
    if rng.random() < 0.2:
        facets.append({"features": [{"$type": "app.bsky.richtext.facet#mention", "did": did(rng.randrange(6))}]})
    if rng.random() < 0.3:
        facets.append({"features": [{"$type": "app.bsky.richtext.facet#link", "uri": rng.choice(LINKS)}]})
    found["facets"] = facets or None
    if rng.random() < 0.2:
        found["labels"] = {"values": [{"val": rng.choice(["porn", "spoiler"])}]}
    if rng.random() < 0.3:
        found["embed"] = rng.choice(
            [
                {"$type": "app.bsky.embed.images", "images": [{"alt": "x"}, {"alt": "y"}]},
                {"$type": "app.bsky.embed.video"},
                {"$type": "app.bsky.embed.external", "external": {"uri": rng.choice(LINKS)}},
            ]
        )
    if posts and rng.random() < 0.3:
        quoted = rng.choice(posts)
        found["embed"] = {"$type": "app.bsky.embed.record", "record": {"uri": quoted["uri"], "cid": quoted["cid"]}}
    if posts and rng.random() < 0.3:
        parent = rng.choice(posts)
        root = parent["reply_root_uri"] or parent["uri"]
        found |= {"reply_parent_uri": parent["uri"], "reply_root_uri": root, "reply_parent_cid": parent["cid"]}
    return found


def current(events: list[dict[str, Any]], table: str) -> list[dict[str, Any]]:
    """The rows that stand, by the folding rules, in plain Python."""
    last: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["kind"] == "account":
            last[event["did"]] = event
    hidden = {a for a, e in last.items() if not e["active"] and e["status"] not in ("desynchronized", "throttled")}
    kept = []
    for row in events:
        if (
            row["kind"] != "commit"
            or (row["collection"] != table)
            or row["operation"] == "delete"
            or row["did"] in hidden
        ):
            continue
        gone = False
        for other in events:
            if other["did"] != row["did"]:
                continue
            if other["kind"] == "account" and other["status"] == "deleted" and row["time_us"] <= other["time_us"]:
                gone = True
            if other["kind"] == "sync" and other["rev"] > row["rev"]:
                gone = True
            if other["kind"] == "commit" and (other["collection"], other["rkey"]) == (row["collection"], row["rkey"]):
                ends = other["operation"] in ("update", "delete") or other["resync"]
                gone = gone or (ends and other["rev"] > row["rev"])
        if not gone:
            kept.append(row)
    return kept


def has_language(row: dict[str, Any], wanted: str) -> bool:
    return any(
        tag.lower() == wanted or ("-" not in wanted and tag.lower().split("-")[0] == wanted)
        for tag in row["langs"] or []
    )


def bare(link: str) -> str:
    parts = urlsplit(link)
    if parts.scheme not in ("http", "https"):
        return link
    rest = link.split("://", 1)[1]
    host, slash, path = rest.partition("/")
    return host.lower().removeprefix("www.") + slash + path


def matches(row: dict[str, Any], f: dict[str, Any], likes: Counter[str]) -> bool:
    """Whether a row meets a filter, given as the parameters of a request."""
    parent, quote = row["reply_parent_uri"], row["quote_uri"]
    checks = {
        "start": lambda v: row["time_us"] >= v,
        "end": lambda v: row["time_us"] < v,
        "author": lambda v: row["did"] in v,
        "not_author": lambda v: row["did"] not in v,
        "mention": lambda v: bool(set(row["mentions"] or ()) & set(v)),
        "not_mention": lambda v: not set(row["mentions"] or ()) & set(v),
        "hashtag": lambda v: bool(set(row["hashtags"] or ()) & {tag.lower() for tag in v}),
        "not_hashtag": lambda v: not set(row["hashtags"] or ()) & {tag.lower() for tag in v},
        "domain": lambda v: any(d == w or d.endswith("." + w) for d in row["domains"] or () for w in v),
        "not_domain": lambda v: not any(d == w or d.endswith("." + w) for d in row["domains"] or () for w in v),
        "url": lambda v: any(bare(link).startswith(bare("https://" + w)) for link in row["links"] or () for w in v),
        "lang": lambda v: any(has_language(row, w.lower()) for w in v),
        "not_lang": lambda v: not any(has_language(row, w.lower()) for w in v),
        "media": lambda v: row["media_kind"] in v,
        "not_media": lambda v: row["media_kind"] not in v,
        "self_label": lambda v: bool(set(row["self_labels"] or ()) & set(v)),
        "not_self_label": lambda v: not set(row["self_labels"] or ()) & set(v),
        "reply": lambda v: (parent is not None) is v,
        "reply_to": lambda v: parent == v,
        "reply_to_author": lambda v: parent is not None and parent.split("/")[2] in v,
        "thread": lambda v: v in (row["reply_root_uri"], row["uri"]),
        "quote": lambda v: (quote is not None) is v,
        "quoted": lambda v: quote == v,
        "quoted_author": lambda v: quote is not None and quote.split("/")[2] in v,
        "operation": lambda v: row["operation"] == v,
        "resync": lambda v: row["resync"] is v,
        "hour_of_day": lambda v: row["time_us"] // 3_600_000_000 % 24 in v,
        "weekday": lambda v: (row["time_us"] // 86_400_000_000 + 3) % 7 + 1 in v,
        "min_likes": lambda v: likes[row["uri"]] >= v,
        "words": lambda v: eval_words(v, row["text"]),
    }
    return all(checks[name](value) for name, value in f.items())


def eval_words(tree: Any, text: str | None) -> bool:
    """A query tree over a text: a word, or (operator, operands…)."""
    if isinstance(tree, str):
        return text is not None and re.search(re.escape(tree), text, re.IGNORECASE) is not None
    operator, *operands = tree
    found = [eval_words(item, text) for item in operands]
    return {"and": all(found), "or": any(found), "not": not found[0]}[operator]


def render(tree: Any) -> str:
    if isinstance(tree, str):
        return f'"{tree}"'
    operator, *operands = tree
    if operator == "not":
        return f"NOT ({render(operands[0])})"
    return "(" + f" {operator.upper()} ".join(render(item) for item in operands) + ")"


words = st.sampled_from([*WORDS, "at", "%", "_", ".", "york c"])
trees = st.recursive(
    words,
    lambda inner: st.one_of(
        st.tuples(st.just("and"), inner, inner),
        st.tuples(st.just("or"), inner, inner, inner),
        st.tuples(st.just("not"), inner),
    ),
    max_leaves=5,
)
accounts = st.lists(st.integers(0, 6).map(did), min_size=1, max_size=3, unique=True)
hours = st.integers(0, 40).map(lambda n: START_US + n * 900_000_000)


def some(values: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)


def filter_strategy(uris: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    uri = st.sampled_from(uris)
    options = {
        "words": trees,
        "start": hours,
        "author": accounts,
        "not_author": accounts,
        "mention": accounts,
        "not_mention": accounts,
        "hashtag": some(["cats", "CATS", "ünï", "go", "none"]),
        "not_hashtag": some(["cats", "go"]),
        "domain": some(["a.example", "b.a.example", "example"]),
        "not_domain": some(["a.example"]),
        "url": some(["a.example/x", "a.example", "b.a.example/x", "a.example/x?y"]),
        "lang": some(["en", "en-us", "pt", "pt-BR", "ja"]),
        "not_lang": some(["en", "pt"]),
        "media": some(["images", "video", "external"]),
        "not_media": some(["images", "external"]),
        "self_label": some(["porn", "spoiler"]),
        "not_self_label": some(["porn"]),
        "reply": st.booleans(),
        "reply_to": uri,
        "reply_to_author": accounts,
        "thread": uri,
        "quote": st.booleans(),
        "quoted": uri,
        "quoted_author": accounts,
        "operation": st.sampled_from(["create", "update"]),
        "resync": st.booleans(),
        "hour_of_day": st.lists(st.integers(0, 23), min_size=1, max_size=12, unique=True),
        "weekday": st.lists(st.integers(1, 7), min_size=1, max_size=4, unique=True),
        "min_likes": st.integers(1, 3),
    }
    chosen = st.lists(st.sampled_from(sorted(options)), max_size=3, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: options[name] for name in names}))


def index_some_engagement(builder: LakeBuilder, seed: int) -> None:
    """Bounds that cover an early state only, beside later rolled and small files, some of them without side file."""
    rng = random.Random(seed)
    for file in named_keys.missing(builder.root, builder.manifest.snapshot()):
        if rng.random() < 0.7:
            named_keys.build(builder.store, file)
    engagement_bounds.update(builder.store, builder.manifest.snapshot(), lambda: True)
    posts = [row for row in builder.events if row["collection"] == POST and row["operation"] == "create"]
    for number in range(150):
        builder.tick(rng.choice([0.5, 30]))
        subject = rng.choice(posts[::7])
        builder.record(LIKE, did(rng.randrange(6)), subject_uri=subject["uri"], subject_cid=subject["cid"])
        if number % 50 == 20:
            reply = {"reply_parent_uri": subject["uri"], "reply_root_uri": subject["uri"]}
            posts.append(builder.post(did(1), random_text(rng), **reply))
        if number == 100:
            builder.commit()
            builder.maintain(erasing=False)
            for file in named_keys.missing(builder.root, builder.manifest.snapshot()):
                if rng.random() < 0.7:
                    named_keys.build(builder.store, file)
    builder.commit()


class World:
    """One random lake, its truth and everything that answers over it."""

    def __init__(self, root: Path, seed: int | None, upkeep: str = "none") -> None:
        """`seed` None: a single post without any member. `upkeep`: what maintenance did: none; roll; roll and erase; roll and make
        every index; or roll and make that of engagement, of which much is out of date, missing and damaged then."""
        self.builder = LakeBuilder(root)
        if seed is None:
            self.builder.post(did(1), None)
            self.builder.commit()
        else:
            random_lake(self.builder, seed)
        if upkeep != "none":
            self.builder.maintain(erasing=upkeep == "erase")
        if upkeep == "index":
            for index in (text_index, account_index, named_keys):
                for file in index.missing(self.builder.root, self.builder.manifest.snapshot()):
                    index.build(self.builder.store, file)
            engagement_bounds.update(self.builder.store, self.builder.manifest.snapshot(), lambda: True)
        if upkeep == "partly":
            index_some_engagement(self.builder, seed or 0)
        self.posts = current(self.builder.events, POST)
        self.likes = Counter(row["subject_uri"] for row in current(self.builder.events, LIKE))
        self.engine = Engine([self.builder.root], threads=1, memory_mb=512, spill_mb=256, spill_dir=root / "spill")
        root = self.builder.root
        self.lake = Lake(root, CurrentState(root, 2**20), FilterIndex(root), AccountIndex(root))
        self.snapshot = self.builder.manifest.snapshot()

    def search(self, filters: PostFilters, sort: Sort, limit: int) -> list[str]:
        """Every page of a search."""
        found: list[str] = []
        cursor = None
        plan = narrow(self.lake, scan(self.snapshot, POST, filters.start, filters.end), filters)
        while True:
            with self.engine.session() as session:
                page = run_search(
                    session, self.lake, SearchPlan(plan, Selection(filters), sort, ("uri",), limit, cursor, 60)
                )
            found += [row["uri"] for row in to_json(publish(POST, page.rows, ("uri",)))]
            cursor = page.next
            if cursor is None:
                return found

    def close(self) -> None:
        self.engine.close()
        self.builder.close()


UPKEEP = {
    "fresh": (1, "none"),
    "rolled": (2, "roll"),
    "erased": (3, "erase"),
    "indexed": (4, "index"),
    "partly indexed": (5, "partly"),
}


@pytest.fixture(scope="module", params=UPKEEP)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        # The files of a test are too small for the share of their size that a side file may have, and for being worth an index.
        patch.setattr(text_index, "_LARGEST_SHARE", 100.0)
        patch.setattr(posts_query, "_FEW_ROWS", 0)
        made = World(tmp_path_factory.mktemp("world"), *UPKEEP[request.param])
        yield made
    made.close()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_answers_equal_a_plain_filter(world: World, data: st.DataObject) -> None:
    uris = [row["uri"] for row in world.builder.events if row.get("uri", "").split("/")[3:4] == [POST]]
    chosen = data.draw(filter_strategy(uris))
    parameters = {name: value for name, value in chosen.items() if name != "words"}
    if "words" in chosen:
        parameters["text"] = render(chosen["words"])
    filters = PostFilters(**parameters)
    expected = [row for row in world.posts if matches(row, chosen, world.likes)]
    expected.sort(key=lambda row: (row["time_us"], row["kafka_offset"]))
    oldest = [row["uri"] for row in expected]
    assert world.search(filters, Sort.OLDEST, data.draw(st.sampled_from([3, 7, 1000]))) == oldest
    assert world.search(filters, Sort.NEWEST, 50) == oldest[::-1]

    start, end = START_US, world.builder.now_us + 1
    plan = scan(world.snapshot, POST, filters.start, filters.end)
    with world.engine.session() as session:
        buckets, authors = run_counts(
            session,
            world.lake,
            CountPlan(plan, Selection(filters), Interval.HOUR, start, end, authors=True),
        )
    assert sum(bucket.count for bucket in buckets) == len(expected)
    assert authors == len({row["did"] for row in expected})
    by_hour = Counter(hour_of(row["time_us"]) for row in expected)
    assert [bucket.count for bucket in buckets if bucket.count] == [by_hour[hour] for hour in sorted(by_hour)]
    people = {hour: len({row["did"] for row in expected if hour_of(row["time_us"]) == hour}) for hour in by_hour}
    assert [bucket.authors for bucket in buckets if bucket.count] == [people[hour] for hour in sorted(people)]

    with world.engine.session() as session:
        groups, total = run_groups(
            session, world.lake, GroupPlan(plan, Selection(filters), (Group.LANG,), 1000, authors=False, missing=True)
        )
    langs = Counter(tag for row in expected for tag in {t.lower() for t in row["langs"] or ()} or {None})
    assert {row["lang"]: row["count"] for row in groups} == langs
    assert total == len(langs)


def test_the_text_index_rules_rows_out_where_there_is_one(world: World) -> None:
    plan = scan(world.snapshot, POST, None, None)
    indexed = any(file.kind == "rolled" for file in plan.files) and not text_index.missing(
        world.lake.root, world.snapshot
    )
    plans = [narrow(world.lake, plan, PostFilters(text=word)) for word in WORDS]
    ruled_out = sum(file.rows - plan.rows_to_read(file) for plan in plans for file in plan.files)
    assert (ruled_out > 0) is indexed


def test_bounds_are_never_below_the_counts_and_tell_posts_apart(world: World) -> None:
    plan = scan(world.snapshot, POST, None, None)
    replies = Counter(row["reply_parent_uri"] for row in world.posts)
    with world.engine.session() as session:
        bounds = bounds_of(session, world.lake, plan, None, ranking.SCORED)
        assert bounds is not None
        rows = session.table(
            f"SELECT did, rkey_tid, rkey_text, filename, file_row_number FROM {READ_FILES} WHERE {IS_RECORD}",
            {"files": world.lake.paths(plan.files)},
        )
    uris = [
        f"at://{row['did']}/{POST}/{row['rkey_text'] or tid_text(row['rkey_tid'])}"
        for row in rows.select(["did", "rkey_tid", "rkey_text"]).to_pylist()
    ]
    found = dict(zip(uris, bounds.of_rows(rows).tolist(), strict=True))
    counts = {row["uri"]: world.likes[row["uri"]] + replies[row["uri"]] for row in world.posts}
    assert all(found[uri] >= count for uri, count in counts.items())
    assert sum(found[uri] < max(counts.values()) for uri in counts) > len(counts) / 2


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.sampled_from(
        [
            {},
            {"lang": ["en"]},
            {"reply": False},
            {"words": "cat"},
            {"author": [did(1)]},
            {"min_likes": 1},
            {"min_likes": 2, "words": "cat"},
        ]
    ),
    looked_at=st.sampled_from([(), (8,), (10, 40), (70,)]),
    most=st.sampled_from([(0, 0), (20, 1000), (1000, 1000)]),
    first=st.sampled_from([(0.1, 0.1), (0.1, 3.0), (1.2, 1.1), (20.0, 0.5)]),
    highest=st.sampled_from([1, 2, HIGHEST]),
    kept=st.sampled_from([0, 10, 400_000]),
    limit=st.sampled_from([7, 25, 60]),
)
def test_the_order_by_engagement_is_that_of_all_counts(
    world: World,
    chosen: dict[str, Any],
    looked_at: tuple[int, ...],
    most: tuple[int, int],
    first: tuple[float, float],
    highest: int,
    kept: int,
    limit: int,
) -> None:
    parameters = {name: value for name, value in chosen.items() if name != "words"}
    filters = PostFilters(**parameters, **({"text": chosen["words"]} if "words" in chosen else {}))
    replies = Counter(row["reply_parent_uri"] for row in world.posts)
    expected = [row for row in world.posts if matches(row, chosen, world.likes)]
    expected.sort(
        key=lambda row: (world.likes[row["uri"]] + replies[row["uri"]], row["time_us"], row["kafka_offset"]),
        reverse=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_LIKELY", looked_at)
        patch.setattr(ranking, "_MOST_LOOKED_AT", most[0])
        patch.setattr(ranking, "_MOST_MATCHES", most[1])
        patch.setattr(ranking, "_LOOKED_AT", first[0])
        patch.setattr(ranking, "_COUNTED", first[1])
        patch.setattr(ranking, "HIGHEST", highest)
        patch.setattr(bounds_module, "HIGHEST", highest)
        patch.setattr(bounds_module, "_MOST_KEPT", kept)
        assert world.search(filters, Sort.ENGAGED, limit) == [row["uri"] for row in expected]
        # As where the index has too little to be asked.
        patch.setattr(bounds_module, "_MOST_UNBOUNDED", -1)
        assert world.search(filters, Sort.ENGAGED, limit) == [row["uri"] for row in expected]


ONE_VALUE: dict[str, list[Any]] = {
    "text": ["a", "-a", "a OR b"],
    "start": [0],
    "clock": ["created"],
    "hashtag": [["a"]],
    "domain": [["a.b"]],
    "url": [["a.b"]],
    "lang": [["en"], ["en-us"]],
    "media": [["images"]],
    "self_label": [["x"]],
    "reply": [True, False],
    "reply_to": [f"at://{did(1)}/{POST}/self", f"at://{did(1)}/{POST}/3aaaaaaaaaaaa"],
    "thread": [f"at://{did(1)}/{POST}/self"],
    "quote": [True, False],
    "quoted": [f"at://{did(1)}/{POST}/self"],
    "operation": ["create"],
    "resync": [True],
    "hour_of_day": [[1]],
    "weekday": [[1]],
    "min_likes": [1],
    "min_reposts": [1],
    "min_replies": [1],
} | {name: [[did(1)]] for name in ("author", "mention", "reply_to_author", "quoted_author")}


def test_every_filter_and_group_works_on_columns_that_are_null_throughout(tmp_path: Path) -> None:
    values = dict(ONE_VALUE)
    values |= {f"not_{name}": found for name, found in values.items() if f"not_{name}" in PostFilters.model_fields}
    assert set(PostFilters.model_fields) - set(values) == {"end", "exact", "case_sensitive", "label", "not_label"}
    made = World(tmp_path, None)
    try:
        for name, found in values.items():
            for value in found:
                made.search(PostFilters(**{name: value}), Sort.NEWEST, 10)
        plan = scan(made.snapshot, POST, None, None)
        for group in Group:
            with made.engine.session() as session:
                groups, _ = run_groups(
                    session,
                    made.lake,
                    GroupPlan(plan, Selection(PostFilters()), (group,), 10, authors=True, missing=True),
                )
            assert [row["count"] for row in groups] == [1]
    finally:
        made.close()
