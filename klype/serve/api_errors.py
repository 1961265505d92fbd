"""Errors in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``."""

import json
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from klype.errors import KlypeError, UsageError

# by status; other 4xx are "invalid_request_error", 5xx "server_error"
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
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
    """An error response. ``retry_after``: in seconds, 0 for none."""

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code or CODES.get(status)
        self.headers = {"retry-after": str(retry_after)} if retry_after else {}

    def body(self) -> bytes:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, "application/json")


def as_api_error(error: BaseException) -> ApiError:
    """The error as clients are told of it; bugs only as "failed to answer"."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, KlypeError):
        return ApiError(str(error), 400 if isinstance(error, UsageError) else 500)
    return ApiError("The server failed to answer. Its log says why.", 500)


async def api_error_response(_: Request, error: Exception) -> Response:
    return as_api_error(error).response()


async def framework_error_response(request: Request, error: HTTPException) -> Response:
    """The response to unknown paths and methods, and to unreadable bodies."""
    method, path = request.method[:20], f"{request.url.path[:200]!a}"
    said = {404: f"There is nothing at {method} {path}.", 405: f"{method} is not allowed at {path}."}
    response = ApiError(said.get(error.status_code, str(error.detail)[:300]), error.status_code).response()
    response.headers.update(error.headers or {})
    return response


async def validation_error_response(_: Request, error: RequestValidationError) -> Response:
    """The first of pydantic's errors as a sentence, with the name of its parameter."""
    first = error.errors()[0]
    place = list(first["loc"])
    place = place[1:] if place[:1] == ["body"] else place
    names = [part for part in place if isinstance(part, int) or str(part).isidentifier()]
    names = [part for part in names if part not in ("str", "int")]  # pydantic's names of a union's branches
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names).lstrip(".")[:200]
    message = str(first["msg"])[:300].removeprefix("Value error, ").rstrip(".")
    message = f"{param}: {message}." if param else f"{message}."
    if first["type"] == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {str(place[-1])[:100]!a}."
    elif not place:
        message, param = "The body must be a JSON object, sent as Content-Type: application/json.", ""
    return ApiError(message, 400, param or None).response()


# FastAPI's ``exception_handlers``
HANDLERS: dict[int | type[Exception], Any] = {
    ApiError: api_error_response,
    KlypeError: api_error_response,
    HTTPException: framework_error_response,
    RequestValidationError: validation_error_response,
    Exception: api_error_response,
}
