"""The routes of the service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from pydantic import BaseModel
from starlette.responses import HTMLResponse, Response

from gallery.console import show_log
from gallery.service import metrics
from gallery.service.errors import HANDLERS, ServiceError, answer
from gallery.service.images import ImageEncoder, Thumbnails
from gallery.service.schemas import (
    ErrorAnswer,
    ItemAnswer,
    LikeRequest,
    Options,
    SearchAnswer,
    SearchRequest,
    SpaceId,
    SpacesAnswer,
    parse_codes,
    parse_json,
)
from gallery.service.security import LOOPBACK, MAX_IMAGE, TRUSTED, Guard, Pool, read_keys
from gallery.service.server import log_errors
from gallery.service.snapshots import Answering, Snapshot, Snapshots

QUEUE = 32  # requests that wait for a pool
LARGE = 100  # results from which on a search leaves the event loop
PAGE = Path(__file__).with_name("page.html")
STATUSES = (400, 401, 404, 408, 409, 413, 415, 422, 503, 504)


@dataclass(frozen=True)
class ServiceSettings:
    """What the processes of a service are given; any_host: whether it may be asked by any name."""

    gallery: str
    bundles: tuple[Path, ...] = ()
    images: Path | None = None
    poll_s: float = 5.0
    any_host: bool = False


def create_app(settings: ServiceSettings) -> FastAPI:
    """Build the application of one process."""
    show_log()
    log_errors()
    sys.setswitchinterval(0.0005)  # how long a request waits for a thread that loads a new version
    _limit_threads()
    snapshots, keys = Snapshots(settings.gallery, settings.images is not None), read_keys()
    encoder, thumbnails = ImageEncoder(settings.bundles), Thumbnails(settings.images)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(snapshots.start, settings.poll_s)  # who asks meanwhile waits
        yield
        snapshots.stop()

    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in STATUSES}
    app = FastAPI(title="Twinhash gallery", lifespan=lifespan, redoc_url=None, redirect_slashes=False, responses=errors)
    app.add_middleware(Guard, keys=keys, hosts=set() if keys or settings.any_host else LOOPBACK)
    for error, handler in HANDLERS.items():
        app.add_exception_handler(error, handler)
    _add_searches(app, snapshots)
    _add_image_search(app, snapshots, encoder)
    _add_items(app, snapshots, thumbnails)
    _add_codespace(app, snapshots, encoder, thumbnails)
    _add_status(app, snapshots)
    return app


def _add_searches(app: FastAPI, snapshots: Snapshots) -> None:
    pool = Pool(2, QUEUE)

    @app.post("/search", response_model=SearchAnswer, openapi_extra=body_of(SearchRequest))
    async def search(raw: Request) -> Response:
        """Return the nearest items of each code."""
        request = SearchRequest.model_validate(parse_json(await raw.body()))
        answering = snapshots.answering
        snapshot = answering.of(request.code_space)
        codes = parse_codes(request.codes, snapshot.index.space.bits)
        if request.where is None and len(codes) * request.k <= LARGE:
            return results(answering, snapshot, snapshot.search(codes, request))
        return await pool.run(lambda: results(answering, snapshot, snapshot.search(codes, request)))

    @app.post("/search/like", response_model=SearchAnswer, openapi_extra=body_of(LikeRequest))
    async def search_like(raw: Request) -> Response:
        """Return the items nearest to one of the gallery."""
        request = LikeRequest.model_validate(parse_json(await raw.body()))
        answering = snapshots.answering
        snapshot = answering.of(request.code_space)
        row = snapshot.row(request.id)
        found = await pool.run(snapshot.search, snapshot.index.codes[row : row + 1], request, row)
        return results(answering, snapshot, found)


def _add_image_search(app: FastAPI, snapshots: Snapshots, encoder: ImageEncoder) -> None:
    pool = Pool(1, QUEUE)

    @app.post("/search/image", response_model=SearchAnswer)
    async def search_image(
        image: Annotated[UploadFile, File(description="JPEG, PNG, WebP and others, at most 8 MiB.")],
        options: Annotated[str, Form(description="JSON: k, where, max_distance, columns.")] = "{}",
        code_space: Annotated[SpaceId | None, Form()] = None,
    ) -> Response:
        """Return the items nearest to an image, which a student on the server encodes."""
        data, answering = await image.read(), snapshots.answering
        if len(data) > MAX_IMAGE:
            texts = f"an image of at most {MAX_IMAGE:,} bytes", f"{len(data):,}", "Send a smaller one."
            raise ServiceError(413, "too_large", texts)
        chosen = Options.model_validate(parse_json(options))
        return results(answering, *await pool.run(encoder.search, answering, data, code_space, chosen))


def _add_items(app: FastAPI, snapshots: Snapshots, thumbnails: Thumbnails) -> None:
    pool = Pool(1, 2 * QUEUE)

    @app.get("/items/{id:path}", response_model=ItemAnswer)
    async def item(id: str, code_space: SpaceId | None = None) -> Response:
        """Return an item; encode its id for the URL: `/items/a%2Fb.png`."""
        answering = snapshots.answering
        snapshot = answering.of(code_space)
        row = snapshot.row(id)
        about = {"id": id, "code": snapshot.index.codes[row].tobytes().hex(), "columns": snapshot.values([row])[0]}
        return answer(about | origin(answering, snapshot))

    @app.get("/thumbnails/{id:path}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def thumbnail(id: str, code_space: SpaceId | None = None) -> Response:
        """Return the image of an item, small, where the service was started with `--images`."""
        image = await pool.run(thumbnails.make, snapshots.answering.of(code_space), id)
        return Response(image, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})


def _add_codespace(app: FastAPI, snapshots: Snapshots, encoder: ImageEncoder, thumbnails: Thumbnails) -> None:
    def describe(snapshot: Snapshot | None) -> dict[str, Any] | None:
        if snapshot is None:
            return None
        space = snapshot.index.space
        return {
            "code_space": space.id, "version": snapshot.record.version, "items": len(snapshot.index),
            "bits": space.bits, "preprocessing": asdict(space.preprocessing),
            "columns": snapshot.columns.column_names, "image_search": space.id in encoder.students,
        }  # fmt: skip

    @app.get("/codespace", response_model=SpacesAnswer)
    async def codespace() -> Response:
        """Return the code spaces that are answered: what an app asks before and after an update."""
        current, previous = map(describe, snapshots.answering)
        return answer({"current": current, "previous": previous, "thumbnails": thumbnails.folder is not None})


def _add_status(app: FastAPI, snapshots: Snapshots) -> None:
    page = PAGE.read_text("utf-8")
    headers = {"Content-Security-Policy": content_policy(page), "Referrer-Policy": "no-referrer"}

    @app.get("/", include_in_schema=False)
    async def search_page() -> Response:
        return HTMLResponse(page, headers=headers)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz(request: Request) -> Response:
        """Say what is answered; `problem`: why the newest published version is not, in full with a key."""
        problem = snapshots.problem if request.scope[TRUSTED] or not snapshots.problem else "see the log, or send a key"
        if not snapshots.loaded:
            raise ServiceError(503, "not_ready", ("a published version", problem, "Try again later."), retry_s=2)
        current = snapshots.answering.current.record
        about = {"code_space": current.space, "version": current.version, "items": current.rows}
        return answer({"status": "ready", **about, "problem": problem})

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Return measurements for Prometheus."""
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI says of a body; the routes parse it themselves, which is strict and takes half the time."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def content_policy(page: str) -> str:
    """Return the policy by which a browser runs what is in the page, and loads nothing from elsewhere."""
    parts = ["default-src 'none'; connect-src 'self'; img-src blob:; base-uri 'none'; form-action 'none'"]
    for tag in ("script", "style"):
        text = re.findall(f"(?s)<{tag}>(.*?)</{tag}>", page)[0].encode()
        parts.append(f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'")
    return "; ".join([*parts, "frame-ancestors 'none'"])


def origin(answering: Answering, snapshot: Snapshot) -> dict[str, Any]:
    """Return where an answer is from; a client of the previous code space is told the current one."""
    about = {"code_space": snapshot.record.space, "version": snapshot.record.version}
    return about if snapshot is answering.current else about | {"update": answering.current.record.space}


def results(answering: Answering, snapshot: Snapshot, found: list[list[dict[str, Any]]]) -> Response:
    """Return the answer of a search."""
    return answer(origin(answering, snapshot) | {"results": found})


def _limit_threads() -> None:
    """One thread each: a process serves on one core, and OpenMP's threads wait by turning in circles."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    try:
        import faiss
    except ImportError:
        return
    faiss.omp_set_num_threads(1)
