"""One record, and two side by side, as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tabulate import tabulate

from moge_bench.metrics import METRICS
from moge_bench.presets import PRESETS, resolve
from moge_bench.runs.record import Record, summarize
from moge_bench.study.manifest import differing

_ABSENT = "-"


def show_record(record: Record) -> str:
    """Return the record: summary, settings that its preset lacks, metrics, routing, origin."""
    parts = [f"{record.run_id}: {record.status}", summarize(record)]
    if record.error is not None and record.error.traceback:
        parts.append(record.error.traceback.rstrip())
    parts += [
        _section("Settings", _settings(record)),
        _section("Metrics", _metrics(record)),
        _section("Routing of each layer", _routing(record)),
        _section("Where it comes from", _table(("", ""), list(_origin(record)))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, body: str) -> str:
    return f"{title}\n{'-' * len(title)}\n{body}" if body else ""


def _table(header: Sequence[str], rows: list[list[str]]) -> str:
    """Return aligned columns, without a header where all its names are empty."""
    if not rows:
        return ""
    named = any(header)
    return tabulate(
        rows, headers=header if named else (), tablefmt="simple" if named else "plain",
        disable_numparse=True,
    )  # fmt: skip


def _settings(record: Record) -> str:
    settings = record.settings
    values = settings.model_dump(mode="json")
    try:
        preset = resolve(settings.preset, settings.method, {}, settings.seed)
    except ValueError:
        known = settings.preset in PRESETS
        why = "cannot be run so today" if known else "does not exist today"
        rows = [[path, _text(value)] for path, value in _flat(values)]
        return f"All of them: the preset {settings.preset} {why}.\n{_table(('', ''), rows)}"
    usual = preset.model_dump(mode="json")
    paths = differing(usual, values)
    head = f"preset {settings.preset}, method {settings.method}, seed {settings.seed}"
    if not paths:
        return f"{head}: as the preset has them today."
    rows = [[path, _text(_at(values, path)), _text(_at(usual, path))] for path in paths]
    return f"{head}, and:\n{_table(('setting', 'here', 'preset today'), rows)}"


def _metrics(record: Record) -> str:
    splits = list(dict.fromkeys(metric.split for metric in record.metrics))
    names = dict.fromkeys((metric.name, metric.unit) for metric in record.metrics)
    rows = [
        [f"{name} ({unit})" if unit else name, *(_metric(record, name, s) for s in splits)]
        for name, unit in names
    ]
    return _table(("", *(split.replace("_", " ") for split in splits)), rows)


def _metric(record: Record, name: str, split: str) -> str:
    value = record.value(name, split)
    if value is None:
        return _ABSENT
    return f"{value:,.{METRICS[name].digits}f}" if name in METRICS else f"{value:g}"


def _routing(record: Record) -> str:
    names = list(dict.fromkeys(n for layer in record.routing for n in layer if n != "load"))
    rows = []
    for layer in record.routing:
        load = layer.get("load") or []
        total = sum(load)
        least, most = (f"{f(load) / total:.2%}" if total else _ABSENT for f in (min, max))
        rows.append([*(_text(layer.get(name)) for name in names), str(len(load)), least, most])
    header = [name.replace("_", " ") for name in names]
    return _table((*header, "experts", "least load", "most load"), rows)


def _origin(record: Record) -> Iterator[list[str]]:
    yield ["started", f"{record.started}, {record.wall_s:g} s"]
    steps: dict[str, set[int]] = {}
    for metric in record.metrics:
        steps.setdefault(metric.split, set()).add(metric.step)
    for split, at in steps.items():
        many = f"{len(at)} times, last" if len(at) > 1 else "once,"
        yield [f"{split.replace('_', ' ')} read", f"{many} after step {max(at)}"]
    commit = record.code.commit or "none: not run from a checkout"
    yield ["commit", f"{commit}{', changed since' if record.code.dirty else ''}"]
    yield ["code", f"digest {record.code.digest or 'not recorded'}"]
    yield ["machine", ", ".join(f"{n} {v}" for n, v in record.machine.items() if v is not None)]
    yield ["device", f"{record.device}, {record.threads} thread(s)"]
    yield ["versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())]
    yield ["backends", ", ".join(f"{op}: {n}" for op, n in record.backends.items()) or "no MoE"]
    counts = (f"{n:,} {what.replace('_', ' ')}" for what, n in record.parameters.items())
    yield ["parameters", ", ".join(counts)]
    if record.peak_rss_mib is not None:
        yield ["peak RSS", f"{record.peak_rss_mib:.0f} MiB"]


def compare_records(a: Record, b: Record) -> str:
    """Return what differs between two records: settings, code, machine, then metrics."""
    left, right = (_comparable(record) for record in (a, b))
    parts = []
    for title in left:
        rows = [
            [path, _text(x), _text(y), *([_change(x, y)] if title == "Metrics" else [])]
            for path, x, y in _differing_values(left[title], right[title])
        ]
        header = [title.lower(), a.run_id, b.run_id]
        header += ["second less first"] if title == "Metrics" else []
        parts.append(_section(title, _table(header, rows)) or f"{title}: the same")
    return "\n\n".join(parts) + "\n"


def _differing_values(a: dict[str, Any], b: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, value in a, value in b); a section that one of them lacks value by value."""
    for path in differing(a, b):
        x, y = _at(a, path), _at(b, path)
        if isinstance(x, dict) or isinstance(y, dict):
            inside = _flat(x if isinstance(x, dict) else y, f"{path}.")
            for name, value in inside:
                yield (name, value, y) if isinstance(x, dict) else (name, x, value)
        else:
            yield path, x, y


def _comparable(record: Record) -> dict[str, dict[str, Any]]:
    last: dict[str, float | None] = {
        f"{metric.split} {metric.name}": record.value(metric.name, metric.split)
        for metric in record.metrics
    }
    return {
        "Settings": record.settings.model_dump(mode="json"),
        "Code": {**record.code.model_dump(), "backends": record.backends, "build": record.build},
        "Machine": {
            **record.machine, "versions": record.versions, "device": record.device,
            "threads": record.threads,
        },
        "Outcome": {
            "status": record.status, "diverged_at": record.diverged_at,
            "error": record.error and f"{record.error.type}: {record.error.message}",
            "parameters": record.parameters,
        },
        "Metrics": last,
        "Process": {
            "started": record.started, "wall_s": record.wall_s, "peak_rss_mib": record.peak_rss_mib
        },
    }  # fmt: skip


def _change(a: float | None, b: float | None) -> str:
    return _ABSENT if a is None or b is None else f"{b - a:+g}"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _at(values: Any, path: str) -> Any:
    """Return the value at a path of ``differing``, or None; names may hold dots."""
    while isinstance(values, dict):
        head = next((n for n in values if path == n or path.startswith(f"{n}.")), None)
        if head is None:
            return None
        values, path = values[head], path[len(head) + 1 :]
        if not path:
            return values
    return values


def _text(value: Any) -> str:
    if value is None:
        return _ABSENT
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())
