"""Errors of the server in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quatrain.core.errors import InputError, QuatrainError

INTERNAL = "The server failed on this request; its log has the details. This is a bug of the server."

TYPES = {
    **{401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error"},
    **{413: "invalid_request_error", 429: "rate_limit_error", 503: "server_error", 504: "timeout_error"},
}
"""Types of errors by status; other statuses are invalid_request_error below 500, and server_error above."""

PARAMETERS = {
    **{"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "json_schema": "response_format"},
    "num_return_sequences": "n",
}
"""Fields of SamplingParams whose parameter of the protocol has another name."""


class ApiError(Exception):
    """An error that the client gets. `headers` are further headers of the response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        self.type = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def inference_body(self) -> dict[str, Any]:
        """The error in the form of Hugging Face's inference API."""
        kind = {429: "overloaded", 503: "overloaded"}.get(
            self.status, "validation" if self.status < 500 else "generation"
        )
        return {"error": self.message, "error_type": kind}

    def anthropic_body(self) -> dict[str, Any]:
        """The error in Anthropic's form."""
        kind = {"server_error": "api_error"}.get(self.type, self.type)
        kind = "overloaded_error" if self.status == 503 else kind
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def api_error(error: BaseException) -> ApiError:
    """Any exception as an error for the client; the message of a bug is not shown."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return ApiError(400, str(error), param=_parameter(error), code="invalid_value")
    if isinstance(error, QuatrainError):
        return ApiError(500, str(error))
    if isinstance(error, MemoryError):
        return ApiError(503, "There is not enough memory for this request.", headers={"Retry-After": "10"})
    return ApiError(500, INTERNAL, code="internal_error")


def busy(message: str, seconds: int = 1, status: int = 429) -> ApiError:
    """The error of a server that has no room; the client may try again after some seconds."""
    return ApiError(status, message, code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})


def _parameter(error: InputError) -> str | None:
    """The parameter that an error is about: the name before the colon of its first problem."""
    first = error.problems[0] if error.problems else error.message
    name = first.partition(":")[0]
    return PARAMETERS.get(name, name) if name.isidentifier() else None
