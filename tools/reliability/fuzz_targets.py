"""What is fuzzed: every reader of a file that others write, as a function of the bytes in it."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from moge_bench.analysis.probe import read_probe
from moge_bench.data.local_text import read_documents
from moge_bench.data.tokenizers import make_tokenizer
from moge_bench.perf import acceptance
from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import read_record
from moge_bench.study.grid import load_grid
from moge_bench.study.manifest import read_manifest
from moge_bench.training.checkpoint import load_checkpoint, save_checkpoint
from moge_bench.training.probes import VERSION, ProbeHeader

ROOT = Path(__file__).resolve().parents[2]
# Deeper than any parser goes: a reader must say so in a sentence of its own.
_DEEP = b"[" * 20_000
_DEEP_YAML = b"[" * 2_000  # PyYAML is in Python, which recurses 1,000 deep
TEXT_SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
# An error of what the file holds is a ValueError; one of the disk, which the command line says in a
# sentence too, an OSError. RecursionError is a RuntimeError, and no sentence of ours.
ALLOWED = (ValueError, OSError)


@dataclass(frozen=True)
class Target:
    """``read(data, folder)`` reads ``data`` as a file's bytes; ``seeds`` are where it begins."""

    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]


def _written(data: bytes, path: Path) -> Path:
    path.write_bytes(data)
    return path


def _committed(*patterns: str, most: int = 6) -> Callable[[], list[bytes]]:
    """Return a function that reads the first, and smallest, committed files of these patterns."""

    def read() -> list[bytes]:
        found = []
        for pattern in patterns:
            paths = sorted(ROOT.glob(pattern), key=lambda path: (path.stat().st_size, path.name))
            found += [path.read_bytes() for path in paths[:most]]
        return [*found, _DEEP_YAML if patterns[0].endswith("yaml") else _DEEP]

    return read


def _read_text(data: bytes, folder: Path) -> object:
    """Read ``data``, its first byte aside, which tells the suffix, as a file of documents."""
    suffix = TEXT_SUFFIXES[data[0] % len(TEXT_SUFFIXES)] if data else ".txt"
    return read_documents(_written(data[1:], folder / f"documents{suffix}"))


def _texts() -> list[bytes]:
    line = '{"text": "A line \u00e9\u4e2d."}'
    documents = [
        "A document.\nAnd a line.", f"{line}\n{line}\n", f"[{line}, {line}]", "text,n\na,1\n",
        "text\tn\na\t1\n",
    ]  # fmt: skip
    found = [bytes([i]) + text.encode() for i, text in enumerate(documents)]
    found += [bytes([i]) + gzip.compress(text.encode()) for i, text in enumerate(documents)]
    return [*found, b"\x00\xff\xfe" + documents[0].encode("utf-16-le"), b"\x01" + _DEEP]


def _tokenize(data: bytes, _folder: Path) -> object:
    text = data.decode("utf-8", errors="replace")
    kind = ("bytes", "words", "bpe")[len(data) % 3]
    return make_tokenizer(kind, [text], 300).encode([text, text[::-1]])


def _checkpoint() -> list[bytes]:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_checkpoint(path, 1, model, optimizer, None, torch.zeros(1), {}, [{}])
        whole = path.read_bytes()
    return [whole, whole[:100]]


def _probe() -> list[bytes]:
    from safetensors.torch import save

    whole = ProbeHeader(VERSION, "0" * 16, "moe", 0, "images", 1, "gelu", {}, None, None, {})
    headers = (
        json.dumps(asdict(whole)),
        "{}",
        '{"version": 2}',
        "[]",
        '{"version": 1, "map_shapes": {}}',
        _DEEP.decode(),
    )
    return [save({"labels": torch.zeros(1)}, {"probe": header}) for header in headers]


def _parse_acceptance(data: bytes, _folder: Path) -> object:
    return acceptance.parse(data.decode("utf-8", errors="replace"))


TARGETS = {
    "grid": Target(
        lambda data, folder: load_grid(_written(data, folder / "grid.yaml")),
        _committed("ablations/*.yaml"),
    ),
    "record": Target(
        lambda data, folder: read_record(_written(data, folder / "0123456789abcdef.json")),
        _committed("results/runs/*/*.json"),
    ),
    "manifest": Target(
        lambda data, folder: read_manifest(_written(data, folder / "manifest.json")),
        _committed("results/studies/*/manifest.json"),
    ),
    "speed": Target(
        lambda data, folder: SpeedStore(_written(data, folder / "speed/a.json").parents[1]).passes(
            "a"
        ),
        _committed("results/speed/*.json"),
    ),
    "text": Target(_read_text, _texts),
    "tokenizer": Target(_tokenize, lambda: [b"words and words", "\u4e2d \U0001f600".encode()]),
    "checkpoint": Target(
        lambda data, folder: load_checkpoint(_written(data, folder / "state.safetensors")),
        _checkpoint,
    ),
    "probe": Target(
        lambda data, folder: read_probe(_written(data, folder / "probe.safetensors")), _probe
    ),
    "acceptance": Target(
        _parse_acceptance, _committed("results/perf/accepted.yaml", "ablations/quick.yaml")
    ),
}
