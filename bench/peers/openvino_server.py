"""OpenVINO GenAI behind the part of OpenAI's completions that the benchmark uses: greedy text, streamed.

Runs in the peer's own environment, so it imports nothing of this project. Continuous batching with prompts
split into chunks, computation and KV in bfloat16, no prefix cache. A step of the pipeline holds Python's
global lock, so HTTP and text have a process of their own: in one process no request came in and no token went
out while a step ran.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
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


@dataclass(frozen=True)
class Question:
    """What the pipeline's process is asked."""

    number: int
    prompt_ids: list[int]
    max_tokens: int
    ignore_eos: bool


# What one step brought: question's number -> its new tokens, and whether they were the last.
Step = dict[int, tuple[list[int], bool]]


def run_pipeline(connection: Connection, arguments: argparse.Namespace) -> None:
    """The pipeline's process: takes questions, runs steps while there are any, sends what each brought."""
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
        **({"prompt_lookup": True} if arguments.guessed_tokens else {}),
    }
    model = arguments.model
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)
    eos_token_id = json.loads((model / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    connection.send({})  # it is ready
    running: dict[int, Any] = {}
    while True:
        while not running or connection.poll():
            question = connection.recv()
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = question.max_tokens
            config.ignore_eos = question.ignore_eos
            config.eos_token_id = eos_token_id
            config.do_sample = False
            if arguments.guessed_tokens:
                config.num_assistant_tokens = arguments.guessed_tokens
                config.max_ngram_size = arguments.ngram
            ids = openvino.Tensor(np.array([question.prompt_ids], dtype=np.int64))
            running[question.number] = pipeline.add_request(question.number, ids, config)
        pipeline.step()
        step: Step = {}
        for number, handle in list(running.items()):
            ended = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
            tokens: list[int] = []
            while handle.can_read():
                [output] = handle.read().values()
                tokens += output.generated_ids
            if ended:
                del running[number]
            step[number] = tokens, ended
        connection.send(step)


class Pipeline:
    """The other end of the connection: questions go in, and each gets its tokens."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Queue[tuple[list[int], bool]]] = {}

    def listen(self) -> None:
        """Hands on what comes, from the running event loop on."""
        loop = asyncio.get_running_loop()

        def receive() -> None:
            while True:
                loop.call_soon_threadsafe(self._hand_on, self._connection.recv())

        threading.Thread(target=receive, daemon=True).start()

    def _hand_on(self, step: Step) -> None:
        for number, news in step.items():
            self._answers[number].put_nowait(news)

    async def ask(self, prompt_ids: list[int], max_tokens: int, ignore_eos: bool) -> AsyncIterator[list[int]]:
        number = next(self._numbers)
        queue = self._answers[number] = asyncio.Queue()
        self._connection.send(Question(number, prompt_ids, max_tokens, ignore_eos))
        ended = False
        while not ended:
            tokens, ended = await queue.get()
            yield tokens
        del self._answers[number]


def build_app(pipeline: Pipeline, tokenizer: Tokenizer) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pipeline.listen()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/completions")
    async def completions(body: dict[str, Any]) -> StreamingResponse:
        ids = tokenizer.encode(body["prompt"], add_special_tokens=False).ids
        answer = pipeline.ask(ids, body["max_tokens"], body.get("ignore_eos", False))
        return StreamingResponse(_events(len(ids), answer, tokenizer), media_type="text/event-stream")

    return app


async def _events(
    prompt_tokens: int, answer: AsyncIterator[list[int]], tokenizer: Tokenizer
) -> AsyncIterator[str]:
    decoder, count = DecodeStream(skip_special_tokens=False), 0
    async for tokens in answer:
        count += len(tokens)
        text = "".join(decoder.step(tokenizer, token) or "" for token in tokens)
        if text:
            yield _event({"choices": [{"index": 0, "text": text, "finish_reason": None}]})
    yield _event({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": count}})
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
    parser.add_argument("--guessed-tokens", type=int, default=0, help="in a step, by prompt lookup; 0: none")
    parser.add_argument("--ngram", type=int, default=3, help="that prompt lookup looks for")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=run_pipeline, args=(theirs, arguments), daemon=True
    )
    process.start()
    theirs.close()  # so that a pipeline that dies ends the connection
    ours.recv()
    app = build_app(Pipeline(ours), tokenizer)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
