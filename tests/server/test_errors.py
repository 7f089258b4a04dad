"""Every error class becomes its own envelope; what nobody foresaw tells nothing of the inside."""

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from eval.probing.verdicts import Verdict, VerdictChange
from pruning.errors import ModelError
from server.engine.errors import EngineDeadError, PromptTooLongError, QueueFullError
from server.errors import DegradedVariantError, RequestError, error_codes, request_error
from tests.server.evidence import evidence

DOCUMENTED = {
    (400, "invalid_value"),
    (400, "unsupported_field"),
    (400, "invalid_json"),
    (400, "sparsity_not_served"),
    (400, "unsafe_sparsity"),
    (400, "context_length_exceeded"),
    (401, "invalid_api_key"),
    (403, "permission_denied"),
    (404, "model_not_found"),
    (404, "unknown_url"),
    (405, "method_not_allowed"),
    (409, "variant_conflict"),
    (409, "variant_degraded"),
    (409, "probe_conflict"),
    (413, "body_too_large"),
    (422, "schema_violation"),
    (429, "queue_full"),
    (500, "internal_error"),
    (503, "engine_down"),
    (503, "shutting_down"),
}


def test_every_class_has_its_status_and_code() -> None:
    assert {(int(cls.status), cls.code) for cls in RequestError.__subclasses__()} == DOCUMENTED
    assert set(error_codes()) == {code for _, code in DOCUMENTED}


def test_of_many_violations_the_first_are_named() -> None:
    errors = [{"type": "missing", "loc": ("body", f"f{i}"), "msg": "Field required"} for i in range(1_000)]
    told = request_error(RequestValidationError(errors, body={}))
    assert told.message.startswith("f0: Field required; f1: ")
    assert told.message.endswith("f9: Field required; and 990 more")
    assert (told.param, told.code) == ("f0", "schema_violation")


PLAIN = [kind for kind in RequestError.__subclasses__() if kind is not DegradedVariantError]


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)
def test_the_envelope_has_openais_four_fields(kind: type[RequestError]) -> None:
    error = kind("limit, value, way out")
    assert error.envelope() == {
        "error": {"message": "limit, value, way out", "type": kind.type, "param": None, "code": kind.code}
    }
    assert ("Retry-After" in error.headers) == (kind.code in {"queue_full", "shutting_down"})


def test_a_degraded_variant_is_refused_with_the_evidence() -> None:
    grounds = evidence(Verdict.DEGRADED, drop=0.5)
    changes = [VerdictChange(at, Verdict.SAFE, Verdict.DEGRADED, grounds) for at in (1.0, 1010.0)]
    error = DegradedVariantError("limit, value, way out", evidence(Verdict.DEGRADED, updated_at=0.0), changes)
    told = error.envelope()["error"]
    assert (told["message"], told["code"]) == ("limit, value, way out", "variant_degraded")
    assert told["evidence"]["verdict"] == "degraded"
    assert told["evidence"]["traps"] == {"missing_stop": 1}
    assert told["evidence"]["age_seconds"] > 1e9  # since the epoch
    (change,) = told["changes"]  # the last one says why
    assert (change["at"], change["before"], change["after"]) == (1010.0, "safe", "degraded")
    assert (change["evidence"]["drop"], change["evidence"]["age_seconds"]) == (0.5, 10.0)


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (QueueFullError("full"), 429, "queue_full"),
        (PromptTooLongError("long"), 400, "context_length_exceeded"),
        (EngineDeadError("dead"), 503, "engine_down"),
        (HTTPException(404), 404, "unknown_url"),
        (HTTPException(405, headers={"Allow": "GET"}), 405, "method_not_allowed"),
        (HTTPException(400, "unreadable"), 400, "invalid_json"),
        (ModelError("/secret/path"), 500, "internal_error"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
    ],
)
def test_what_others_raise_is_translated(raised: Exception, status: int, code: str) -> None:
    error = request_error(raised)
    assert (error.status, error.code) == (status, code)
    assert "secret" not in error.message


def test_a_violation_is_named_by_its_path_without_branches_of_unions() -> None:
    body = {"messages": [{"role": "user", "content": 5}], "sparsity": "x"}
    errors = [
        {"type": "string_type", "loc": ("body", "messages", 0, "content", "str"), "msg": "not a string"},
        {"type": "list_type", "loc": ("body", "messages", 0, "content", "list[Part]"), "msg": "no list"},
        {"type": "float_parsing", "loc": ("body", "sparsity", "float"), "msg": "no number"},
        {"type": "missing", "loc": ("body", "prompt"), "msg": "Field required"},
    ]
    error = request_error(RequestValidationError(errors, body=body))
    assert error.param == "messages.0.content"
    assert error.message == (
        "messages.0.content: not a string; messages.0.content: no list; sparsity: no number; "
        "prompt: Field required"
    )
