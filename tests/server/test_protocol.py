"""Ranges are kept, nothing that changes the answer is ignored, and every field reaches the engine."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from server.engine.request import SamplingParams, ScoringParams
from server.errors import InvalidValueError, UnsupportedFieldError
from server.policy import Ask
from server.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest

MESSAGES = [{"role": "user", "content": "hi"}]


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "hi", **fields})


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"messages": MESSAGES, **fields})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, 2.1, math.nan, math.inf]),
        ("top_p", [0, 1.1, math.nan]),
        ("top_k", [-2, 0.5]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0, math.inf, math.nan]),
        ("presence_penalty", [-2.1, 2.1, math.nan]),
        ("frequency_penalty", [-2.1, 2.1, math.nan]),
        ("max_tokens", [0, -1, 1.5]),
        ("n", [0, 129]),
        ("seed", [2**63]),
        ("stop", ["", ["a", ""], ["x"] * 17, "x" * 257]),
        ("stop_token_ids", [[-1]]),
        ("logit_bias", [{"a": 1}, {"-1": 1}, {"5": 101}, {"5": math.nan}]),
        ("sparsity", [-0.1, 1, math.nan, "most"]),
        ("stream_options", [{"include_usage": True}]),  # without stream
        ("logprobs", [21, -1]),
        ("prompt", [[], ["a", 1], [-1], 5, None, "\ud800", ["\ud800"]]),
    ],
)
def test_values_out_of_range_are_refused(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValidationError):
            completion(**{field: value})


MISTAKES = 100_000


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [{}] * MISTAKES},
        {"prompt": [[{}] * 100] * (MISTAKES // 100)},
        {"prompt": ["a"] * MISTAKES},
        {"stop": [1] * MISTAKES},
        {"stop_token_ids": ["x"] * MISTAKES},
        {"logit_bias": {f"-{i}": 1 for i in range(1, MISTAKES)}},
        {"messages": [{}] * MISTAKES},
        {"messages": [{"role": "user", "content": [{}] * MISTAKES}]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_of_many_mistakes_the_first_is_enough(fields: dict[str, Any]) -> None:
    """A message for each would take gigabytes."""
    make = chat if "messages" in fields else completion
    with pytest.raises(ValidationError) as refused:
        make(**fields)
    assert refused.value.error_count() <= 4  # one for each form that the field may have


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": "\udfff"}]},
        {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"max_tokens": 1, "max_completion_tokens": 2},
    ],
)
def test_chats_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        chat(**fields)


@pytest.mark.parametrize(
    ("kind", "field", "neutral", "asking"),
    [
        (completion, "best_of", 1, 2),
        (completion, "suffix", "", "end"),
        (chat, "tools", [], [{"type": "function"}]),
        (chat, "tool_choice", "none", "required"),
        (chat, "functions", [], [{}]),
        (chat, "function_call", "auto", {"name": "f"}),
        (chat, "modalities", ["text"], ["text", "audio"]),
        (chat, "audio", None, {"voice": "alloy"}),
        (chat, "prediction", None, {"type": "content"}),
        (chat, "web_search_options", None, {}),
        (chat, "reasoning_effort", None, "high"),
        (chat, "response_format", {"type": "text"}, {"type": "json_object"}),
        (chat, "continue_final_message", False, True),
        (completion, "response_format", {"type": "text"}, {"type": "json_schema"}),
        (completion, "prompt_logprobs", None, 1),
        (completion, "min_tokens", 0, 5),
        (completion, "guided_regex", None, "a+"),
    ],
)
def test_a_field_that_is_not_implemented_may_only_ask_for_nothing(
    kind: Any, field: str, neutral: Any, asking: Any
) -> None:
    request: GenerationRequest = kind(**{field: neutral})
    request.check_supported()
    kind(**{field: None}).check_supported()
    with pytest.raises(UnsupportedFieldError, match=field) as caught:
        kind(**{field: asking}).check_supported()
    assert caught.value.param == field


def test_unknown_fields_are_tolerated() -> None:
    completion(user="me", metadata={"a": "b"}, my_own=1).check_supported()


def test_an_accuracy_drop_goes_with_automatic_sparsity_alone() -> None:
    assert completion(sparsity="auto").ask() == Ask(sparsity="auto")
    assert completion(sparsity="auto", max_accuracy_drop=0.02).ask().max_accuracy_drop == 0.02
    for sparsity in (None, 0.2):
        with pytest.raises(InvalidValueError, match="auto") as caught:
            completion(sparsity=sparsity, max_accuracy_drop=0.02).ask()
        assert caught.value.param == "max_accuracy_drop"


def test_only_text_parts_are_taken() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "user", "content": parts, "name": "me"}])
    assert request.template_messages() == [{"role": "user", "content": "a\nb", "name": "me"}]
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    with pytest.raises(UnsupportedFieldError, match="image_url") as caught:
        chat(messages=[*MESSAGES, {"role": "user", "content": image}]).template_messages()
    assert caught.value.param == "messages.1.content.0"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_all_four_kinds_of_prompt(prompt: Any, expected: list[Any]) -> None:
    assert completion(prompt=prompt).prompts() == expected


def test_every_sampling_field_reaches_the_engine() -> None:
    fields = {
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 7,
        "stop": ["x", "y"],
        "stop_token_ids": [3],
        "ignore_eos": True,
        "stop_on_loop": True,
        "logit_bias": {"5": -1.0},
    }
    assert completion(**fields).sampling(max_tokens=9, logprobs=2) == SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=7,
        stop=("x", "y"),
        stop_token_ids=frozenset({3}),
        ignore_eos=True,
        stop_on_loop=True,
        logprobs=2,
        logit_bias={5: -1.0},
    )


def test_nulls_and_absence_are_openais_defaults() -> None:
    plain = completion().sampling(max_tokens=1, logprobs=None)
    nulls = dict.fromkeys(("temperature", "top_p", "top_k", "stop", "logit_bias", "n", "stream", "seed"))
    assert completion(**nulls).sampling(max_tokens=1, logprobs=None) == plain
    assert (plain.temperature, plain.top_p, plain.top_k, plain.stop) == (1.0, 1.0, 0, ())
    assert completion(top_k=-1).sampling(max_tokens=1, logprobs=None).top_k == 0
    assert completion(stop="x").sampling(max_tokens=1, logprobs=None).stop == ("x",)


def test_an_echo_may_be_all_that_is_asked_for() -> None:
    assert completion(max_tokens=0, echo=True).max_tokens == 0
    assert completion(echo=True).scoring is None
    assert completion(logprobs=1).scoring is None
    assert completion(echo=True, logprobs=0).scoring == ScoringParams(start=1, top=0)
    assert completion(echo=True, logprobs=3).scoring == ScoringParams(start=1, top=3)


def test_both_spellings_of_the_answers_limit() -> None:
    assert chat().answer_limit is None
    assert chat(max_tokens=3).answer_limit == chat(max_completion_tokens=3).answer_limit == 3
