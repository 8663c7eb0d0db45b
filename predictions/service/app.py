"""The routes of the service: lookups by the client, the releases in HBase, metrics, health and the page."""

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

logger = logging.getLogger(__name__)

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
    """A path of any characters; Starlette's own stops at a line feed, so an ID with one would find no route."""

    regex = r"[\s\S]*"


register_url_convertor("record_id", RecordIdConvertor())

_LARGE = f"The request has more than {MAX_BODY_BYTES:,} bytes."
_ERROR: dict[str, Any] = {"model": ErrorOut}
_BAD: dict[int | str, dict[str, Any]] = {400: _ERROR, 401: _ERROR, 422: _ERROR, 503: _ERROR}


def make_app(settings: Settings, client: Client, token: str | None, hosts: Collection[str]) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        settings: the settings, for HBase and the name of the predictions.
        client: the client that looks records up.
        token: required in every request except those for the page and `/healthz`; None for no token.
        hosts: the host names that a request may use if there is no token.
    """
    app = FastAPI(
        title=f"Predictions: {settings.name}",
        description="Records of a database and their predictions.",
        version="1",
        docs_url=None,  # this page would load scripts from another site
        redoc_url=None,
        redirect_slashes=False,  # `/records/` is the lookup of an empty ID
        max_body_size=MAX_BODY_BYTES,
    )
    metrics = Metrics()
    app.include_router(_lookups(client, metrics), dependencies=[Depends(_bearer(token))], responses=_BAD)
    app.include_router(_operations(settings, metrics), dependencies=[Depends(_bearer(token))], responses=_BAD)
    app.include_router(_public(client))
    if token is None:
        # Without a token, the records are for this machine only. A page of another site could read them by making its
        # own name resolve to this address (DNS rebinding).
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.middleware("http")(_middleware(metrics))  # added last, so it also sees what the one above refuses
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(StarletteHTTPException)(_on_http_error)
    app.exception_handler(PredictionsError)(_on_predictions_error)
    return app


def _middleware(metrics: Metrics) -> Callable[[Request, RequestResponseEndpoint], Awaitable[Response]]:
    """Return the middleware that sets the headers of each response and measures its time."""

    async def middleware(request: Request, call_next: RequestResponseEndpoint) -> Response:
        started, code = time.perf_counter(), HTTPStatus.INTERNAL_SERVER_ERROR.value
        try:
            response = await call_next(request)
            response.headers.update(HEADERS)
            code = response.status_code
            return response
        finally:
            metrics.observe(getattr(request.scope.get("route"), "path", "other"), code, time.perf_counter() - started)

    return middleware


def _lookups(client: Client, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    # The ID is taken from the path: the parameter has replacement characters for bytes that are not UTF-8.
    @router.get(RECORDS + "{record_id:record_id}", response_model=AnswerOut)
    def record(record_id: str, request: Request) -> Response:
        """Look up a record and its prediction. HTTP clients resolve the IDs `.` and `..`; POST /records takes them."""
        return JSONResponse(_public_answers(metrics.count(client.get_many([_id(request)])))[0])

    @router.post("/records", response_model=AnswersOut, responses={413: {"description": _LARGE}})
    def records(lookup: Lookup) -> Response:
        """Look up records and their predictions; the answers have the order of the IDs."""
        return JSONResponse({"answers": _public_answers(metrics.count(client.get_many(lookup.ids)))})

    return router


def _operations(settings: Settings, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/releases", response_model=ReleasesOut)
    def releases() -> Response:
        """List the releases in HBase, newest first, with the distributions of their predictions."""
        return JSONResponse({"name": settings.name, "releases": _releases(settings)})

    @router.get("/metrics", response_class=Response, responses={200: {"content": {metrics.media_type: {}}}})
    def metrics_text() -> Response:
        """Return the number of answers by status and the time of requests, for Prometheus."""
        return Response(metrics.text(), media_type=metrics.media_type)

    return router


def _public(client: Client) -> APIRouter:
    """Return the routes that need no token: the health of the service, and the page, which contains no data."""
    router = APIRouter()

    @router.get("/healthz", response_model=HealthOut, responses={503: {"model": HealthOut | ErrorOut}})
    def health() -> Response:
        """Check whether HBase and the database answer."""
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
    """Return a dependency that checks the token; it also puts the token into the OpenAPI document."""
    if token is None:
        return lambda: None
    expected = token.encode()

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), expected):
            message = f"send the token of the service (its {TOKEN_VARIABLE}) as a header: Authorization: Bearer TOKEN"
            raise HTTPException(HTTPStatus.UNAUTHORIZED, message, {"WWW-Authenticate": "Bearer"})

    return check


def _id(request: Request) -> str:
    """Return the record ID in a path, byte for byte."""
    before, prefix, encoded_id = request.scope["raw_path"].partition(RECORDS.encode())
    if before or not prefix:  # `/%72ecords/…`
        raise HTTPException(HTTPStatus.NOT_FOUND)
    try:
        return unquote_to_bytes(encoded_id).decode()
    except UnicodeDecodeError:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the record ID must be UTF-8, percent-encoded") from None


def _public_answers(answers: list[Answer]) -> list[dict[str, Any]]:
    """Return answers for JSON; their errors, with addresses and paths for the operator only, go to the log."""
    for error in {answer.error: None for answer in answers if answer.error and answer.status != "failed"}:
        logger.warning("incomplete answer: %s", error)
    return [answer.as_json() | _public_error(answer) for answer in answers]


def _public_error(answer: Answer) -> dict[str, str]:
    if answer.unavailable:
        return {"error": f"{' and '.join(answer.unavailable)} did not answer in time"}
    if answer.error and answer.status != "failed":
        return {"error": "the record cannot be scored now"}
    return {}


def _releases(settings: Settings) -> list[dict[str, Any]]:
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        known, pointer = releases.known(), releases.pointer()
    rows = []
    for release, entry in sorted(known.items(), reverse=True):
        row = listed(release, pointer, entry, 0)._asdict()
        del row["bytes"]
        row |= {"model": None, "label": None, "distribution": None, "labels": None}
        predicted, verdict = entry.manifest.predicted if entry.manifest else [], entry.verdict or {}
        distributions = verdict.get("distributions", {None: verdict.get("distribution")})
        labels = [
            {
                "model": each.model.sha256,
                "label": each.label.name,
                "distribution": distributions.get(each.name),
            }
            for each in predicted
        ]
        row |= labels[0] if len(labels) == 1 else {"labels": labels or None}
        rows.append(row)
    return rows


async def _on_invalid_request(_request: Request, error: Exception) -> Response:
    # FastAPI's own answer repeats the input, which may be large, and may not be encodable as text.
    assert isinstance(error, RequestValidationError)
    message = "; ".join(f"{'.'.join(map(str, item['loc'][:3]))}: {item['msg']}" for item in error.errors()[:3])
    return JSONResponse({"error": message}, HTTPStatus.UNPROCESSABLE_ENTITY)


async def _on_http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _on_predictions_error(_request: Request, error: Exception) -> Response:
    logger.warning("%s: %s", type(error).__name__, error)
    problem = "hbase did not answer in time" if isinstance(error, ServiceError) else "the service is misconfigured"
    return JSONResponse({"error": f"{problem}; see the log of the service"}, HTTPStatus.SERVICE_UNAVAILABLE)
