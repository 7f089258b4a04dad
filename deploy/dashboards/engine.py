"""Engine: what the steps are made of, how long they take, what the caches give, and who is turned away."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards.board import SERVERS, VARIANTS, Section, board
from deploy.dashboards.panels import RED, AnyPanel, Face, Query, lines

PERCENTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def engine() -> Dashboard:
    return board(
        "secateur-engine",
        "Secateur / Engine",
        "What the steps are made of, how long they take, what the caches give, and who is turned away.",
        [
            Section("Batches", _batches()),
            Section("Steps", _steps()),
            Section("Caches", _caches()),
            Section("The door", _door()),
            Section("The machine", _machine()),
        ],
    )


def _batches() -> list[AnyPanel]:
    return [
        lines(
            Face(
                "Batch composition by width",
                "Tokens computed in a second, prompt and output alike, by size, and for probes and shadow "
                "scores. A batch is sorted by width: each block of neurons multiplies only the tokens whose "
                "width reaches it.",
                "suffix:tok/s",
            ),
            Query(f"sum by (variant) ({_rate('secateur_batch_tokens_sum', VARIANTS)})"),
            Query(f"sum({_rate('secateur_background_tokens_total', VARIANTS)})", "background"),
            stacked=True,
        ),
        lines(
            Face(
                "Tokens of a size in a step",
                "How many rows a size has in the steps that it is part of, on average. Large batches share "
                "the reading of the weights; a size with few rows in large batches gains little from being "
                "small.",
                "short",
            ),
            Query(
                f"sum by (variant) ({_rate('secateur_batch_tokens_sum', VARIANTS)})"
                f" / (sum by (variant) ({_rate('secateur_batch_tokens_count', VARIANTS)}) > 0)"
            ),
        ),
        lines(
            Face("Running", "Answers being computed, by size, when the server was scraped.", "short"),
            Query(f"sum by (variant) (secateur_requests_running{{{VARIANTS}}})"),
            stacked=True,
        ),
    ]


def _steps() -> list[AnyPanel]:
    return [
        lines(
            Face(
                "Step time",
                "From scheduling to the last token sampled. Every stream waits one step for its next token, "
                "so this is the floor of the time between tokens.",
                "s",
            ),
            *(
                Query(_quantile(quantile, "secateur_step_seconds", SERVERS), name)
                for quantile, name in PERCENTILES
            ),
        ),
        lines(
            Face(
                "Step time of one size alone",
                "Mean over an hour of the steps that held one size and no prompts, by how many rows they "
                "had. This is where what pruning buys is measured: compare sizes at the same number of "
                "rows.",
                "s",
            ),
            Query(
                f"avg by (variant, rows) (variant_rows:secateur_solo_step_seconds:mean1h{{{VARIANTS}}})",
                "{{variant}}, rows: {{rows}}",
            ),
        ),
        lines(
            Face("Steps", "In a second. None while there is nothing to do.", "suffix:steps/s"),
            Query(f"sum by (instance) ({_rate('secateur_step_seconds_count', SERVERS)})", "{{instance}}"),
        ),
    ]


def _caches() -> list[AnyPanel]:
    return [
        lines(
            Face(
                "Prefix cache",
                "Share of the prompts' tokens that were found computed already, at the same width: a block "
                "of one size is never read at another. Long shared system prompts push it up.",
                "percentunit",
                span=6,
            ),
            Query(
                f"sum({_rate('secateur_prefix_cache_hits_total', SERVERS)})"
                f" / (sum({_rate('secateur_prefix_cache_queries_total', SERVERS)}) > 0)",
                "found",
            ),
            maximum=1,
        ),
        lines(
            Face(
                "KV cache",
                "Share of the KV blocks that running answers hold. The rest keeps prefixes until it is "
                "needed.",
                "percentunit",
                span=6,
            ),
            Query(f"max by (instance) (secateur_kv_usage_ratio{{{SERVERS}}})", "{{instance}}"),
            steps=[(0.9, RED)],
            maximum=1,
        ),
        lines(
            Face(
                "Preemptions",
                "Answers thrown out of the KV cache, to be computed again. A few do no harm; many mean that "
                "the cache is too small for this traffic.",
                "ops",
                span=6,
            ),
            Query(f"sum by (instance) ({_rate('secateur_preemptions_total', SERVERS)})", "{{instance}}"),
        ),
        lines(
            Face(
                "Prompt lookup",
                "Share of the tokens guessed ahead from repeated text that came true. Each saves a step; "
                "each wrong one costs a row of a batch.",
                "percentunit",
                span=6,
            ),
            Query(
                f"sum({_rate('secateur_right_guesses_total', SERVERS)})"
                f" / (sum({_rate('secateur_guessed_tokens_total', SERVERS)}) > 0)",
                "came true",
            ),
            maximum=1,
        ),
    ]


def _door() -> list[AnyPanel]:
    return [
        lines(
            Face(
                "Time in the queue",
                "From arrival to the first step that takes the request in, by percentile. It is part of the "
                "time to the first token.",
                "s",
            ),
            *(
                Query(_quantile(quantile, "secateur_queue_seconds", VARIANTS), name)
                for quantile, name in PERCENTILES
            ),
        ),
        lines(
            Face(
                "Refused",
                "HTTP requests answered with an error, by its code: queue_full is ours to mend, "
                "invalid_value a client's, variant_degraded the judge's doing.",
                "reqps",
            ),
            Query(f"sum by (reason) ({_rate('secateur_rejections_total', SERVERS)}) > 0", "{{reason}}"),
            stacked=True,
        ),
        lines(
            Face(
                "How answers end",
                "By themselves (stop), cut off (length), in a loop that was to be stopped, because the "
                "client left (abort), because the engine died (error).",
                "reqps",
            ),
            Query(
                f"sum by (finish_reason) ({_rate('secateur_requests_total', VARIANTS)})", "{{finish_reason}}"
            ),
            stacked=True,
        ),
    ]


def _machine() -> list[AnyPanel]:
    return [
        lines(
            Face(
                "What the process holds",
                "All of it, the weights, and the room for KV blocks, which on a CPU is resident as far as it "
                "was ever written.",
                "bytes",
            ),
            Query(f"sum(secateur_device_memory_process_bytes{{{SERVERS}}})", "process"),
            Query(f"sum(secateur_weight_bytes{{{SERVERS}}})", "weights"),
            Query(f"sum(secateur_kv_bytes{{{SERVERS}}})", "KV blocks"),
        ),
        lines(
            Face(
                "Share of the device's memory",
                "In use by all processes. Beyond 95% the next allocation may end the process.",
                "percentunit",
            ),
            Query(
                f"max by (instance, device) (secateur_device_memory_used_bytes{{{SERVERS}}}"
                f" / secateur_device_memory_total_bytes{{{SERVERS}}})",
                "{{instance}} {{device}}",
            ),
            steps=[(0.95, RED)],
            maximum=1,
        ),
        lines(
            Face(
                "Power",
                "Of the CPU package (RAPL) or the GPU (NVML), other processes' included. No data where "
                "neither can be read.",
                "watt",
            ),
            Query(f"sum by (instance) (instance:secateur_energy:watts1m{{{SERVERS}}})", "{{instance}}"),
        ),
    ]


def _rate(counter: str, labels: str) -> str:
    return f"rate({counter}{{{labels}}}[$__rate_interval])"


def _quantile(quantile: float, histogram: str, labels: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le) ({_rate(histogram + '_bucket', labels)}))"
