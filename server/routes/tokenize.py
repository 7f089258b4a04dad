"""POST /tokenize: the tokens of a prompt or a chat, as the generation routes would see them."""

from typing import Any

from fastapi import APIRouter

from server.protocol import TokenizeRequest
from server.tokenization import PromptTokenizer


def tokenize_router(tokenizer: PromptTokenizer, max_model_len: int) -> APIRouter:
    """The route, over these collaborators."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        if body.messages is not None:
            tokens = await tokenizer.encode_chat(body.template_messages(), body.chat_template_kwargs)
        else:
            assert body.prompt is not None, "the schema sees to it"
            tokens = await tokenizer.encode(body.prompt, "prompt", add_special_tokens=body.add_special_tokens)
        return {"tokens": tokens, "count": len(tokens), "max_model_len": max_model_len}

    return router
