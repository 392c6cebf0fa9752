"""Writes results/anchors.json: what simple models reach on the data of tiny-vit and tiny-lm."""

import json
from pathlib import Path

from moge_bench.study.anchors import image_anchor, text_anchor
from moge_bench.system import write_atomically

PATH = Path(__file__).resolve().parents[1] / "results/anchors.json"


def main() -> None:
    """Fit both models, about two minutes on one core, and write what they reach."""
    anchors = [
        {
            "data": "fashion-mnist-10k", "metric": "top1_accuracy", "unit": "%",
            "model": "logistic regression on pixels", **image_anchor("fashion-mnist-10k"),
        },
        {
            "data": "state-of-the-union", "metric": "perplexity", "unit": "",
            "model": "interpolated Kneser-Ney 5-gram, 2,048 BPE tokens",
            **text_anchor("state-of-the-union"),
        },
    ]  # fmt: skip
    text = json.dumps({"command": "python -m scripts.anchors", "anchors": anchors}, indent=1)
    write_atomically(PATH, f"{text}\n".encode())


if __name__ == "__main__":
    main()
