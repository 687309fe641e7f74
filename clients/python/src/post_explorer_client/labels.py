"""Label tables: upload values for posts or accounts, then filter and group by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from .errors import ExplorerError
from .http import Http
from .parameters import encode
from .results import Row

_CSV = "text/csv"
_PARQUET = "application/vnd.apache.parquet"


class Labels:
    """`explorer.labels`."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def list(self) -> list[Row]:
        """Your tables and those shared with you."""
        found: list[Row] = self._http.json("GET", "/v1/labels")["labels"]
        return found

    def get(self, name: str, *, owner: str | None = None) -> Row:
        """One table: its versions, columns and what they hold."""
        found: Row = self._http.json("GET", f"/v1/labels/{name}", query=encode({"owner": owner}))
        return found

    def upload(
        self,
        name: str,
        table: str | Path | bytes | Sequence[Mapping[str, Any]] | Any,
        *,
        multiple: bool = False,
        shared: bool = False,
        description: str = "",
    ) -> Row:
        """Upload a table with a column `uri` or `did` and value columns; a name that exists gets a further version.

        `table` is the path of a .csv or .parquet file, the bytes of one, a list of dictionaries, or a pandas, polars or
        Arrow table. The table's description comes back. Raises InvalidRequest, naming row and column, for a wrong table.
        """
        content, kind = _content(table)
        query = encode({"multiple": multiple, "shared": shared, "description": description or None})
        with content() as body:

            def again() -> Any:
                body.seek(0)
                return body

            response = self._http.request(
                "PUT", f"/v1/labels/{name}", query=query, content=again, headers={"Content-Type": kind}
            )
        found: Row = response.json()
        return found

    def delete(self, name: str, *, version: int | None = None) -> None:
        """Delete a table of yours, or one version of it."""
        self._http.request("DELETE", f"/v1/labels/{name}" + (f"/versions/{version}" if version is not None else ""))


def _content(table: Any) -> tuple[Any, str]:
    """A context manager that opens the body, and the body's type."""
    if isinstance(table, (str, Path)):
        path = Path(table)
        kinds = {".csv": _CSV, ".parquet": _PARQUET}
        if path.suffix not in kinds:
            raise ExplorerError(f"{path}: only .csv and .parquet files can be uploaded")
        return lambda: path.open("rb"), kinds[path.suffix]
    if isinstance(table, bytes):
        return lambda: _memory(table), _PARQUET if table.startswith(b"PAR1") else _CSV
    data = _parquet(table)
    return lambda: _memory(data), _PARQUET


@contextmanager
def _memory(data: bytes) -> Iterator[BinaryIO]:
    yield BytesIO(data)


def _parquet(table: Any) -> bytes:
    """Any kind of table in memory as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(table, Sequence):
        table = pa.Table.from_pylist(list(table))
    elif hasattr(table, "to_arrow"):
        table = table.to_arrow()
    elif not isinstance(table, pa.Table):
        table = pa.Table.from_pandas(table, preserve_index=False)
    sink = BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
