"""Label tables as a service: receiving uploads, finding tables for requests, deleting."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request

from api.access import Principal
from api.access.scopes import Scope
from api.errors import ApiError, FieldError, Problem, bad_parameter, over_capacity
from api.labels.catalogue import Catalogue, Table, Version
from api.labels.columns import Column, columns_from
from api.labels.config import LabelSettings, folder
from api.labels.names import Reference, parse_condition, parse_reference, split_label
from api.labels.sql import LabelColumn, LabelCondition
from api.labels.uploads import Upload, convert, receive, sync

_WAIT_SECONDS: Final = 30.0
_LEFT_OVER_SECONDS: Final = 3600.0


class Labels:
    """All label tables of one service. Methods that are not async may block for the catalogue."""

    def __init__(self, settings: LabelSettings, state_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self.folder = folder(state_dir.absolute())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.catalogue = Catalogue(self.folder / "catalogue.sqlite")
        self._clock = clock
        self._readers = asyncio.Semaphore(settings.uploads_at_once)
        self._open = 0
        self.sweep()

    def sweep(self) -> int:
        """Unlink what a crash left between a file and the catalogue; the number of files. Younger ones may be in use."""
        known = self.catalogue.files()
        before = self._clock() - _LEFT_OVER_SECONDS
        left = [
            path
            for path in self.folder.glob("*.*")
            if path.suffix in (".parquet", ".upload") and path.name not in known and path.stat().st_mtime < before
        ]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    # --- for queries -------------------------------------------------------------------------------------------------

    def conditions(self, texts: Sequence[str], who: Principal, parameter: str = "label") -> list[LabelCondition]:
        """The conditions of a request, `[owner/]name[.column][@version]:condition` each. Raises ApiError, naming `parameter`."""
        found = []
        for text in texts:
            try:
                reference, condition = split_label(text)
                column = self._column(reference, who, parameter)
                found.append(LabelCondition(column, parse_condition(condition, column.kind), condition))
            except ValueError as error:
                raise bad_parameter(parameter, str(error)) from None
        return found

    def column(self, text: str, who: Principal, parameter: str = "label") -> LabelColumn:
        """The column of `[owner/]name[.column][@version]`, to group or export by. Raises ApiError, naming `parameter`."""
        try:
            return self._column(parse_reference(text), who, parameter)
        except ValueError as error:
            raise bad_parameter(parameter, str(error)) from None

    def _column(self, reference: Reference, who: Principal, parameter: str) -> LabelColumn:
        table = self.table(reference.name, who, owner=reference.owner, parameter=parameter)
        version = _version(table, reference.version, parameter)
        column = _value_column(version, reference.column, table.name)
        dotted = f".{column.name}" if column is not None else ""
        return LabelColumn(
            pinned=f"{table.owner}/{table.name}{dotted}@{version.version}",
            key=version.key,
            file=self.folder / version.file,
            stored=column.stored if column else None,
            kind=column.kind if column else None,
            rows=version.rows,
            sha256=version.sha256,
        )

    def table(self, name: str, who: Principal, *, owner: str | None = None, parameter: str = "name") -> Table:
        """A table that `who` may see: an own one, or with `owner` one that is shared. ApiError 404 otherwise."""
        found = self.catalogue.find(owner or who.owner, name)
        if found is None or not (found.shared or found.owner == who.owner or who.may(Scope.ADMIN)):
            whose = f"of {owner!r} that you may see" if owner else "of yours"
            detail = f"{parameter}: there is no label table {name!r} {whose}; GET /v1/labels lists them"
            raise ApiError(Problem.NOT_FOUND, detail, errors=[FieldError(parameter, detail)])
        return found

    # --- changes -----------------------------------------------------------------------------------------------------

    async def upload(self, request: Request, upload: Upload, who: Principal) -> tuple[Table, bool]:
        """Receive, check and store an upload; the table, and whether it got a new version.

        The same bytes with the same options as the newest version make no other. Raises ApiError.
        """
        if self._open >= self._settings.uploads_open:
            raise over_capacity(f"{self._open} uploads are on their way: try again later", 30)
        self._open += 1
        try:
            await asyncio.to_thread(self._check_room, upload.name, who)
            return await self._store(request, upload, who)
        finally:
            self._open -= 1

    async def _store(self, request: Request, upload: Upload, who: Principal) -> tuple[Table, bool]:
        source = self.folder / f"{secrets.token_hex(16)}.upload"
        target = source.with_suffix(".parquet")
        kept = False
        try:
            sha256 = await receive(request, source, self._settings, parquet=upload.parquet)
            existing = await asyncio.to_thread(self.catalogue.find, who.owner, upload.name)
            if existing is not None and _same_as_newest(existing, upload, sha256):
                return existing, False
            answer = await self._read(upload, source, target)
            await asyncio.to_thread(sync, target)
            version = _new_version(answer, target, sha256, upload.multiple, self._clock())
            table = await asyncio.to_thread(
                lambda: self.catalogue.add(
                    who.owner, upload.name, version, shared=upload.shared, description=upload.description
                )
            )
            kept = True
            return table, True
        finally:
            source.unlink(missing_ok=True)
            if not kept:
                target.unlink(missing_ok=True)

    def delete(self, name: str, version: int | None, who: Principal, *, owner: str | None = None) -> None:
        """Delete a version, or with None the whole table; queries that read it now still finish.

        Only the scope `admin` may name another owner: ApiError 403. ApiError 404 when there is no such table.
        """
        if owner not in (None, who.owner) and not who.may(Scope.ADMIN):
            raise ApiError(
                Problem.FORBIDDEN, "owner: only a key with the scope `admin` may delete the tables of others"
            )
        files = self.catalogue.delete(owner or who.owner, name, version)
        if files is None:
            what = f"label table {name!r}" if version is None else f"version {version} of the label table {name!r}"
            raise ApiError(
                Problem.NOT_FOUND, f"there is no {what}{'' if owner else ' of yours'}; GET /v1/labels lists them"
            )
        for file in files:
            (self.folder / file).unlink(missing_ok=True)

    def _check_room(self, name: str, who: Principal) -> None:
        settings = self._settings
        usage = self.catalogue.usage(who.owner)
        table = self.catalogue.find(who.owner, name)
        if table is None and usage.tables >= settings.tables_per_owner:
            raise ApiError(
                Problem.CONFLICT,
                f"you have {usage.tables} label tables, which is all that are allowed: delete one first",
            )
        if table is not None and len(table.versions) >= settings.versions_per_table:
            raise ApiError(
                Problem.CONFLICT,
                f"{name!r} has {len(table.versions)} versions, which is all that are kept: delete one first"
                f" (DELETE /v1/labels/{name}/versions/{table.versions[0].version})",
            )
        if usage.bytes >= settings.bytes_per_owner:
            raise ApiError(
                Problem.CONFLICT,
                f"your label tables take {usage.bytes} bytes, {settings.bytes_per_owner} are allowed: delete some first",
            )

    async def _read(self, upload: Upload, source: Path, target: Path) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._readers.acquire()
        except TimeoutError:
            raise over_capacity("other uploads are being read: try again later", 30) from None
        try:
            return await convert(self._settings, upload, source, target)
        finally:
            self._readers.release()


def install(app: FastAPI, settings: LabelSettings, *, state_dir: Path) -> Labels:
    """Give an application its label tables, at `app.state.labels`. Raises CatalogueError."""
    labels = app.state.labels = Labels(settings, state_dir)
    return labels


def labels_of(request: Request) -> Labels:
    """The dependency of routes that use label tables."""
    found: Labels = request.app.state.labels
    return found


def _version(table: Table, number: int | None, parameter: str) -> Version:
    if number is None:
        if not table.versions:
            raise ApiError(Problem.GONE, f"{parameter}: every version of {table.name!r} was deleted: upload it again")
        return table.versions[-1]
    for version in table.versions:
        if version.version == number:
            return version
    have = ", ".join(str(version.version) for version in table.versions) or "none"
    detail = f"{parameter}: {table.name!r} has no version {number}: it has {have}"
    raise ApiError(Problem.NOT_FOUND, detail, errors=[FieldError(parameter, detail)])


def _value_column(version: Version, name: str | None, table: str) -> Column | None:
    """The column a reference means; ValueError when the table has another number of columns."""
    names = ", ".join(column.name for column in version.columns) or "none"
    if name is None:
        if len(version.columns) > 1:
            raise ValueError(
                f"{table!r} has several columns: write {table}.{version.columns[0].name}:…; they are: {names}"
            )
        return version.columns[0] if version.columns else None
    for column in version.columns:
        if column.name == name:
            return column
    raise ValueError(f"{table!r} has no column {name!r}: its columns are: {names}")


def _same_as_newest(table: Table, upload: Upload, sha256: str) -> bool:
    newest = table.versions[-1] if table.versions else None
    return (
        newest is not None
        and (newest.sha256, newest.multiple) == (sha256, upload.multiple)
        and (table.shared, table.description) == (upload.shared, upload.description)
    )


def _new_version(answer: dict[str, Any], target: Path, sha256: str, multiple: bool, now: float) -> Version:
    columns = columns_from(answer["columns"])
    return Version(0, target.name, answer["key"], columns, answer["rows"], target.stat().st_size, sha256, multiple, now)
