"""`Explorer`: the one object to start from."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, Unpack
from urllib.parse import quote

import httpx

from .exports import Export
from .http import Http, Retry
from .labels import Labels
from .parameters import (
    LISTS,
    AggregateQuery,
    CountsQuery,
    EdgesQuery,
    Filters,
    RecordsQuery,
    SampleQuery,
    SearchQuery,
    Texts,
    Time,
    TrendsQuery,
    encode,
    text_of,
)
from .results import Row, Rows, Search

VERSION = "0.1.0"
_PAGE = 1000


class Explorer:
    """A client of one Post Explorer service. Use it as a context manager, or `close` it; it may be shared by threads.

    `url` is the service's address. `key` is the API key; by default the environment variable POST_EXPLORER_KEY, if set; a
    service on your own machine usually needs none. `timeout` is the longest wait for an answer, in seconds.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        key: str | None = None,
        *,
        timeout: float = 60.0,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = Http(
            url,
            key=key if key is not None else os.environ.get("POST_EXPLORER_KEY"),
            timeout=timeout,
            retry=retry or Retry(),
            transport=transport,
            user_agent=f"bluesky-post-explorer-client/{VERSION}",
        )
        self.labels = Labels(self._http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- posts -------------------------------------------------------------------------------------------------------

    def search(
        self, *, max_rows: int | None = None, page_size: int | None = None, **query: Unpack[SearchQuery]
    ) -> Search:
        """Posts that meet every filter, newest first, fetched page by page while you iterate.

        `max_rows` ends the iteration early; without it every match comes. `page_size` is the number of rows per request.
        """
        return self._pages("/v1/search", encode(query), max_rows, page_size)

    def thread(self, uri: str, *, fields: Texts | None = None, max_rows: int | None = None) -> Search:
        """The post that starts a thread and every reply under it, oldest first."""
        return self._pages(f"/v1/threads/{_path(uri)}", encode({"fields": fields}), max_rows, None)

    def records(
        self,
        collection: str,
        *,
        max_rows: int | None = None,
        page_size: int | None = None,
        **query: Unpack[RecordsQuery],
    ) -> Search:
        """Records of any collection, such as `app.bsky.feed.like`; with `view="log"` every operation on them."""
        return self._pages("/v1/records", encode({"collection": collection, **query}), max_rows, page_size)

    def post(self, uri: str, *, fields: Texts | None = None, series: str | None = None) -> Row:
        """One post: as it is, its versions and engagement; with `series` (minute, hour, day, …) engagement over time."""
        found: Row = self._http.json(
            "GET", f"/v1/posts/{_path(uri)}", query=encode({"fields": fields, "series": series})
        )
        return found

    def author(self, actor: str, *, start: Time | None = None, end: Time | None = None, daily: bool = False) -> Row:
        """One account, by DID or handle: handles, profile history, activity; with `daily` activity by day."""
        query = encode({"start": start, "end": end, "daily": daily})
        found: Row = self._http.json("GET", f"/v1/authors/{_path(actor)}", query=query)
        return found

    def sample(self, size: int, **query: Unpack[SampleQuery]) -> Rows:
        """`size` random matches (1,000 at most); the same `seed` draws the same ones from the same snapshot."""
        body = self._http.json("GET", "/v1/search", query=encode({"sample": size, **query}))
        return Rows(body["results"], body)

    def counts(self, **query: Unpack[CountsQuery]) -> Rows:
        """Matching posts per minute, hour, day, week or month: rows with `start`, `count` and what else was asked for."""
        body = self._http.json("GET", "/v1/counts", query=encode(query))
        return Rows(body["counts"], body)

    def aggregate(self, by: Texts, **query: Unpack[AggregateQuery]) -> Rows:
        """Matching posts per group: rows with the keys, `count`, and `authors` if asked for; the largest first."""
        body = self._http.json("GET", "/v1/aggregate", query=encode({"by": by, **query}))
        return Rows(body["groups"], body)

    def edges(
        self,
        kind: Literal["follow", "block", "like", "repost", "reply", "mention", "quote"],
        **query: Unpack[EdgesQuery],
    ) -> Rows:
        """Edges between accounts; `weighted` adds up those between the same two."""
        body = self._http.json("GET", "/v1/graph/edges", query=encode({"kind": kind, **query}))
        return Rows(body["edges"], body)

    def trends(
        self, by: Literal["hashtag", "domain", "mention", "lang"] = "hashtag", **query: Unpack[TrendsQuery]
    ) -> Rows:
        """What rises: groups whose share in the last `window_minutes` is far above that of the time before."""
        body = self._http.json("GET", "/v1/trends", query=encode({"by": by, **query}))
        return Rows(body["trends"], body)

    def explain(self, target: Literal["search", "counts", "export"] = "search", **filters: Unpack[Filters]) -> Row:
        """What a query would read before running it: files, rows, bytes, expected time, and whether it is allowed."""
        found: Row = self._http.json("GET", "/v1/explain", query=encode({"target": target, **filters}))
        return found

    # --- exports -----------------------------------------------------------------------------------------------------

    def export(
        self,
        *,
        format: Literal["csv", "ndjson", "parquet"] = "parquet",  # noqa: A002 - the service's name for it
        compression: Literal["none", "zstd", "gzip"] | None = None,
        fields: Iterable[str] | None = None,
        limit: int | None = None,
        spreadsheet_safe: bool = False,
        name: str | None = None,
        **filters: Unpack[Filters],
    ) -> Export:
        """Start an export of every match, or of the oldest `limit`; `export.wait()` and `export.download()` fetch the file.

        `fields` may also name `likes`, `reposts`, `replies`, `quotes`, `handle` and `label:<name>`. `spreadsheet_safe` (CSV)
        puts an apostrophe before texts that a spreadsheet would run as a formula. `name` is the beginning of the file's name.
        """
        body: dict[str, Any] = {"format": format, **_json(filters)}
        chosen = {
            "compression": compression,
            "limit": limit,
            "name": name,
            "spreadsheet_safe": spreadsheet_safe or None,
        }
        body |= {option: value for option, value in chosen.items() if value is not None}
        if fields is not None:
            body["fields"] = fields.split(",") if isinstance(fields, str) else list(fields)
        # A fixed key makes a repeated request answer with the job that the first one started.
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return Export(self._http, self._http.json("POST", "/v1/exports", body=body, headers=headers))

    def export_of(self, export_id: str) -> Export:
        """An export that was started before."""
        return Export(self._http, self._http.json("GET", f"/v1/exports/{export_id}"))

    def exports(self) -> list[Export]:
        """Your exports that the service still knows, the newest first."""
        return [Export(self._http, body) for body in self._http.json("GET", "/v1/exports")["exports"]]

    def compliance(self, uris: Iterable[str] = (), *, export: str | None = None) -> Row:
        """What became of records that you have a copy of: `summary` by fate, and `results` for each uri.

        Give the uris (10,000 at most), or the id of an export; of the latter only what is gone or edited is listed.
        """
        body = {"export": export} if export is not None else {"uris": list(uris)}
        found: Row = self._http.json("POST", "/v1/compliance", body=body)
        return found

    def _pages(self, path: str, pairs: list[tuple[str, str]], max_rows: int | None, page_size: int | None) -> Search:
        size = page_size if page_size is not None else min(max_rows, _PAGE) if max_rows else _PAGE

        def page(cursor: str | None) -> Row:
            found: Row = self._http.json("GET", path, query=[*pairs, *encode({"limit": size, "cursor": cursor})])
            return found

        return Search(page, max_rows)

    # --- everything else ---------------------------------------------------------------------------------------------

    def stats(self) -> Row:
        """What the service holds: rows, bytes and times by table."""
        found: Row = self._http.json("GET", "/v1/stats")
        return found

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON answer of any other address of the service, such as `get("/v1/collections")`."""
        return self._http.json("GET", path, query=encode(parameters))


def _path(text: str) -> str:
    """An identifier as part of an address."""
    return quote(text, safe=":/@")


def _json(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Filters as JSON members: times become text, and filters that take several values always get a list."""

    def value_of(name: str, value: Any) -> Any:
        return value if isinstance(value, (bool, int, float)) else text_of(name, value)

    found: dict[str, Any] = {}
    for name, value in filters.items():
        if isinstance(value, (list, tuple, set, frozenset)):
            found[name] = [value_of(name, item) for item in value]
        elif value is not None:
            found[name] = [value_of(name, value)] if name in LISTS else value_of(name, value)
    return found
