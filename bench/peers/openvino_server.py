"""OpenVINO GenAI behind the part of OpenAI's completions that the benchmark uses: greedy text, streamed.

Runs in the peer's own environment, so it imports nothing of this project. Continuous batching with prompts
split into chunks, computation and KV in bfloat16, no prefix cache. Tokens become text one by one, off the
pipeline's thread.
"""

import argparse
import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


@dataclass
class Answer:
    """A request on its way to the pipeline's thread, and its tokens on their way back; None ends them."""

    prompt_ids: list[int]
    config: openvino_genai.GenerationConfig
    loop: asyncio.AbstractEventLoop
    tokens: "asyncio.Queue[list[int] | None]" = field(default_factory=asyncio.Queue)

    def send(self, tokens: list[int] | None) -> None:
        self.loop.call_soon_threadsafe(self.tokens.put_nowait, tokens)


class Pipeline:
    """Runs the pipeline's steps on a thread of its own, which sleeps while there is nothing to do."""

    def __init__(self, directory: Path, arguments: argparse.Namespace) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = arguments.kv_cache_gib
        scheduler.max_num_seqs = arguments.max_num_seqs
        scheduler.max_num_batched_tokens = arguments.max_num_batched_tokens
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False
        properties = {
            "INFERENCE_PRECISION_HINT": arguments.precision,
            "KV_CACHE_PRECISION": arguments.precision,
            "INFERENCE_NUM_THREADS": arguments.threads,
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(directory), scheduler, "CPU", properties
        )
        self._new: queue.Queue[Answer] = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, answer: Answer) -> None:
        self._new.put(answer)

    def _run(self) -> None:
        running: list[tuple[Any, Answer]] = []
        count = 0
        while True:
            while not running or not self._new.empty():
                answer = self._new.get()
                ids = openvino.Tensor(np.array([answer.prompt_ids], dtype=np.int64))
                running.append((self._pipeline.add_request(count, ids, answer.config), answer))
                count += 1
            self._pipeline.step()
            going_on = []
            for handle, answer in running:
                ended = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
                while handle.can_read():
                    [output] = handle.read().values()
                    answer.send(list(output.generated_ids))
                if ended:
                    answer.send(None)
                else:
                    going_on.append((handle, answer))
            running = going_on


def build_app(pipeline: Pipeline, tokenizer: Tokenizer, eos_token_id: int) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/completions")
    async def completions(body: dict[str, Any]) -> StreamingResponse:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = body["max_tokens"]
        config.ignore_eos = body.get("ignore_eos", False)
        config.eos_token_id = eos_token_id
        config.do_sample = False
        ids = tokenizer.encode(body["prompt"], add_special_tokens=False).ids
        answer = Answer(ids, config, asyncio.get_running_loop())
        pipeline.submit(answer)
        return StreamingResponse(_events(answer, tokenizer), media_type="text/event-stream")

    return app


async def _events(answer: Answer, tokenizer: Tokenizer) -> AsyncIterator[str]:
    decoder, count = DecodeStream(skip_special_tokens=False), 0
    while (tokens := await answer.tokens.get()) is not None:
        count += len(tokens)
        text = "".join(decoder.step(tokenizer, token) or "" for token in tokens)
        if text:
            yield _event({"choices": [{"index": 0, "text": text, "finish_reason": None}]})
    usage = {"prompt_tokens": len(answer.prompt_ids), "completion_tokens": count}
    yield _event({"choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="directory with the model in OpenVINO's form")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument(
        "--precision", default="bf16", help="of the computation and of KV (default: %(default)s)"
    )
    parser.add_argument("--kv-cache-gib", type=int, default=1)
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--max-num-batched-tokens", type=int, default=1024)
    arguments = parser.parse_args()
    config = json.loads((arguments.model / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    app = build_app(Pipeline(arguments.model, arguments), tokenizer, config["eos_token_id"])
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
