import re
from pathlib import Path

import pytest
import torch

from moge_bench import group_norm
from moge_bench.config import GroupConfig, SwinModelConfig
from moge_bench.methods import METHODS
from moge_bench.models.build import build_moe_layer
from moge_bench.models.cost import cost_of
from moge_bench.models.training_cost import PEAK_FLOPS, UTILISATION, training_cost
from moge_bench.presets import PRESETS, resolve, smoe, swin, tiny, upcycled, vmoe
from moge_bench.presets.smoe import OFFICIAL_LANGUAGE, OFFICIAL_LANGUAGE_TOKENS, on_token_mean
from moge_bench.runs.store import RecordStore
from moge_bench.study.manifest import manifest_path, read_manifest

RESULTS = Path(__file__).parents[2] / "results"

AUX_WEIGHT = 0.01


def test_language_coefficients_on_the_token_mean_are_the_published_ones():
    # docs/method.md: 3.1e-4 released, 3.1e-3 submitted, aux_weight included: 0.01 * 1e-5 * 3072.
    for name, published in (("released", 3.1e-4), ("submitted", 3.1e-3)):
        mean = on_token_mean(OFFICIAL_LANGUAGE[name], OFFICIAL_LANGUAGE_TOKENS)
        assert pytest.approx(published, rel=0.02) == AUX_WEIGHT * mean.weight
        assert mean.sigma == OFFICIAL_LANGUAGE[name].sigma


def test_image_coefficients_on_the_token_mean_are_the_published_ones():
    # V-MoGE-S/16, 256 images of 197 tokens a device: 0.01 * 0.003 * 256 * 197 / 9 = 0.168.
    for weight, published in ((0.003, 0.168), (0.005, 0.280)):
        official = GroupConfig(weight=weight, reduction="official_image")
        mean = on_token_mean(official, 256 * 197)
        assert pytest.approx(published, rel=0.01) == AUX_WEIGHT * mean.weight


@pytest.mark.parametrize("reduction", ["official_language", "official_image", "token_mean"])
def test_the_two_scales_are_the_same_loss(reduction):
    official = OFFICIAL_LANGUAGE["released"].model_copy(update={"reduction": reduction})
    scores = torch.softmax(torch.randn(50, 16, dtype=torch.float64), dim=-1)
    mean = on_token_mean(official, 50)

    def loss(settings):
        return settings.weight * group_norm(
            scores, group_size=settings.size, reduction=settings.reduction, backend="reference"
        )

    torch.testing.assert_close(loss(mean), loss(official))


def flat(values, prefix=""):
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {
            prefix + name: value
        }  # fmt: skip
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_methods_of_a_system_differ_in_what_the_method_says_alone(name):
    """Official unfairness, another learning rate or balance of MoGE, is in no preset's methods."""
    preset = PRESETS[name]
    system = flat(preset.system.model_dump())
    for method in METHODS.values():
        if preset.for_one_method and method.name != preset.method:
            continue
        if method.name == "dense-wide" and isinstance(preset.system.model, SwinModelConfig):
            continue  # its width depends on the stage: refused where k > 1, tested with methods
        weight = {"moe.regularizer_weight": 1.0}  # of those that have a regularizer
        said = {"method", *weight, *method.sets, *preset.tuned.get(method.name, {})}
        if method.name == "dense":  # the blocks that are MoE in the others start as experts do
            said.add("model.expert_init_blocks")
        if method.derives is not None:
            said |= method.derives(preset.system.model_dump()).keys()
        for path, value in flat(resolve(name, method.name, weight).model_dump()).items():
            gone = any(path == drop or path.startswith(f"{drop}.") for drop in method.drops)
            assert gone or path in said or value == system[path], (method.name, path)
    same = [p.name for p in PRESETS.values() if p.system == preset.system]
    assert len({resolve(other, None).run_id for other in same if preset.for_one_method}) <= 1
    assert preset.for_one_method or len({resolve(o, "moge").run_id for o in same}) == 1


UNFAIR = {
    "vmoe-s16": {"training.warmup_steps": 20 * 1251},
    "vit-s16-upcycled-moge": {"training.learning_rate": 1.5e-5},
    "swin-t7-upcycled-moge": {"training.learning_rate": 1.5e-5},
    **{
        name: {"moe.balance": "none"}
        for name in ("smoge-s", "smoge-m", "momentum-smoge-s", "momentum-smoge-m", "adam-smoge-m")
    },
}


def test_the_official_unfairness_has_names_of_its_own_and_no_other():
    assert {name for name in PRESETS if "unfair" in name} == {f"{name}-unfair" for name in UNFAIR}
    for name, settings in UNFAIR.items():
        fair, unfair = (flat(resolve(n).model_dump()) for n in (name, f"{name}-unfair"))
        changed = {path: value for path, value in unfair.items() if value != fair[path]}
        assert changed.pop("preset") == f"{name}-unfair"
        assert changed == settings
        assert "unfair as the authors' configs are" in PRESETS[f"{name}-unfair"].about


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.startswith("tiny-")])
def test_what_a_run_of_a_large_preset_costs_is_what_is_counted(name):
    told = PRESETS[name].cost
    flops, hours = re.fullmatch(
        r"not measured; by count ([\d.e]+) FLOPs, ([\d.]+) hours of an H100 at 30 % .*", told
    ).groups()
    cost = training_cost(resolve(name))
    assert (PEAK_FLOPS, UTILISATION) == (989e12, 0.3)
    assert float(flops) == pytest.approx(cost.flops, rel=0.05)
    assert float(hours) == pytest.approx(cost.gpu_hours, rel=0.05)
    steps = resolve(name).training.steps
    assert f": {steps:,} steps of " in told


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-swin", "tiny-swinv2"])
def test_what_a_tiny_preset_reaches_and_costs_is_what_its_study_found(name):
    """Of the runs of the study that the text names; they are committed."""
    manifest, store = read_manifest(manifest_path(RESULTS, "vision")), RecordStore(RESULTS)
    accuracy, records = {}, []
    for arm in manifest.arms:
        if arm.settings["preset"] == name:
            found = [store.read(run_id) for run_id in arm.runs.values()]
            top1 = [m.value for r in found for m in r.metrics
                    if (m.name, m.split) == ("top1_accuracy", "test")]  # fmt: skip
            accuracy[arm.settings["method"]] = sum(top1) / len(top1)
            records += found
    reached = f"{accuracy['moe']:.1f} % as moe, {accuracy['dense']:.1f} % as dense (n = 5"
    assert reached in PRESETS[name].reaches
    seconds, memory = ([getattr(r, each) for r in records] for each in ("wall_s", "peak_rss_mib"))
    assert PRESETS[name].cost == (
        f"{min(seconds):.0f} to {max(seconds):,.0f} s on one of two shared cores, "
        f"{min(memory):.0f} to {max(memory):,.0f} MiB (results/studies/vision)"
    )


def test_names_of_one_system_resolve_to_the_same_run():
    assert resolve("smoe-s", "moge") == resolve("smoge-s")
    assert resolve("smoge-s", "moe") == resolve("smoe-s")
    assert resolve("dense-s") == resolve("smoe-s", "dense")


@pytest.mark.parametrize("size", ["s", "m"])
@pytest.mark.parametrize("scale", list(OFFICIAL_LANGUAGE))
def test_official_presets_train_the_objective_of_their_token_mean_twins(size, scale):
    alone = {"moe.balance": "none"}  # so that what is compared is lambda * L_group and no more
    official = resolve(f"smoge-{size}-{scale}", None, alone)
    group = on_token_mean(OFFICIAL_LANGUAGE[scale], OFFICIAL_LANGUAGE_TOKENS)
    settings = {f"moe.group.{name}": value for name, value in group.model_dump().items()}
    settings["moe.group.sigma"] = group.sigma.model_dump()
    twin = resolve(f"smoge-{size}", None, {**alone, **settings})
    per_step = official.training.batch_size * official.model.context
    # 96 windows of 256 and 48 of 512: 24,576 tokens a step, on 8 devices of 3072.
    assert per_step // official.training.gradient_accumulation == OFFICIAL_LANGUAGE_TOKENS
    x = torch.randn(OFFICIAL_LANGUAGE_TOKENS, official.model.hidden_size)
    losses, gradients = [], []
    for config in (official, twin):
        torch.manual_seed(0)
        layer = build_moe_layer(config.model, config.moe)
        loss = layer(x)[1].loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(layer.router.gate.weight.grad)
    assert losses[0] > 0
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=float(gradients[0].abs().max()) * 1e-5)


def test_every_language_system_of_the_method_is_there():
    wanted = {"dense-s", "dense-m", "adam-smoe-m", "adam-smoge-m"}
    for method in ("smoe", "smoge"):
        wanted |= {f"{prefix}{method}-{size}" for prefix in ("", "momentum-") for size in "sm"}
    assert wanted <= PRESETS.keys()
    for name in wanted:
        assert resolve(name).method == PRESETS[name].method


_S = {"depth": 3, "hidden_size": 128, "ffn_size": 128, "context": 256, "dropout": 0.7}
_M = {"depth": 6, "hidden_size": 352, "ffn_size": 352, "context": 512, "dropout": 0.1}
_S_RUN = {"steps": 60_000, "batch_size": 96, "warmup_steps": 3000}
_M_RUN = {"steps": 80_000, "batch_size": 48, "warmup_steps": 4000}


@pytest.mark.parametrize("name", [preset.name for preset in smoe.PRESETS])
def test_language_systems_have_the_settings_of_the_method(name):
    config = resolve(name)
    small = re.search("-s(-|$)", name) is not None
    assert (_S if small else _M).items() <= config.model.model_dump().items()
    assert (_S_RUN if small else _M_RUN).items() <= config.training.model_dump().items()
    assert (config.model.num_heads, config.model.activation) == (8, "relu")
    training = config.training
    assert (training.learning_rate, training.schedule) == (1e-3, "constant")
    assert training.weight_decay == 0.0
    assert (config.data.name, config.data.tokenizer) == ("wikitext-103", "words")
    if config.moe is None:
        return
    moe, residual = config.moe, config.moe.residual
    assert (moe.num_experts, moe.top_k, moe.renormalize, moe.noise) == (16, 2, True, False)
    assert moe.blocks == tuple(range(config.model.depth))
    assert moe.aux_weight == 0.01
    kind = "momentum" if "momentum" in name else "adam" if "adam" in name else "plain"
    assert residual.kind == kind
    if kind != "plain":
        assert (residual.mu, residual.gamma2) == (0.7, 1.0)
        assert residual.gamma1 == (0.8 if small else 1.0)
        assert (residual.beta1, residual.beta2) == (0.9, 0.999)
    if moe.group is not None:
        sigma = (10, 1.5, 0.3) if "submitted" in name else (10, 1, 0.2)
        assert (moe.group.sigma.start, moe.group.sigma.end, moe.group.sigma.gamma) == sigma
        assert (moe.group.size, moe.group.stride, moe.group.border) == (3, 1, "valid")


@pytest.mark.parametrize("module", [smoe, swin, tiny, upcycled, vmoe], ids=lambda m: m.__name__)
def test_docstrings_state_the_parameters_of_every_preset(module):
    stated = set(re.findall(r"\d[\d,]{4,}\d", module.__doc__.partition("Parameters in all")[2]))
    built = set()
    for preset in module.PRESETS:
        if not preset.name.endswith(("-released", "-submitted")):  # the loss alone is another
            cost = cost_of(resolve(preset.name))
            counts = {f"{cost.parameters:,}", f"{cost.active_parameters:,}"}
            assert counts <= stated, preset.name
            built |= counts
    assert stated - {"300,000"} == built
