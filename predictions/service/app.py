"""The service's routes: each is a lookup of the client, or what HBase knows of the releases."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware

from predictions.errors import PredictionsError, ServiceError
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases, listed
from predictions.lookup.answer import Answer
from predictions.lookup.client import Client
from predictions.service.metrics import Metrics
from predictions.service.schemas import AnswerOut, AnswersOut, ErrorOut, HealthOut, Lookup, ReleasesOut
from predictions.settings import TOKEN_VARIABLE, Settings

_log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
RECORDS = "/records/"
MAX_BODY_BYTES = 4 << 20
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class RecordIdConvertor(PathConvertor):
    """A path of any characters: Starlette's own ends at a line feed, and such a lookup would find no route."""

    regex = r"[\s\S]*"


register_url_convertor("record_id", RecordIdConvertor())

_LARGE = f"The request has more than {MAX_BODY_BYTES:,} bytes."
_ERROR: dict[str, Any] = {"model": ErrorOut}
_BAD: dict[int | str, dict[str, Any]] = {400: _ERROR, 401: _ERROR, 422: _ERROR, 503: _ERROR}


def make_app(settings: Settings, client: Client, token: str | None, hosts: Collection[str]) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        settings: where HBase is, and the name of the predictions.
        client: what looks records up.
        token: that every request but those for the page and `/healthz` must bear; None for none.
        hosts: under which names it may be asked, where there is no token.
    """
    app = FastAPI(
        title=f"Predictions: {settings.name}",
        description="Records of a database and their predictions.",
        version="1",
        docs_url=None,  # a page that would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # `/records/` is the lookup of an empty ID
        max_body_size=MAX_BODY_BYTES,
    )
    metrics = Metrics()
    app.include_router(_lookups(client, metrics), dependencies=[Depends(_bearer(token))], responses=_BAD)
    app.include_router(_operations(settings, metrics), dependencies=[Depends(_bearer(token))], responses=_BAD)
    app.include_router(_open(client))
    if token is None:
        # Nobody else's page, its name made to lead here (DNS rebinding), is to read what is for this machine alone.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.middleware("http")(_around(metrics))  # around the one before, too
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(StarletteHTTPException)(_refused)
    app.exception_handler(PredictionsError)(_failed)
    return app


def _around(metrics: Metrics) -> Callable[[Request, RequestResponseEndpoint], Awaitable[Response]]:
    """Return what stands around each request."""

    async def around(request: Request, call_next: RequestResponseEndpoint) -> Response:
        started, code = time.perf_counter(), HTTPStatus.INTERNAL_SERVER_ERROR.value
        try:
            response = await call_next(request)
            response.headers.update(HEADERS)
            code = response.status_code
            return response
        finally:
            metrics.took(getattr(request.scope.get("route"), "path", "other"), code, time.perf_counter() - started)

    return around


def _lookups(client: Client, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    # The path, not the parameter: that one has replacement characters where the path is no UTF-8.
    @router.get(RECORDS + "{record_id:record_id}", response_model=AnswerOut)
    def record(record_id: str, request: Request) -> Response:
        """Look up a record and its prediction. An ID of dots alone is what HTTP clients resolve: use POST /records."""
        return JSONResponse(_told(metrics.count(client.get_many([_id(request)])))[0])

    @router.post("/records", response_model=AnswersOut, responses={413: {"description": _LARGE}})
    def records(lookup: Lookup) -> Response:
        """Look up records and their predictions; the answers have the order of the IDs."""
        return JSONResponse({"answers": _told(metrics.count(client.get_many(lookup.ids)))})

    return router


def _operations(settings: Settings, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/releases", response_model=ReleasesOut)
    def releases() -> Response:
        """List the releases that were loaded, the newest first, with the distributions of their predictions."""
        return JSONResponse({"name": settings.name, "releases": _releases(settings)})

    @router.get("/metrics", response_class=Response, responses={200: {"content": {metrics.media_type: {}}}})
    def measured() -> Response:
        """Tell how many answers there were, by status, and how long they took, for Prometheus."""
        return Response(metrics.text(), media_type=metrics.media_type)

    return router


def _open(client: Client) -> APIRouter:
    """Return what needs no token: whether the service is well, and the page, which holds nothing yet."""
    router = APIRouter()

    @router.get("/healthz", response_model=HealthOut, responses={503: {"model": HealthOut | ErrorOut}})
    def health() -> Response:
        """Tell whether HBase and the database answer."""
        unavailable = list(client.unavailable())
        status = HTTPStatus.SERVICE_UNAVAILABLE if unavailable else HTTPStatus.OK
        return JSONResponse({"status": "unavailable" if unavailable else "ok", "unavailable": unavailable}, status)

    for path, file in {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}.items():
        router.add_api_route(path, _file(file), include_in_schema=False)
    return router


def _file(name: str) -> Callable[[], Awaitable[Response]]:
    async def file() -> Response:
        return FileResponse(PAGE / name)

    return file


def _bearer(token: str | None) -> Callable[..., None]:
    """Return the check of the token, with which the OpenAPI document says that there is one."""
    if token is None:
        return lambda: None
    expected = token.encode()

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), expected):
            told = f"send the token of the service ({TOKEN_VARIABLE}): Authorization: Bearer TOKEN"
            raise HTTPException(HTTPStatus.UNAUTHORIZED, told, {"WWW-Authenticate": "Bearer"})

    return check


def _id(request: Request) -> str:
    """Return the ID of a path, byte for byte."""
    before, found, raw = request.scope["raw_path"].partition(RECORDS.encode())
    if before or not found:  # `/%72ecords/…`
        raise HTTPException(HTTPStatus.NOT_FOUND)
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the ID is not UTF-8, percent-encoded") from None


def _told(answers: list[Answer]) -> list[dict[str, Any]]:
    """Return answers for JSON, without what only an operator is to know, addresses and paths: that goes to the log."""
    for error in {answer.error: None for answer in answers if answer.error and answer.status != "failed"}:
        _log.warning("not answered as it should be: %s", error)
    return [found.as_json() | _public_error(found) for found in answers]


def _public_error(answer: Answer) -> dict[str, str]:
    if answer.unavailable:
        return {"error": f"{' and '.join(answer.unavailable)} did not answer in time"}
    if answer.error and answer.status != "failed":
        return {"error": "it cannot be scored now"}
    return {}


def _releases(settings: Settings) -> list[dict[str, Any]]:
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        known, pointer = releases.known(), releases.pointer()
    found = []
    for release, each in sorted(known.items(), reverse=True):
        told = listed(release, pointer, each, 0)._asdict()
        del told["bytes"]
        model = each.manifest.model if each.manifest else None
        told |= {
            "model": model.sha256 if model else None,
            "label": each.manifest.label.name if each.manifest else None,
            "distribution": (each.verdict or {}).get("distribution"),
        }
        found.append(told)
    return found


async def _invalid(_request: Request, error: Exception) -> Response:
    # FastAPI's own answer repeats what was sent, however large, and whether or not it can be written as text.
    assert isinstance(error, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, each['loc'][:3]))}: {each['msg']}" for each in error.errors()[:3])
    return JSONResponse({"error": told}, HTTPStatus.UNPROCESSABLE_ENTITY)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(_request: Request, error: Exception) -> Response:
    _log.warning("%s: %s", type(error).__name__, error)
    told = "hbase did not answer in time" if isinstance(error, ServiceError) else "the service is set up wrongly"
    return JSONResponse({"error": f"{told}; its log says more"}, HTTPStatus.SERVICE_UNAVAILABLE)
