"""Errors as clients see them: a status and `{error, expected, found, fix}`, whatever went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException as StarletteError
from starlette.responses import Response

from gallery.console import log
from gallery.errors import InputError, TwinhashError

NAMES = {404: "not_found", 405: "method_not_allowed"}


class ServiceError(HTTPException):
    """An error with its status and short name; `retry_s` becomes Retry-After."""

    def __init__(self, status: int, error: str, texts: Sequence[str], retry_s: int | None = None) -> None:
        super().__init__(status, headers={"Retry-After": str(retry_s)} if retry_s else None)
        self.answer = dict(zip(("error", "expected", "found", "fix"), (error, *texts), strict=True))

    def response(self) -> Response:
        """Return what the client is sent; nothing that it sent comes back but as printable ASCII."""
        return answer({key: text[:1000] for key, text in self.answer.items()}, self.status_code, self.headers)


def answer(content: Any, status: int = 200, headers: Any = None) -> Response:
    """Return JSON; columns of any type of Arrow's can be in it."""
    body = to_json(content, inf_nan_mode="null", bytes_mode="base64", serialize_unknown=True)
    return Response(body, status, headers, "application/json")


def bad_request(expected: str, found: object, status: int = 400, error: str = "bad_request") -> ServiceError:
    """Build the error for what a client can change in its request."""
    return ServiceError(status, error, (expected, ascii(found)[:200], "Change the request; see /docs."))


def _known(_request: Request, error: Any) -> Response:
    return error.response() if isinstance(error, ServiceError) else _plain(error)


def _plain(error: StarletteError) -> Response:
    texts = f"a request of this service (status {error.status_code})", str(error.detail), "See /docs."
    answer = ServiceError(error.status_code, NAMES.get(error.status_code, "bad_request"), texts)
    answer.headers = error.headers
    return answer.response()


def _invalid(_request: Request, error: Any) -> Response:
    """Say what is wrong with the first field that is; the status is 400 for filters, else 422."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    field = ".".join(where)[:100]
    name = {"codes": "bad_code", "where": "bad_filter"}.get(where[0] if where else "", "bad_request")
    found = first.get("input")
    found = f"{type(found).__name__} of {len(found):,}" if isinstance(found, list | dict | str) else ascii(found)
    return bad_request(
        ascii(f"{field}: {first['msg']}")[1:-1], found, 400 if name == "bad_filter" else 422, name
    ).response()


def _typed(_request: Request, error: Any) -> Response:
    texts = error.expected, error.found, error.fix
    return ServiceError(422 if isinstance(error, InputError) else 503, "bad_request", texts).response()


def _crash(request: Request, error: Exception) -> Response:
    log.error("  crash in %s: %r", request.url.path, error)
    texts = "an answer", "a fault of this service", "Report it with the server's log."
    return ServiceError(500, "crash", texts).response()


HANDLERS: dict[Any, Any] = {
    StarletteError: _known, RequestValidationError: _invalid, ValidationError: _invalid, TwinhashError: _typed,
    Exception: _crash,
}  # fmt: skip
