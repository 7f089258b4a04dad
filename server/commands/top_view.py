"""Draws the server at a glance as text for a terminal of 80 columns and more.

Pure: what /v1/live said comes in, something that rich can print goes out.
"""

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from server.monitoring.live_schema import LiveState, LiveVariant, LiveVerdict

BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_ENTRIES = 40
SHOWN_VERDICTS = 4
NOTHING = "-"
_STYLES = {"safe": "green", "unproven": "yellow", "degraded": "bold red", "retiring": "dim"}


def frame(state: LiveState, url: str, trouble: str | None = None) -> RenderableType:
    """One picture of the server. With `trouble` it is the last one there was, and says so."""
    parts: list[RenderableType] = [_header(state, url)]
    parts += [Text(trouble, style="bold red")] if trouble else []
    parts += [Text(), _loads(state), Text(), _variants(state)]
    if state.verdicts:
        parts += [Text(), *(_verdict(verdict, state.model) for verdict in state.verdicts[-SHOWN_VERDICTS:])]
    return Group(*parts)


def sparkline(values: Sequence[float | None]) -> str:
    """One character a value, from 0 to the largest; a space where nothing is known."""
    top = max((value for value in values if value is not None), default=0.0)
    return "".join(" " if value is None else _bar(value / top if top else 0.0) for value in values)


def duration(seconds: float) -> str:
    """In its largest unit, down to whole ones: 59s, 3m, 2h, 5d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _bar(share: float) -> str:
    return BARS[min(int(share * len(BARS)), len(BARS) - 1)]


def _header(state: LiveState, url: str) -> RenderableType:
    memory = state.memory
    style = {"ready": "green", "draining": "yellow", "stuck": "bold red", "dead": "bold red"}[state.state]
    first = Text.assemble(
        (state.model, "bold"),
        "  ",
        (state.state, style),
        f"  up {duration(state.now - state.started)}  {url}  secateur {state.version}",
    )
    second = Text(
        f"process {decimal(memory.process_bytes)}  weights {decimal(memory.weight_bytes)}  "
        f"KV {decimal(memory.kv_bytes)}  device {decimal(memory.device_used_bytes)} "
        f"of {decimal(memory.device_total_bytes)}",
        style="dim",
    )
    return Group(first, second)


def _loads(state: LiveState) -> Table:
    series, limits = state.series, state.limits
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right", min_width=8)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    tokens = series.generation_tokens_per_second
    first = series.time_to_first_token_p95_seconds
    running, kv = _last(series.running), _last(series.kv_usage_ratio)
    rows: list[tuple[str, str, Sequence[float | None], str]] = [
        ("tokens/s", _rounded(_last(tokens)), tokens, f"at most {_rounded(_largest(tokens))}"),
        ("TTFT p95", _milliseconds(_last(first)), first, f"at most {_milliseconds(_largest(first))}"),
        ("waiting", _rounded(_last(series.waiting)), series.waiting, f"of {limits.max_waiting}"),
        ("running", _rounded(running), series.running, f"of {limits.max_running}, KV {_percent(kv)}"),
    ]
    for name, now, values, note in rows:
        table.add_row(name, now, Text(sparkline(values[-SPARKLINE_ENTRIES:]), style="cyan"), note)
    return table


def _variants(state: LiveState) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("variant", no_wrap=True, max_width=10)
    table.add_column("left out", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name in ("accuracy", "items", "age", "tok/s", "run", "alone", "marginal"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in state.variants:
        table.add_row(*_row(variant, state))
    return table


def _row(variant: LiveVariant, state: LiveState) -> list[RenderableType]:
    known = variant.evidence
    told = variant.state if variant.state != "ready" or known is None else known.verdict
    age = None if known is None else known.age_seconds
    accuracy = NOTHING
    if known is not None and known.accuracy is not None:
        low, high = (f"{100 * bound:.0f}" for bound in (known.accuracy_low, known.accuracy_high))
        accuracy = f"{100 * known.accuracy:.1f} {low}-{high}"
    is_default = variant.name == state.default_variant
    return [
        Text(_short(variant.name, state.model), style="bold" if is_default else ""),
        f"{100 * variant.exact_sparsity:.1f}%",
        Text(told, style=_STYLES.get(told, "")),
        accuracy,
        NOTHING if known is None else f"{known.items}",
        NOTHING if age is None else duration(age),
        _rounded(_last(variant.series.generation_tokens_per_second)),
        f"{variant.running}",
        decimal(variant.standalone_bytes),
        decimal(variant.marginal_bytes) if variant.marginal_bytes else "0",
    ]


def _verdict(verdict: LiveVerdict, model: str) -> Text:
    at = time.strftime("%d %b %H:%M:%S", time.localtime(verdict.time))
    before = "" if verdict.previous is None else f"{verdict.previous} → "
    return Text.assemble(
        (at, "dim"),
        f"  {_short(verdict.variant, model)}  {before}",
        (verdict.verdict, _STYLES.get(verdict.verdict, "")),
    )


def _short(variant: str, model: str) -> str:
    return variant.removeprefix(f"{model}:")


def _last(values: Sequence[float | None]) -> float | None:
    return values[-1] if values else None


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _rounded(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"


def _percent(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{100 * ratio:.0f}%"
