"""Overview: within ten seconds, which sizes are served, how good each is now, what pruning costs and buys."""

from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards.board import SERVERS, VARIANTS, Section, board, of_known
from deploy.dashboards.panels import (
    GREEN,
    RED,
    YELLOW,
    AnyPanel,
    Column,
    Face,
    Query,
    band,
    bars,
    lines,
    numbers,
    rows,
)

PERCENTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
SLOW_SECONDS = 1.0  # the objective for the first token, as in deploy/prometheus/recording.yml
DEFAULT = "on (job, instance, variant) secateur_variant_default == 1"
DENSE = "on (job, instance, variant) secateur_variant_sparsity_ratio == 0"


def overview() -> Dashboard:
    return board(
        "secateur-overview",
        "Secateur / Overview",
        "Which sizes are served, how good each is now, what each costs, and what pruning buys.",
        [
            Section("Now", _now()),
            Section("How good", [_accuracy()]),
            Section("How fast", _speed()),
            Section("How full", _load()),
            Section("What a token costs", _efficiency()),
        ],
    )


def _now() -> list[AnyPanel]:
    accuracy = f"secateur_probe_accuracy_ratio{{{SERVERS}}}"
    return [
        numbers(
            Face(
                "Accuracy: default size and dense",
                "Share of the probes solved, by the size that requests get which name none, and by the "
                "dense model. Held-out items of the task, asked all the time in the background. Not your "
                "users' requests.",
                "percentunit",
                span=6,
                height=5,
            ),
            Query(of_known(f"({accuracy} and {DEFAULT})"), "default"),
            Query(of_known(f"({accuracy} and {DENSE})"), "dense"),
            trend=False,
        ),
        numbers(
            Face(
                "Generated tokens",
                "Tokens delivered to users in a second, of all sizes together. Probes do not count.",
                "suffix:tok/s",
                span=4,
                height=5,
            ),
            Query(f"sum(instance:secateur_generation_tokens:rate1m{{{SERVERS}}})", "tokens"),
        ),
        numbers(
            Face(
                "Time to first token, p95",
                "95% of answers began within this time of their arrival, over 5 minutes; waiting in the "
                "queue and reading the prompt included. The objective is 1 s.",
                "s",
                span=4,
                height=5,
            ),
            Query(_first_token(0.95, "5m"), "p95"),
            steps=[(SLOW_SECONDS / 2, YELLOW), (SLOW_SECONDS, RED)],
        ),
        numbers(
            Face(
                "Memory",
                "Held by the process, and how much of that are the weights, which all sizes share: a size "
                "more costs nothing here.",
                "bytes",
                span=4,
                height=5,
            ),
            Query(f"sum(secateur_device_memory_process_bytes{{{SERVERS}}})", "process"),
            Query(f"sum(secateur_weight_bytes{{{SERVERS}}})", "weights"),
            trend=False,
        ),
        bars(
            Face(
                "Share of the traffic",
                "Of all answers that ended in the last 5 minutes, also of sizes that are not chosen above. "
                "Clients choose one, or say auto and get the sparsest that is proven to be good enough.",
                "percentunit",
                span=6,
                height=5,
            ),
            Query(
                f"sum by (variant) (variant:secateur_requests:rate5m{{{VARIANTS}}}) / scalar("
                f"sum(variant:secateur_requests:rate5m{{{SERVERS}}}) > 0)"
            ),
            maximum=1,
        ),
        _sizes(),
    ]


def _sizes() -> table.Panel:
    def least(metric: str) -> str:
        return f"min by (variant) ({metric}{{{VARIANTS}}})"

    def most(metric: str) -> str:
        return f"max by (variant) ({metric}{{{VARIANTS}}})"

    def is_in(state: str) -> str:
        return f'secateur_variant_state{{{VARIANTS}, state="{state}"}}'

    return rows(
        Face(
            "Sizes",
            "A line for each size. Low and high are the 95% interval of the accuracy; lost is what it loses "
            "against the densest size on the same probes. Alone is the memory of the weights if the size "
            "were served by itself. Speed is measured, in steps that held this size alone against steps of "
            "dense with as many rows. Of several servers the worst value of each column stands here, "
            "but the highest high, so that low and high span all intervals, and the sum of their tokens.",
            "none",
            span=24,
            height=7,
        ),
        "variant",
        Column("Sparsity", most("secateur_variant_sparsity_ratio"), "percentunit"),
        Column(
            "State",
            # Servers may differ: a sum of maxima could be 3.
            f"max by (variant) ({is_in('retiring')} or 2 * {is_in('degraded')})",
            "none",
            {0: ("ready", GREEN), 1: ("retiring", YELLOW), 2: ("degraded", RED)},
        ),
        Column("Accuracy", least("secateur_probe_accuracy_ratio"), "percentunit"),
        Column("Low", least("secateur_probe_accuracy_lower_ratio"), "percentunit"),
        Column("High", most("secateur_probe_accuracy_upper_ratio"), "percentunit"),
        Column("Probes", least("secateur_probe_items"), "short"),
        Column("Lost", most("secateur_probe_drop_ratio"), "percentunit"),
        Column(
            "Tokens",
            f"sum by (variant) (variant:secateur_generation_tokens:rate1m{{{VARIANTS}}})",
            "suffix:tok/s",
        ),
        Column("Alone", most("secateur_variant_standalone_bytes"), "bytes"),
        Column("FLOPs of dense", most("secateur_variant_relative_flops_ratio"), "percentunit"),
        Column("Speed of dense", least("variant:secateur_speed_to_dense:ratio1h"), "suffix:x"),
    )


def _accuracy() -> AnyPanel:
    return band(
        Face(
            "$variant",
            "Share of the probes solved, and its 95% interval (Wilson's). It narrows as probes come in, and "
            "widens when a verdict changes, because evidence begins anew then. Two sizes whose bands "
            "overlap may still differ: the verdict compares them item by item, which sees far more.",
            "percentunit",
            span=24,
            height=7,
        ),
        Query(of_known(f"secateur_probe_accuracy_ratio{{{VARIANTS}}}"), "accuracy"),
        Query(of_known(f"secateur_probe_accuracy_lower_ratio{{{VARIANTS}}}"), "low"),
        Query(of_known(f"secateur_probe_accuracy_upper_ratio{{{VARIANTS}}}"), "high"),
        repeat="variant",
        minimum=0,
        maximum=1,
    )


def _speed() -> list[AnyPanel]:
    return [
        lines(
            Face(
                "Generated tokens",
                "Tokens delivered to users, by size. Requests of different sizes share every batch, so "
                "these add up.",
                "suffix:tok/s",
            ),
            Query(
                f"sum by (variant) (rate(secateur_generation_tokens_total{{{VARIANTS}}}[$__rate_interval]))"
            ),
            stacked=True,
        ),
        lines(
            Face(
                "Time to first token",
                "From a request's arrival to its first token: the queue, and reading the prompt. Who waited "
                "for more than 1 s and left without one is counted with that time. "
                "Percentiles are interpolated between a histogram's buckets, so they are only as fine as "
                "those. Dashed: the objective, 95% within 1 s.",
                "s",
            ),
            *(Query(_first_token(quantile, "$__rate_interval"), name) for quantile, name in PERCENTILES),
            steps=[(SLOW_SECONDS, RED)],
        ),
        lines(
            Face(
                "Time between tokens",
                "What a reader of a stream waits for each further token. It grows with the rows of a batch "
                "and with long prompts that are read in between.",
                "s",
            ),
            *(
                Query(
                    f"histogram_quantile({quantile}, sum by (le) "
                    f"(rate(secateur_inter_token_seconds_bucket{{{VARIANTS}}}[$__rate_interval])))",
                    name,
                )
                for quantile, name in PERCENTILES
            ),
        ),
    ]


def _load() -> list[AnyPanel]:
    return [
        lines(
            Face(
                "Queue",
                "Answers being computed, and answers that wait for a seat or for KV blocks. Waiting for "
                "long means that the server is full; a full queue refuses with 429.",
                "short",
            ),
            Query(f"sum(secateur_requests_running{{{SERVERS}}})", "running"),
            Query(f"sum(secateur_requests_waiting{{{SERVERS}}})", "waiting"),
        ),
        lines(
            Face(
                "KV cache",
                "Share of the KV blocks that running answers hold. Near 1 requests wait for blocks, and "
                "answers may be thrown out to be computed again (preemptions, in Engine).",
                "percentunit",
            ),
            Query(f"max by (instance) (secateur_kv_usage_ratio{{{SERVERS}}})", "{{instance}}"),
            steps=[(0.9, RED)],
            maximum=1,
        ),
        lines(
            Face(
                "Device memory",
                "Held by this process, and by all processes together, against what the device has. On a CPU "
                "the device is the machine.",
                "bytes",
            ),
            Query(f"sum(secateur_device_memory_process_bytes{{{SERVERS}}})", "this process"),
            Query(f"sum(secateur_device_memory_used_bytes{{{SERVERS}}})", "all processes"),
            Query(f"sum(secateur_device_memory_total_bytes{{{SERVERS}}})", "device"),
        ),
    ]


def _efficiency() -> list[AnyPanel]:
    return [
        lines(
            Face(
                "FLOPs of a token, modelled",
                "Multiplications and additions that one generated token costs, by size, attention to "
                "earlier tokens left out. What pruning saves when batches are large and arithmetic is the "
                "limit.",
                "suffix:FLOP",
            ),
            Query(f"max by (variant) (secateur_flops_per_token{{{VARIANTS}}})"),
        ),
        lines(
            Face(
                "Tokens for each gigabyte",
                "Generated tokens a second for each GB that the process holds. All sizes share the weights: "
                "serving another one does not lower this, another process for it would.",
                "suffix:tok/s/GB",
            ),
            Query(
                f"sum by (instance) (instance:secateur_tokens_per_gigabyte:rate1m{{{SERVERS}}})",
                "{{instance}}",
            ),
        ),
        lines(
            Face(
                "Tokens for each joule",
                "Generated tokens for each joule that the CPU package (RAPL) or the GPU (NVML) has used, "
                "other processes' use included. No data where neither can be read: nothing is made up.",
                "suffix:tok/J",
            ),
            Query(
                f"sum by (instance) (instance:secateur_tokens_per_joule:rate1m{{{SERVERS}}})", "{{instance}}"
            ),
        ),
    ]


def _first_token(quantile: float, window: str) -> str:
    return (
        f"histogram_quantile({quantile}, sum by (le) "
        f"(rate(secateur_time_to_first_token_seconds_bucket{{{VARIANTS}}}[{window}])))"
    )
