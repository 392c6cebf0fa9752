"""Fine-tune an MoE model of transformers with the group loss; draw its map before and after.

    python examples/finetune_moe.py --steps 60 --figure map.png

A small OLMoE with random weights, so that nothing is downloaded: another model takes its place by
``from_pretrained``. The text is the State of the Union addresses, byte by byte. It is trained
twice, without the loss and with it, for training alone makes experts alike too. The picture shows
what an expert's scores have in common with those of its neighbours on the map. One seed, a minute
each: what to expect, not evidence.
"""

import argparse
import json
import lzma
from importlib import resources
from pathlib import Path

import matplotlib
import numpy as np
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM, Trainer, TrainingArguments

from moge_bench import SigmaSchedule
from moge_bench.integrations.transformers import (
    GroupSparsityCallback,
    attach_group_sparsity,
    measure_dose,
)

ROWS, COLS = 4, 4
BLOCK = 64


def make_model() -> OlmoeForCausalLM:
    """Return a model of bytes: two layers of 16 experts, two a token."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, num_experts=ROWS * COLS,
        num_experts_per_tok=2, max_position_embeddings=BLOCK, output_router_logits=True,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return OlmoeForCausalLM(config)


def read_blocks(count: int) -> list[dict[str, torch.Tensor]]:
    """Return ``count`` blocks of text as the Trainer takes them."""
    path = resources.files("moge_bench.data") / "assets/state_of_the_union.jsonl.xz"
    with path.open("rb") as packed, lzma.open(packed, "rt", encoding="utf-8") as lines:
        text = "".join(json.loads(line)["text"] for _, line in zip(range(20), lines, strict=False))
    tokens = torch.tensor(list(text.encode()[: count * BLOCK])).view(-1, BLOCK)
    return [{"input_ids": row, "labels": row} for row in tokens]


def likeness(model: OlmoeForCausalLM, blocks: list[dict[str, torch.Tensor]]) -> np.ndarray:
    """Return the correlations over tokens of the first layer's scores, (N, N)."""
    model.eval()
    with torch.no_grad():
        batch = torch.stack([block["input_ids"] for block in blocks])
        logits = model(batch.to(model.device)).router_logits[0]  # (T, N): raw logits
    return np.corrcoef(logits.softmax(-1).double().cpu().numpy().T)


def neighbours() -> np.ndarray:
    """Return which experts are beside each other, (N, N) bool; the map is a torus."""
    places = np.indices((ROWS, COLS)).reshape(2, -1)
    steps = np.abs(places[:, :, None] - places[:, None, :])
    steps = np.minimum(steps, np.array([ROWS, COLS])[:, None, None] - steps)
    return steps.sum(0) == 1


def draw(correlations: dict[str, np.ndarray], path: Path) -> None:
    """Draw the map: an expert's colour is its mean correlation with its four neighbours."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(correlations), layout="constrained", figsize=(9, 3.2))
    beside = neighbours()
    for axis, (name, values) in zip(axes, correlations.items(), strict=True):
        means = (values * beside).sum(1) / beside.sum(1)
        picture = axis.imshow(means.reshape(ROWS, COLS), vmin=-1, vmax=1, cmap="RdBu_r")
        axis.set(title=f"{name}: {means.mean():+.2f}", xticks=[], yticks=[])
    figure.colorbar(picture, ax=axes, label="correlation with neighbours")
    figure.savefig(path, dpi=150)


def train(model: OlmoeForCausalLM, blocks: list[dict[str, torch.Tensor]], dose: float,
          steps: int, folder: str) -> None:  # fmt: skip
    """Train ``model`` with the loss at ``dose`` (0: without) and take the loss off again."""
    handle = attach_group_sparsity(
        model, group_weight=1.0, sigma=SigmaSchedule(3.0, 1.0, 0.2, total_steps=steps),
        map_shape=(ROWS, COLS), border="torus", unit_energy=True,
    )  # fmt: skip
    batch = {key: torch.stack([block[key] for block in blocks[:8]]) for key in blocks[0]}
    handle.set_group_weight(measure_dose(model.train(), **batch).weight_for(dose))
    arguments = TrainingArguments(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=3e-3,
        logging_steps=max(steps // 10, 1), save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=blocks, callbacks=[GroupSparsityCallback()]).train()
    handle.remove()


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train; return the mean correlation of neighbours less that of the others."""
    parser = argparse.ArgumentParser(description="Fine-tune an MoE with the group loss.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--dose", type=float, default=0.3, help="gradient ratio at the gates")
    parser.add_argument("--figure", type=Path, default=Path("map.png"))
    parser.add_argument("--output", default="finetuned", help="folder of the Trainer")
    options = parser.parse_args(argv)

    blocks = read_blocks(512)
    correlations = {"before": likeness(make_model(), blocks[:16])}
    for name, dose in (("without the loss", 0.0), ("with the loss", options.dose)):
        model = make_model()
        train(model, blocks, dose, options.steps, options.output)
        correlations[name] = likeness(model, blocks[:16])
    draw(correlations, options.figure)
    beside, others = neighbours(), ~neighbours() & ~np.eye(ROWS * COLS, dtype=bool)
    means = {name: float(values[beside].mean() - values[others].mean())
             for name, values in correlations.items()}  # fmt: skip
    print(f"correlation of neighbours less that of others: {means}; map in {options.figure}")
    return means


if __name__ == "__main__":
    main()
