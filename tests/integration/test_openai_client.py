"""The official client works against the server as it is, and raises its own exceptions."""

from collections.abc import Iterator

import openai
import pytest

from tests.integration.live import WAIT_SECONDS, Live, Tiny, running

MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture
def ai(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=WAIT_SECONDS
    ) as client:
        yield client


def test_chat_whole_and_streamed(ai: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 20}
    whole = ai.chat.completions.create(**asked, extra_body={"sparsity": 0.2}, logprobs=True, top_logprobs=1)
    assert whole.model == "tiny:s20"
    assert whole.model_extra["secateur"]["sparsity"] == 0.2
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content)
    told = list(
        ai.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}, extra_body={"sparsity": 0.2}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in told if chunk.choices)
    assert text == whole.choices[0].message.content
    assert told[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": told[-1].usage.prompt_tokens_details}
    )


def test_chat_stream_helper_puts_the_answer_together(ai: openai.OpenAI) -> None:
    asked = {"model": "tiny:s10", "messages": MESSAGES, "temperature": 0, "max_tokens": 20}
    text = ai.chat.completions.create(**asked).choices[0].message.content
    asked["stop"] = [text[8:10]]  # the helper takes an answer at its limit for an error
    whole = ai.chat.completions.create(**asked)
    with ai.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason


def test_completions_whole_and_streamed(ai: openai.OpenAI) -> None:
    asked = {"model": "tiny:s10", "prompt": ["abc", "d"], "temperature": 0, "max_tokens": 12}
    whole = ai.completions.create(**asked, n=2, logprobs=2)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert all(len(choice.logprobs.tokens) <= 12 for choice in whole.choices)
    texts = ["", ""]
    for chunk in ai.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [whole.choices[0].text, whole.choices[2].text]


def test_models_are_listed_and_found(ai: openai.OpenAI) -> None:
    names = [model.id for model in ai.models.list()]
    assert names == ["tiny", "tiny:s0", "tiny:s10", "tiny:s20", "tiny:s35"]
    assert ai.models.retrieve("tiny:s20").id == "tiny:s20"


def test_raw_answers_carry_the_variant_in_a_header(ai: openai.OpenAI) -> None:
    raw = ai.completions.with_raw_response.create(model="tiny", prompt="a", extra_body={"sparsity": 0.1})
    assert raw.headers["x-secateur-variant"] == "tiny:s10"
    assert raw.parse().model == "tiny:s10"


def test_errors_are_the_clients_own_exceptions(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"0, 0\.1, 0\.2, 0\.35") as caught:
        ai.completions.create(model="tiny", prompt="a", extra_body={"sparsity": 0.11})
    assert (caught.value.code, caught.value.param) == ("sparsity_not_served", "sparsity")
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        ai.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.UnprocessableEntityError):
        ai.completions.create(model="tiny", prompt="a", temperature=9)
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="tools"):
        ai.chat.completions.create(model="tiny", messages=MESSAGES, tools=[tool])


def test_keys_are_those_of_the_client(tiny: Tiny) -> None:
    with running(tiny, api_keys=("sesame",)) as live:
        options = {"base_url": f"{live.url}/v1", "max_retries": 0}
        with openai.OpenAI(**options, api_key="sesame") as client:
            assert client.completions.create(model="tiny", prompt="a").choices
        with openai.OpenAI(**options, api_key="guess") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
