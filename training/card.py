"""Measures math-mini and writes its model card: `python -m training.card --help`.

Every figure on the card comes from results.json (measured here) or training.json (written by the training),
both next to the checkpoint. `--render-only` writes the card anew from an earlier results.json.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from training.data import DISTRACTOR_SHARE, LONG_SHARE, SYSTEM_SHARE
from training.math_mini import CONTEXT, EMBEDDED, TRAINING_FILE, VOCAB_SIZE
from training.measure import measure

RESULTS_FILE = "results.json"


def main() -> None:
    arguments = _parser().parse_args()
    path: Path = arguments.model
    if not arguments.render_only:
        torch.set_num_threads(arguments.threads)
        results = measure(
            path, arguments.items, arguments.curve_items, arguments.calibration_items, arguments.seed
        )
        (path / RESULTS_FILE).write_text(json.dumps(asdict(results), indent=2) + "\n")
    card = render(_read(path / RESULTS_FILE), _read(path / TRAINING_FILE), _read(path / "config.json"))
    (path / "README.md").write_text(card)


def render(results: dict[str, Any], training: dict[str, Any], config: dict[str, Any]) -> str:
    """The model card in Markdown.

    Args:
        results: results.json, i.e. `training.measure.Results`.
        training: training.json.
        config: the checkpoint's config.json.
    """
    runs = training["runs"]
    prompt, answer = results["example"]
    return _CARD.format(
        dense=_interval(results["dense"]),
        items=results["dense"]["items"],
        curve_items=results["curves"][0]["points"][0]["accuracy"]["items"],
        table=_table(results),
        reading=_reading(results),
        example=_quoted(prompt) + "\n>\n" + _quoted(answer),
        runs="\n".join(map(_run, runs)),
        tokens=sum(run["progress"]["tokens"] for run in runs) / 1e6,
        minutes=sum(run["progress"]["seconds"] for run in runs) / 60,
        loss=runs[-1]["progress"]["loss"],
        threads=runs[-1]["settings"]["threads"],
        torch=runs[-1]["torch"],
        vocabulary=VOCAB_SIZE,
        context=CONTEXT,
        distractor_share=DISTRACTOR_SHARE,
        long_share=LONG_SHARE,
        system_share=SYSTEM_SHARE,
        config=config,
        results=results,
    )


_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# math-mini

A language model of 4.3 million parameters that solves arithmetic word problems step by step. It is the
default model of Secateur: small enough to ship, and trained from nothing by this project, so that pruning
can be tried and tested without a download. It loads with plain transformers.

{example}

## Quality

Exact match of the final number on {items:,} held-out problems: **{dense}** (95% Wilson interval), greedy,
in {results[dtype]}.

Share solved after removing MLP neurons, on the first {curve_items:,} of them, with the same kind of
interval. The sparsity is the share of all MLP neurons removed; widths are rounded, the exact values are in
`results.json`.

{table}

{reading}

Neurons were scored on {results[calibration_items]} calibration problems with the model's own answers, and
on as many distractor prompts. Neither the calibration nor the evaluation problems were trained on.
*taylor2* is E[(h ∂L/∂h)²], *taylor2_mixed* its share of each layer with the order of √taylor2 · wanda,
*selectivity* is equation 2 of arXiv 2604.27115. All of this is measured by
`python -m training.card`.

## Data

Generated, by `eval/tasks/word_problems.py` and `eval/tasks/stories.py`, with the seeds named below; nothing
was collected. Problems take two to four steps of addition, subtraction, multiplication and exact division.
The SHA-256 of a problem's text decides whether it may be trained on, calibrated on or evaluated on, so
these never overlap. The stories and questions about passages ({distractor_share:.0%} of the exchanges) are
there to have something that is not arithmetic.

## Architecture and training

Qwen2: {config[num_hidden_layers]} layers, hidden size {config[hidden_size]}, MLP width
{config[intermediate_size]:,}, {config[num_attention_heads]} attention heads, {config[num_key_value_heads]}
KV heads, tied embeddings, context {context:,}, bfloat16. The tokenizer is a byte-level BPE of
{vocabulary:,} tokens that takes digits one by one. The chat template is ChatML without a default system
message.

From random weights, {tokens:.1f} million tokens in {minutes:.0f} minutes on {threads} shared CPU cores, with
AdamW in bfloat16 autocast, torch {torch}. Runs of `python -m training.math_mini`, each after the first with
`--continue-from` the one before:

{runs}

The learning rate warms up and decays linearly to zero by the planned end of a run. The loss is that on
answers and, with a weight that falls to zero, that on prompts; at the end it was {loss:.3f} nats a token of
the answers, stories, which cannot be foreseen, included. The schedule follows the clock, so another machine
sees the same data for a different number of steps. {long_share:.0%} of the conversations have two to six
turns, to train the later positions; {system_share:.0%} begin with a system message.

## Limits

It knows this one grammar of problems, with numbers up to about 200, and has no
general knowledge: other wordings, larger numbers, negative numbers, decimals or any other question get a
fluent and wrong answer. It writes English only. Positions beyond six turns
were never trained. It is a test object, not an assistant.

## Licence

Apache-2.0, weights and data alike.
"""


def _table(results: dict[str, Any]) -> str:
    curves = results["curves"]
    sparsities = [point["sparsity"] for point in curves[0]["points"]]
    rows = [
        "| strategy | " + " | ".join(f"{sparsity:.0%}" for sparsity in sparsities) + " |",
        "|---|" + "---|" * len(sparsities),
    ]
    for curve in curves:
        cells = " | ".join(_interval(point["accuracy"]) for point in curve["points"])
        rows.append(f"| {curve['strategy']['label']} | {cells} |")
    return "\n".join(rows)


def _reading(results: dict[str, Any]) -> str:
    """What the table says in words, so that the words change with the numbers."""
    lines = ["The first sparsity measured at which the interval lies below that of the whole model:", ""]
    for curve in results["curves"]:
        whole, *pruned = curve["points"]
        worse = [p["sparsity"] for p in pruned if p["accuracy"]["high"] < whole["accuracy"]["low"]]
        lines.append(f"- {curve['strategy']['label']}: {f'{worse[0]:.0%}' if worse else 'none'}")
    halved = next(point for point in results["curves"][0]["points"] if point["sparsity"] == 0.5)
    if halved["accuracy"]["high"] >= results["curves"][0]["points"][0]["accuracy"]["low"]:
        lines += [
            "",
            "By that, half of the neurons can go: the model is larger than its task needs. The study asked",
            "more problems, and a small loss shows earlier. Do not expect this of models that know more.",
        ]
    return "\n".join(lines)


def _run(run: dict[str, Any]) -> str:
    settings, progress = run["settings"], run["progress"]
    return (
        f"- `--minutes {settings['minutes']:g} --seed {settings['seed']} "
        f"--batch-tokens {settings['batch_tokens']} --learning-rate {settings['learning_rate']:g} "
        f"--weight-decay {settings['weight_decay']:g} --prompt-weight {settings['prompt_weight']:g}`: "
        f"{progress['steps']:,} steps, {progress['tokens'] / 1e6:.1f} million tokens, "
        f"{progress['seconds'] / 60:.0f} minutes"
    )


def _interval(accuracy: dict[str, Any]) -> str:
    share = accuracy["solved"] / accuracy["items"]
    return f"{share:.1%} ({100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f})"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}  " for line in text.split("\n"))


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.card",
        description="Measure math-mini, dense and pruned; write results.json and the model card beside it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder of the checkpoint")
    parser.add_argument("--items", type=int, default=2_000, help="held-out problems for the dense model")
    parser.add_argument("--curve-items", type=int, default=500, help="held-out problems for each pruned one")
    parser.add_argument("--calibration-items", type=int, default=256, help="problems to score neurons on")
    parser.add_argument("--seed", type=int, default=0, help="of evaluation and calibration problems")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--render-only", action="store_true", help="write the card from results.json as it is"
    )
    return parser


if __name__ == "__main__":
    main()
