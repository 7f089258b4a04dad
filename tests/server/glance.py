"""A server at a glance as tests want it: what GET /v1/live might say."""

from typing import Any

from server.monitoring.live_schema import LiveState

NOW = 1_700_000_000.0


def evidence(**changes: Any) -> dict[str, Any]:
    known = {"verdict": "safe", "items": 1_000, "age_seconds": 42.0}
    return {**known, "accuracy": 0.962, "accuracy_low": 0.948, "accuracy_high": 0.972, **changes}


def variant(name: str, *, tokens: list[float | None] | None = None, **changes: Any) -> dict[str, Any]:
    """Of two intervals."""
    nothing = [None, None]
    series = {"generation_tokens_per_second": tokens or [0.0, 0.0]}
    return {
        "name": name,
        "sparsity": 0.2,
        "exact_sparsity": 0.203125,
        "state": "ready",
        "running": 3,
        "requests": 10,
        "prompt_tokens": 100,
        "generation_tokens": 1_000,
        "standalone_bytes": 988_064_000,
        "marginal_bytes": 0,
        "evidence": evidence(),
        "series": {**series, "accuracy": nothing, "accuracy_lower": nothing, "accuracy_upper": nothing},
        **changes,
    }


def glance(*variants: dict[str, Any], series: dict[str, Any] | None = None, **changes: Any) -> LiveState:
    """Of the model m, whose default variant is m:s0."""
    columns: dict[str, Any] = {
        "time": [NOW - 2, NOW],
        "generation_tokens_per_second": [50.0, 100.0],
        "prompt_tokens_per_second": [5.0, 10.0],
        "requests_per_second": [1.0, 2.0],
        "rejections_per_second": [0.0, 0.0],
        "running": [2, 3],
        "waiting": [7, 5],
        "kv_usage_ratio": [0.1, 0.25],
        "time_to_first_token_p50_seconds": [0.02, 0.03],
        "time_to_first_token_p95_seconds": [0.2, 0.12],
        "inter_token_p50_seconds": [None, 0.01],
        "inter_token_p95_seconds": [None, 0.02],
        "process_bytes": [10**9, 10**9],
    }
    memory = {"weight_bytes": 8_700_000, "kv_bytes": 2**30, "process_bytes": 10**9}
    return LiveState.model_validate(
        {
            "model": "m",
            "version": "9.9.9",
            "started": NOW - 7_260,
            "now": NOW,
            "interval_seconds": 2.0,
            "state": "ready",
            "task": "arithmetic",
            "tolerance": 0.03,
            "safe_sparsity": 0.2,
            "default_variant": "m:s0",
            "limits": {
                "max_running": 64,
                "max_waiting": 256,
                "max_model_len": 4096,
                "max_num_batched_tokens": 512,
                "kv_bytes": 2**30,
            },
            "memory": {**memory, "device_used_bytes": 7 * 10**9, "device_total_bytes": 25 * 10**9},
            "series": {**columns, **(series or {})},
            "variants": list(variants) or [variant("m:s0")],
            "verdicts": [],
            **changes,
        }
    )
