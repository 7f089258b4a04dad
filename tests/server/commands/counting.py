"""A tiny model and a task of its own whose answers are graded, as commands are told of them."""

import json
from pathlib import Path
from typing import Any

from server.__main__ import main
from tests.tiny import tiny_checkpoint


def profiled_arguments(work: Path, num_prompts: int, **overrides: Any) -> list[str]:
    """What every command is given, with so many prompts and a profile in the cache under `work`."""
    model = tiny_checkpoint(work / "tiny", max_position_embeddings=1024, **overrides)
    prompts = work / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"count to {i}", "answer": "1"}) for i in range(num_prompts)]
    prompts.write_text("\n".join(lines))
    common = ["--model", str(model), "--task", "counting", "--cache-dir", str(work / "cache")]
    files = ["--prompts", str(prompts), "--distractors", str(prompts), "--answer-field", "answer"]
    assert main(["profile", *common, *files, "--num-prompts", "3"]) == 0
    return [*common, *files]
