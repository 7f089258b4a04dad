"""What a client is told when a request is refused: one tree, one envelope.

    RequestError                    400 invalid_value unless a subclass says otherwise
    ├── InvalidValueError           400 invalid_value
    ├── UnsupportedFieldError       400 unsupported_field
    ├── InvalidJsonError            400 invalid_json
    ├── SparsityNotServedError      400 sparsity_not_served
    ├── UnsafeSparsityError         400 unsafe_sparsity
    ├── ContextLengthError          400 context_length_exceeded
    ├── AuthenticationError         401 invalid_api_key
    ├── PermissionDeniedError       403 permission_denied
    ├── ModelNotFoundError          404 model_not_found
    ├── UnknownUrlError             404 unknown_url
    ├── MethodNotAllowedError       405 method_not_allowed
    ├── VariantConflictError        409 variant_conflict
    ├── DegradedVariantError        409 variant_degraded
    ├── ProbeConflictError          409 probe_conflict
    ├── BodyTooLargeError           413 body_too_large
    ├── SchemaError                 422 schema_violation
    ├── BusyError                   429 queue_full
    ├── InternalError               500 internal_error
    ├── EngineDownError             503 engine_down
    └── ShuttingDownError           503 shutting_down

Knows the errors of the engine and of FastAPI, and which of the above each becomes. Sends nothing.
"""

import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from eval.probing.verdicts import Evidence, VerdictChange
from pruning.errors import DeltaError, ForeignDeltaError, SecateurError
from server.engine.errors import EngineDeadError, PromptTooLongError, QueueFullError
from server.judging.evidence import change_object, evidence_object

MAX_VIOLATIONS = 10  # of a body that are named


class RequestError(SecateurError):
    """A request that is not answered.

    Args:
        message: the limit, the value and the way out, for a person.
        param: the field at fault, dotted, where there is one.
        headers: to send besides the error's own, e.g. Allow.
    """

    status: ClassVar[int] = HTTPStatus.BAD_REQUEST
    type: ClassVar[str] = "invalid_request_error"
    code: ClassVar[str] = "invalid_value"
    retry_after_seconds: ClassVar[int | None] = None

    def __init__(
        self, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        if self.retry_after_seconds is not None:
            self.headers["Retry-After"] = str(self.retry_after_seconds)

    def envelope(self) -> dict[str, dict[str, Any]]:
        """The body of the answer, as OpenAI's clients expect it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidValueError(RequestError):
    """A field is of the right shape but its value makes no sense here."""


class UnsupportedFieldError(RequestError):
    """A field of OpenAI's API that would change the answer, and that is not implemented."""

    code = "unsupported_field"


class InvalidJsonError(RequestError):
    """The body cannot be parsed."""

    code = "invalid_json"


class SparsityNotServedError(RequestError):
    """No variant has the sparsity asked for."""

    code = "sparsity_not_served"


class UnsafeSparsityError(RequestError):
    """The variant lies beyond the safe margin and nobody has allowed that."""

    code = "unsafe_sparsity"


class ContextLengthError(RequestError):
    """Prompt, or prompt and answer, do not fit the context."""

    code = "context_length_exceeded"


class AuthenticationError(RequestError):
    """No key, or a wrong one."""

    status = HTTPStatus.UNAUTHORIZED
    type = "authentication_error"
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class PermissionDeniedError(RequestError):
    """The caller may not do this."""

    status = HTTPStatus.FORBIDDEN
    type = "permission_error"
    code = "permission_denied"


class ModelNotFoundError(RequestError):
    """Neither a model nor a variant goes by this name."""

    status = HTTPStatus.NOT_FOUND
    code = "model_not_found"


class UnknownUrlError(RequestError):
    """Nothing lives at this path."""

    status = HTTPStatus.NOT_FOUND
    code = "unknown_url"


class MethodNotAllowedError(RequestError):
    """The path exists, for other methods."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"


class VariantConflictError(RequestError):
    """The state of the variants stands against what was asked for."""

    status = HTTPStatus.CONFLICT
    type = "conflict_error"
    code = "variant_conflict"


class DegradedVariantError(RequestError):
    """Evidence speaks against the variant, and the caller does not insist. The envelope holds it."""

    status = HTTPStatus.CONFLICT
    type = "conflict_error"
    code = "variant_degraded"

    def __init__(self, message: str, evidence: Evidence, changes: Sequence[VerdictChange]) -> None:
        super().__init__(message, param="sparsity")
        self.evidence = evidence
        self.changes = changes

    def envelope(self) -> dict[str, dict[str, Any]]:
        error = super().envelope()["error"]
        evidence = evidence_object(self.evidence, time.time())
        # A demotion begins the evidence anew; what it rests on is in the change.
        changes = [change_object(change) for change in self.changes[-1:]]
        return {"error": {**error, "evidence": evidence, "changes": changes}}


class ProbeConflictError(RequestError):
    """Probes cannot be run now, or not here at all."""

    status = HTTPStatus.CONFLICT
    type = "conflict_error"
    code = "probe_conflict"


class BodyTooLargeError(RequestError):
    """The body is larger than the server reads."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "body_too_large"


class SchemaError(RequestError):
    """A field is missing, of the wrong type or out of its range."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "schema_violation"


class BusyError(RequestError):
    """As many requests wait as may."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "rate_limit_error"
    code = "queue_full"
    retry_after_seconds = 1


class InternalError(RequestError):
    """A fault of the server's own."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    type = "server_error"
    code = "internal_error"


class EngineDownError(RequestError):
    """The engine has died; this process generates nothing any more."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "server_error"
    code = "engine_down"


class ShuttingDownError(RequestError):
    """The process is about to end."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "server_error"
    code = "shutting_down"
    retry_after_seconds = 5


def error_codes() -> tuple[str, ...]:
    """The `code` of every class of the tree, sorted: the closed set that metrics may label with."""
    return tuple(sorted({cls.code for cls in RequestError.__subclasses__()}))


def request_error(error: Exception) -> RequestError:
    """What a client is told of `error`. One that nobody foresaw becomes an InternalError without details."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, HTTPException) and isinstance(error.__cause__, RequestError):
        return error.__cause__  # FastAPI wraps whatever happens while it reads a body
    if isinstance(error, QueueFullError):
        return BusyError(str(error))
    if isinstance(error, PromptTooLongError):
        return ContextLengthError(str(error), param="max_tokens")
    if isinstance(error, EngineDeadError):
        return EngineDownError(str(error))
    if isinstance(error, ForeignDeltaError):
        return VariantConflictError(str(error), param="delta")
    if isinstance(error, DeltaError):
        return InvalidValueError(str(error), param="delta")
    if isinstance(error, RequestValidationError):
        return _from_validation(error.errors(), error.body)
    if isinstance(error, HTTPException):
        return _from_http(error)
    return InternalError("the server failed on this request; its log has the details under the request id")


def _from_http(error: HTTPException) -> RequestError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return UnknownUrlError("there is nothing at this path; docs/reference/http.md lists the routes")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        return MethodNotAllowedError(f"this path takes {allowed}", headers=error.headers)
    if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InvalidJsonError(error.detail)
    return InternalError(error.detail)


def _from_validation(errors: Sequence[Any], body: object) -> RequestError:
    """Names the violations, the first ones of many; `param` is the first one's."""
    if any(problem["type"] == "json_invalid" for problem in errors):
        reason = errors[0].get("ctx", {}).get("error", errors[0]["msg"])
        return InvalidJsonError(f"the body is not JSON: {reason}")
    if any(problem["loc"] == ("body",) and not isinstance(body, dict) for problem in errors):
        return SchemaError("the body must be a JSON object, sent with content-type: application/json")
    params = [_param(problem, body) for problem in errors[:MAX_VIOLATIONS]]
    messages = [str(problem["msg"]).removeprefix("Value error, ") for problem in errors[:MAX_VIOLATIONS]]
    told = [f"{param}: {msg}" if param else msg for param, msg in zip(params, messages, strict=True)]
    if len(errors) > MAX_VIOLATIONS:
        told.append(f"and {len(errors) - MAX_VIOLATIONS:,} more")
    return SchemaError("; ".join(dict.fromkeys(told)), param=params[0] or None)


def _param(problem: Mapping[str, Any], body: object) -> str:
    """The dotted path of a violation, without the names that pydantic gives the branches of a union."""
    path: list[str] = []
    at = body
    for part in problem["loc"][1:]:
        if isinstance(at, dict) and (part in at or problem["type"] == "missing"):
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        else:
            continue
        path.append(str(part))
    return ".".join(path)
