"""Recovers math-mini at several sparsities and seeds, and measures the gain: `python -m training.recovery`.

Trains and asks through `secateur recover`, `compensate` and `eval`, as anybody would. Goes on where it was
interrupted. Knows nothing of how the page looks (recovery_report.py).
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eval import evaluation as evaluations
from eval.evaluation import Evaluation
from eval.provenance import provenance
from eval.study.paired import compare
from pruning.delta import load_delta
from pruning.errors import NothingGainedError
from pruning.files import write_atomically
from server.cli import parse_arguments
from server.commands.compensating import fit_delta
from server.commands.evaluating import evaluate
from server.commands.recovering import delta_files, recover_variants, report_file
from server.loading.profiles import open_model
from server.settings import CommandSettings, CompensateSettings, EvalSettings, RecoverSettings
from training.recovery_report import ALONE, COMPENSATED, RESULTS_FILE, TOGETHER, write_report

SPARSITIES = (0.2, 0.3, 0.4, 0.5)
SEEDS = (0, 1, 2)
LEARNING_RATE = 5e-4  # above the default, which is for larger networks
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Options:
    """What the study is of.

    Attributes:
        prompts: of each training and fit.
        epochs: how often a training reads them.
        items: that every variant is asked, the same ones.
        work: where deltas, reports and answers are kept, to go on from.
    """

    prompts: int
    epochs: int
    items: int
    work: Path


@dataclass(frozen=True)
class Correction:
    """A delta of one variant: how it came about, and what was measured on text that it did not read."""

    kind: str
    seed: int
    sparsity: float
    file: Path
    kl_before: float
    kl_after: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.recovery", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/recovery/math-mini"))
    parser.add_argument("--work", type=Path, required=True, help="directory of deltas and answers so far")
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = Options(arguments.prompts, arguments.epochs, arguments.items, arguments.work)
    results = measure(replace(options, work=options.work / _digest(options)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = json.dumps(results, indent=1) + "\n"
    write_atomically(arguments.out / RESULTS_FILE, content.encode())
    print(write_report(results, arguments.out))


def _digest(options: Options) -> str:
    """Of all that deltas and answers depend on: what was found with other settings is not found again."""
    settings = _settings("eval")
    assert isinstance(settings, EvalSettings)
    known = [
        *(open_model(settings).fingerprint, settings.score, SPARSITIES, SEEDS),
        *(options.prompts, options.epochs, options.items, LEARNING_RATE, _defaults()),
    ]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:8]


def measure(options: Options) -> dict[str, Any]:
    """Every variant before and after, on the same items."""
    dense = _evaluation(options, 0.0, None)
    variants = []
    found = list(_corrections(options))
    for sparsity in SPARSITIES:
        before = _evaluation(options, sparsity, None)
        variants.append(
            {
                "sparsity": sparsity,
                "exact_sparsity": before.variant.exact_sparsity,
                "parameters": before.variant.parameters,
                "before": {**_cell(before), "against_dense": _paired(dense, before)},
                "corrected": [
                    _corrected(options, correction, dense, before)
                    for correction in found
                    if correction.sparsity == sparsity
                ],
            }
        )
    return {
        "model": dense.model,
        "parameters": dense.variant.parameters,
        "task": dense.task,
        "training": {
            **_defaults(),
            "learning_rate": LEARNING_RATE,
            "prompts": options.prompts,
            "epochs": options.epochs,
            "seeds": SEEDS,
        },
        "dense": _cell(dense),
        "variants": variants,
        "provenance": asdict(provenance()),
    }


def _corrections(options: Options) -> Iterator[Correction]:
    for sparsity in SPARSITIES:
        yield _compensated(options, sparsity)
    for seed in SEEDS:
        for sparsity in SPARSITIES:
            yield from _recovered(options, ALONE, seed, (sparsity,))
        yield from _recovered(options, TOGETHER, seed, SPARSITIES)


def _recovered(options: Options, kind: str, seed: int, sparsities: tuple[float, ...]) -> Iterator[Correction]:
    name = "-".join(f"s{100 * sparsity:g}" for sparsity in sparsities)
    out = options.work / f"recovered-{name}-seed{seed}.safetensors"
    if not report_file(out).exists() or out.with_name(f"{out.name}.work").exists():
        settings = _settings(
            "recover",
            out=out,
            sparsities=",".join(map(str, sparsities)),
            seed=seed,
            epochs=options.epochs,
            **{"num-prompts": options.prompts, "learning-rate": LEARNING_RATE},
        )
        assert isinstance(settings, RecoverSettings)
        try:
            recover_variants(settings)
        except NothingGainedError as error:  # which is a result as well; it is told again at once next time
            print(error)
            return
    report = json.loads(report_file(out).read_text())
    for file, told in zip(delta_files(out, sparsities), report["deltas"], strict=True):
        kl = told["held_out_kl_nats"]
        yield Correction(kind, seed, told["sparsity"], file, kl["before"], kl["after"])


def _compensated(options: Options, sparsity: float) -> Correction:
    out = options.work / f"compensated-s{100 * sparsity:g}.safetensors"
    if not out.exists():
        settings = _settings(
            "compensate", sparsity=sparsity, out=out, **{"num-prompts": options.prompts, "seed": SEEDS[0]}
        )
        assert isinstance(settings, CompensateSettings)
        fit_delta(settings)
    told = load_delta(out).provenance.settings
    return Correction(
        COMPENSATED,
        seed=SEEDS[0],
        sparsity=sparsity,
        file=out,
        kl_before=float(told["kl_nats_before"]),
        kl_after=float(told["kl_nats_after"]),
    )


def _evaluation(options: Options, sparsity: float, delta: Path | None) -> Evaluation:
    """Of the variant with that delta; asked once."""
    name = f"dense-or-plain-s{100 * sparsity:g}" if delta is None else delta.stem
    out = options.work / f"{name}.answers.json"
    if not out.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        corrected = {} if delta is None else {"delta": delta}
        settings = _settings("eval", sparsity=sparsity, items=options.items, out=out, **corrected)
        assert isinstance(settings, EvalSettings)
        evaluate(settings)
    return evaluations.load(out)


def _corrected(
    options: Options, correction: Correction, dense: Evaluation, before: Evaluation
) -> dict[str, Any]:
    after = _evaluation(options, correction.sparsity, correction.file)
    delta = load_delta(correction.file)
    assert after.model["delta"] == delta.digest, "the answers are of another delta"
    return {
        "kind": correction.kind,
        "seed": correction.seed,
        "delta": delta.digest,
        "delta_parameters": delta.parameters,
        "kl_nats": {"before": correction.kl_before, "after": correction.kl_after},
        **_cell(after),
        "against_before": _paired(before, after),
        "against_dense": _paired(dense, after),
    }


def _cell(found: Evaluation) -> dict[str, Any]:
    score = found.score
    return {
        "solved": score.correct,
        "items": score.items,
        "low": score.low,
        "high": score.high,
        "traps": score.trap_rate,
        "outcomes": "".join("01"[answer.correct] for answer in found.answers.values()),
    }


def _paired(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """Who solved what the other did not; exact McNemar."""
    assert first.answers.keys() == second.answers.keys(), "the same items"
    outcomes = [[answer.correct for answer in one.answers.values()] for one in (first, second)]
    found = compare(outcomes[0], outcomes[1], CONFIDENCE)
    return {
        "only_first": found.only_dense,
        "only_second": found.only_variant,
        "p_value": found.p_value,
    }


def _settings(command: str, **flags: object) -> CommandSettings:
    """As the command line gives them, of math-mini."""
    return parse_arguments([command, *(f"--{name}={value}" for name, value in flags.items())])


def _defaults() -> Mapping[str, Any]:
    fields = RecoverSettings.model_fields
    names = ("rank", "alpha", "batch_tokens", "ce_weight", "top_tokens", "dtype")
    return {name: fields[name].default for name in names}


if __name__ == "__main__":
    main()
