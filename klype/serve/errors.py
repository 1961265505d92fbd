"""Every error in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from klype.errors import KlypeError, UsageError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""By status; other 4xx are "invalid_request_error", 5xx "server_error"."""
CODES = {
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    431: "headers_too_large",
}


class ApiError(Exception):
    """A request that is refused, with what the client is told."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers: dict[str, str] = {}


class BusyError(ApiError):
    """Too much is waiting already."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("The server is busy: its queue is full. Try again later.", 429)
        self.headers = {"Retry-After": str(retry_after)}


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> bytes:
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}
    return json.dumps({"error": error}).encode()


def error_response(error: ApiError) -> Response:
    body = error_body(error.message, error.status, error.param, error.code)
    return Response(body, error.status, error.headers, "application/json")


def as_api_error(error: BaseException) -> ApiError:
    """What went wrong with a model, for its client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(str(error), 400)
    if isinstance(error, KlypeError):
        return ApiError(str(error), 500)
    return ApiError("The server failed to answer. Its log says why.", 500)


def handle_errors(app: FastAPI) -> None:
    """Validation, unknown paths and methods, and the server's own failures, all in one shape."""

    async def refused(request: Request, error: Exception) -> Response:
        return error_response(as_api_error(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = error_response(ApiError(_http_message(error, request), error.status_code))
        response.headers.update(error.headers or {})
        return response

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        message, param = describe(error.errors()[0])
        return error_response(ApiError(message, 400, param))

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(KlypeError, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, refused)


def describe(error: Mapping[str, Any]) -> tuple[str, str | None]:
    """One of pydantic's errors as a sentence, and the parameter that it is about."""
    place = list(error["loc"])
    place = place[1:] if place[:1] == ["body"] else place
    names = [part for part in place if isinstance(part, int) or str(part).isidentifier()]
    names = [part for part in names if part not in ("str", "int")]  # pydantic's names of a union's branches
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names).lstrip(".")[:200]
    if error["type"] == "extra_forbidden":
        return f"Unrecognized request argument supplied: {str(place[-1])[:100]!a}.", param or None
    if not place:
        return "The body must be a JSON object, sent as Content-Type: application/json.", None
    message = str(error["msg"])[:300].removeprefix("Value error, ").rstrip(".")
    return (f"{param}: {message}." if param else f"{message}."), param or None


def _http_message(error: HTTPException, request: Request) -> str:
    if error.status_code == 404:
        return f"There is nothing at {request.method[:20]} {request.url.path[:200]!a}."
    if error.status_code == 405:
        return f"{request.method[:20]} is not allowed at {request.url.path[:200]!a}."
    return str(error.detail)[:300]
