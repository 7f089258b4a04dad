"""POST /v1/chat/completions: a chat answered through the model's own template."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.answers import ChatFormat
from server.errors import ContextLengthError, RequestError
from server.generation import Generation, Generations
from server.protocol import ChatCompletionRequest
from server.routes.generation import answer_stream, answer_whole, generation_scope
from server.tokenization import PromptTokenizer


def chat_router(
    generations: Generations,
    tokenizer: PromptTokenizer,
    max_model_len: int,
    on_error: Callable[[RequestError], None],
) -> APIRouter:
    """The route, over these collaborators. `on_error` is told of errors within a stream."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create_chat_completion(
        body: ChatCompletionRequest,
        request: Request,
        generation: Annotated[Generation, Depends(generation_scope(generations))],
    ) -> Response:
        body.check_supported()
        decision = generation.choose(body.ask())
        tokenizer.check_ids(list(body.logit_bias or ()), "logit_bias")
        generation.check_places(1, body.num_choices)
        prompt = await tokenizer.encode_chat(body.template_messages(), body.chat_template_kwargs)
        left = max_model_len - len(prompt)
        if left < 1:
            raise ContextLengthError(
                f"the messages have {len(prompt):,} tokens and leave no room for an answer; both together "
                f"may be {max_model_len:,} (max_model_len): shorten the messages",
                param="messages",
            )
        max_tokens = left if body.answer_limit is None else body.answer_limit
        sampling = body.sampling(max_tokens=max_tokens, logprobs=body.num_logprobs)
        generation.submit([prompt], decision.variant, sampling, body.num_choices)
        answer = ChatFormat(generation.request_id, decision, tokenizer)
        if not body.stream:
            return await answer_whole(request, generation, answer, decision)
        return answer_stream(
            generation, answer, decision, include_usage=body.include_usage, on_error=on_error
        )

    return router
