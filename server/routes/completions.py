"""POST /v1/completions: text, or token ids, continued."""

from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.answers import CompletionFormat, PromptEcho
from server.errors import RequestError
from server.generation import Generation, Generations
from server.protocol import CompletionRequest
from server.routes.generation import answer_stream, answer_whole, generation_scope
from server.tokenization import PromptTokenizer

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def completions_router(
    generations: Generations, tokenizer: PromptTokenizer, on_error: Callable[[RequestError], None]
) -> APIRouter:
    """The route, over these collaborators. `on_error` is told of errors within a stream."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def create_completion(
        body: CompletionRequest,
        request: Request,
        generation: Annotated[Generation, Depends(generation_scope(generations))],
    ) -> Response:
        body.check_supported()
        decision = generation.choose(body.ask())
        tokenizer.check_ids(list(body.logit_bias or ()), "logit_bias")
        generation.check_places(len(body.prompts()), body.num_choices)
        prompts = [await tokenizer.encode(prompt, "prompt") for prompt in body.prompts()]
        max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        sampling = body.sampling(max_tokens=max_tokens, logprobs=body.logprobs)
        generation.submit(prompts, decision.variant, sampling, body.num_choices, body.scoring)
        echoes = _echoes(body, prompts, tokenizer) if body.echo else ()
        answer = CompletionFormat(generation.request_id, decision, tokenizer, echoes)
        if not body.stream:
            return await answer_whole(request, generation, answer, decision)
        return answer_stream(
            generation, answer, decision, include_usage=body.include_usage, on_error=on_error
        )

    return router


def _echoes(
    body: CompletionRequest, prompts: Sequence[list[int]], tokenizer: PromptTokenizer
) -> list[PromptEcho]:
    """One for each choice, in the order of the answers."""
    echoes = []
    for given, token_ids in zip(body.prompts(), prompts, strict=True):
        text = given if isinstance(given, str) else tokenizer.text(token_ids)
        echoes += [PromptEcho(text, token_ids if body.scoring else ())] * body.num_choices
    return echoes
