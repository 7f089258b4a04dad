"""Variants: everything that is known of each size, a row for each."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards.board import SERVERS, VARIANTS, Section, board, of_known
from deploy.dashboards.panels import (
    GREEN,
    RED,
    YELLOW,
    AnyPanel,
    Face,
    Query,
    band,
    history,
    lines,
    numbers,
)

VERDICTS = {0: ("unproven", YELLOW), 1: ("safe", GREEN), 2: ("degraded", RED)}


def variants() -> Dashboard:
    panels = [*_quality(), *_agreement(), *_cost(), *_traffic()]
    return board(
        "secateur-variants",
        "Secateur / Variants",
        "Everything that is known of each size: how good, how alike dense, how large, how fast.",
        [Section("$variant", panels, repeat="variant")],
    )


def _quality() -> list[AnyPanel]:
    return [
        band(
            Face(
                "Accuracy",
                "Share of the probes solved, and its 95% interval (Wilson's), for one look at it. Looking "
                "often and stopping at a good moment spoils this interval, but not the verdict, whose "
                "bounds hold at all times.",
                "percentunit",
            ),
            Query(of_known(f"secateur_probe_accuracy_ratio{{{VARIANTS}}}"), "accuracy"),
            Query(of_known(f"secateur_probe_accuracy_lower_ratio{{{VARIANTS}}}"), "low"),
            Query(of_known(f"secateur_probe_accuracy_upper_ratio{{{VARIANTS}}}"), "high"),
            minimum=0,
            maximum=1,
        ),
        band(
            Face(
                "Lost against the densest size",
                "Accuracy of the densest size minus this one's, on the same probes, and bounds of it that "
                "hold at all times at once (95% each). Below the tolerance with both bounds: safe. Above it "
                "with both: degraded. The densest size itself loses nothing.",
                "percentunit",
            ),
            Query(of_known(f"secateur_probe_drop_ratio{{{VARIANTS}}}"), "lost"),
            Query(of_known(f"secateur_probe_drop_lower_ratio{{{VARIANTS}}}"), "low"),
            Query(of_known(f"secateur_probe_drop_upper_ratio{{{VARIANTS}}}"), "high"),
        ),
        history(
            Face(
                "Verdicts",
                "Unproven until probes have shown enough, then safe or degraded. A degraded size answers "
                "409, or a denser one answers for it, until probes show that it is well again.",
                "none",
            ),
            Query(
                f'max by (instance) (secateur_probe_verdict{{{VARIANTS}, verdict="safe"}})'
                f' + 2 * max by (instance) (secateur_probe_verdict{{{VARIANTS}, verdict="degraded"}})',
                "{{instance}}",
            ),
            states=VERDICTS,
        ),
    ]


def _agreement() -> list[AnyPanel]:
    return [
        lines(
            Face(
                "Answers that do not end",
                "Cut off at their length, or in a loop. Pruning too much shows here early: of probes, and "
                "of users' own answers over an hour. Users who ask for short answers raise the second.",
                "percentunit",
            ),
            Query(f"max(secateur_probe_trap_ratio{{{VARIANTS}}})", "probes"),
            Query(f"max(variant:secateur_traps:ratio1h{{{VARIANTS}}})", "users"),
            maximum=1,
        ),
        lines(
            Face(
                "Agreement with dense",
                "How often the dense size finds the same next token likeliest, along this size's own "
                "answers to users. A measure of change, not of accuracy: it may differ and be right. "
                "Nothing for the dense size itself.",
                "percentunit",
            ),
            Query(f"avg(variant:secateur_agreement:ratio1h{{{VARIANTS}}})", "same token"),
            maximum=1,
        ),
        lines(
            Face(
                "Divergence from dense",
                "KL(dense ‖ this size) in nats a token, over all tokens, and over the fifth of each answer "
                "where it is largest. Pruning shows in the worst fifth first. A lower bound: the rarest "
                "tokens count as one.",
                "suffix:nats",
            ),
            Query(f"avg(variant:secateur_divergence_nats:mean1h{{{VARIANTS}}})", "mean"),
            Query(f"avg(variant:secateur_worst_divergence_nats:mean1h{{{VARIANTS}}})", "worst fifth"),
        ),
    ]


def _cost() -> list[AnyPanel]:
    return [
        numbers(
            Face(
                "Weights",
                "Alone: what a process of its own would need for this size. For it only: what would be "
                "freed without it, 0 for a plain prefix of the neurons. Resident: all weights in memory, "
                "shared by all sizes. With dense among the sizes pruning saves time, not memory.",
                "bytes",
            ),
            Query(f"max(secateur_variant_standalone_bytes{{{VARIANTS}}})", "alone"),
            Query(f"max(secateur_variant_marginal_bytes{{{VARIANTS}}})", "for it only"),
            Query(f"max(secateur_weight_bytes{{{SERVERS}}})", "resident"),
            trend=False,
        ),
        lines(
            Face(
                "Speed relative to dense",
                "Measured: how much longer dense would have taken for the steps that this size had to "
                "itself, at as many rows. The other two are what to hope for: weights read, the limit of "
                "one stream, and arithmetic, the limit of a full batch. No measurement where traffic is "
                "never of one size alone.",
                "suffix:x",
            ),
            Query(f"max(variant:secateur_speed_to_dense:ratio1h{{{VARIANTS}}})", "measured"),
            Query(
                f"1 / max(secateur_variant_relative_bytes_ratio{{{VARIANTS}}})", "if weights are the limit"
            ),
            Query(
                f"1 / max(secateur_variant_relative_flops_ratio{{{VARIANTS}}})", "if arithmetic is the limit"
            ),
            minimum=None,
        ),
        lines(
            Face(
                "Probes' evidence",
                "Different items that accuracy and verdict rest on. It falls back to 0 when a verdict "
                "becomes, or was, degraded, and grows only while the engine has time to spare.",
                "short",
            ),
            Query(f"max(secateur_probe_items{{{VARIANTS}}})", "items"),
        ),
    ]


def _traffic() -> list[AnyPanel]:
    return [
        lines(
            Face("Generated tokens", "Tokens of this size delivered to users.", "suffix:tok/s"),
            Query(f"sum(rate(secateur_generation_tokens_total{{{VARIANTS}}}[$__rate_interval]))", "tokens"),
        ),
        lines(
            Face(
                "Latency, p95",
                "95% of first tokens, and of whole answers, came within this time. A request shares its "
                "batch with requests of other sizes, so a small size alone in a batch of dense ones is not "
                "much faster.",
                "s",
            ),
            Query(_p95("secateur_time_to_first_token_seconds"), "first token"),
            Query(_p95("secateur_request_seconds"), "answer"),
        ),
        lines(
            Face(
                "Tokens behind the users' backs",
                "Computed for probes and shadow scores, with what users' requests left of each step. Most "
                "belong to the densest size, which every other one is compared with.",
                "suffix:tok/s",
            ),
            Query(f"sum(rate(secateur_background_tokens_total{{{VARIANTS}}}[$__rate_interval]))", "all"),
            Query(f"sum(rate(secateur_probe_tokens_total{{{VARIANTS}}}[$__rate_interval]))", "probes"),
        ),
    ]


def _p95(histogram: str) -> str:
    return f"histogram_quantile(0.95, sum by (le) (rate({histogram}_bucket{{{VARIANTS}}}[$__rate_interval])))"
