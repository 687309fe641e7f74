"""The application factory: everything that answers, put together from settings and a lake."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from fastapi import FastAPI

from api import access
from api.admission import QueryRunner
from api.citations import Citations
from api.config import ApiSettings
from api.current import CurrentState
from api.cursors import CursorCodec
from api.engine import Engine
from api.errors import install_handlers
from api.exports.service import Exports
from api.labels import routes as label_routes
from api.labels import service as labels
from api.labels.config import folder as label_folder
from api.middleware import RequestCounts, RequestLayer
from api.relation import Lake
from api.rollups import Rollups
from api.rollups_upkeep import RollupUpkeep
from api.routes import authors, compliance, counts, explain, graph, health, lab, page, posts, records, search, stats
from api.routes import exports as export_routes
from api.services import Services, make_export_lane, make_lanes
from api.snapshots import SnapshotSource
from api.throughput import Throughput
from lake.account_index import AccountIndex
from lake.bloom import FilterIndex
from lake.manifest import open_manifest

VERSION: Final = "1.0.0"
"""Version of the HTTP contract."""

_DESCRIPTION: Final = """
Search, count and export what the Bluesky firehose brought. Every answer names the snapshot it was computed from and the known
gaps of the range it covers; deleted, edited-away and hidden records never appear. Errors are RFC 9457 problem details.
"""


def create_app(settings: ApiSettings, lake: str | Path, manifest: str) -> FastAPI:
    """Build the application over a lake folder and its manifest (SQLite path or PostgreSQL URL), both read only.

    The manifest is opened on first use, so that the application may start before the writer made it; until then data
    endpoints answer 503.
    """
    lake_root = Path(lake).absolute()
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    state = settings.state_dir.absolute()
    engine = Engine(
        [lake_root, label_folder(state), state / "exports"],
        threads=settings.threads,
        memory_mb=settings.memory_limit_mb,
        spill_mb=settings.spill_limit_mb,
        spill_dir=state / "spill",
    )
    lanes = (*make_lanes(settings), make_export_lane(settings))
    snapshots = SnapshotSource(
        lambda: open_manifest(manifest, read_only=True),
        settings.snapshot_seconds,
        Citations(state / "citations.sqlite", settings.cited_versions),
    )
    services = Services(
        settings=settings,
        lake=Lake(
            lake_root,
            CurrentState(lake_root, settings.state_cache_mb * 2**20),
            FilterIndex(lake_root),
            AccountIndex(lake_root),
        ),
        snapshots=snapshots,
        engine=engine,
        runner=QueryRunner(
            engine, lanes, settings.query_seconds, lambda path: snapshots.names(os.path.relpath(path, lake_root))
        ),
        cursors=CursorCodec(load_secret(state / "cursor.key")),
        counts=RequestCounts(),
        throughput=Throughput(),
        rollups=Rollups(state / "rollups.sqlite"),
    )

    upkeep = RollupUpkeep(services)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        exports.start()
        upkeep.start()
        try:
            yield
        finally:
            services.runner.stop()
            await upkeep.stop()
            await exports.stop()
            services.close()

    app = FastAPI(
        title="Bluesky Post Explorer",
        version=VERSION,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.services = services
    # The last layer added is the outermost: every answer, also a refusal of access, has an id and security headers.
    labels.install(app, settings.labels, state_dir=state)
    app.state.exports = exports = Exports(
        settings, state / "exports", services.runner, services.snapshots, services.lake, app.state.labels
    )
    access.install(app, settings.access, host=settings.host, state_dir=state)
    app.add_middleware(RequestLayer, settings=settings, counts=services.counts)
    install_handlers(app)
    app.include_router(health.router)
    app.include_router(page.router)
    app.include_router(lab.router)
    app.include_router(label_routes.router, prefix="/v1")
    for module in (search, counts, posts, authors, graph, records, explain, export_routes, compliance, stats):
        app.include_router(module.router, prefix="/v1")
    return app


def load_secret(path: Path) -> bytes:
    """The secret that signs cursors, made on first use and readable by the owner only; restarts keep cursors valid."""
    try:
        found = path.read_bytes()
        if len(found) == 32:
            return found
    except FileNotFoundError:
        pass
    secret = secrets.token_bytes(32)
    temporary = path.with_suffix(".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secret)
    temporary.replace(path)
    return secret
