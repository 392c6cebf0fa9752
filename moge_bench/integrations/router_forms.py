"""Where the routers of a transformers model are, and what each of them returns.

One list, FORMS, by the class name of the router module, as transformers 5.6 to 5.23 have them.
Legend: T tokens, N experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

ScoreFunction = Callable[[torch.Tensor], torch.Tensor]
SCORE_FUNCTIONS: dict[str, ScoreFunction] = {
    "softmax": lambda logits: torch.softmax(logits, dim=-1),
    "sigmoid": torch.sigmoid,
    "scores": lambda scores: scores,
}


@dataclass(frozen=True)
class RouterForm:
    """What a router module returns, and how it becomes the scores z of docs/method.md.

    Args:
        score_function: "softmax" or "sigmoid" of the logits that the router reports; "scores"
            where it reports z itself; ".name" for the router's own attribute of that name, which
            is one of these words or a function of the logits.
        index: where in the tuple that the router returns the logits stand; a router that returns
            one tensor returns the logits.
    """

    score_function: str
    index: int = 0

    def __post_init__(self) -> None:
        if self.score_function not in SCORE_FUNCTIONS and self.score_function[:1] != ".":
            raise ValueError(
                f"score_function must be one of {[*SCORE_FUNCTIONS]} or '.attribute' of the "
                f"router, got {self.score_function!r}"
            )


SOFTMAX = RouterForm("softmax")
SIGMOID = RouterForm("sigmoid")

# The scores are those that the router makes its weights of; what limits or biases the choice
# (DeepSeek's expert groups, correction biases) is not in them. A class that derives from one of
# these has its form.
FORMS: dict[str, RouterForm] = {
    **dict.fromkeys(
        [
            "AriaTextTopKRouter", "DbrxRouter", "DeepseekOcr2TextTopkRouter",
            "DeepseekV2TopkRouter", "Ernie4_5_MoeTopKRouter", "Ernie4_5_VLMoeMoeTopKRouter",
            "FlexOlmoTopKRouter", "GptOssTopKRouter", "GraniteMoeHybridTopKRouter",
            "GraniteMoeSWATopKRouter", "GraniteMoeSharedTopKRouter", "GraniteMoeTopKRouter",
            "HunYuanMoEV1Gate", "JambaTopKRouter", "MellumTopKRouter", "MiniMaxTopKRouter",
            "Mistral4TopkRouter", "MistralLarge4TextTopkRouter", "MixtralTopKRouter",
            "OlmoeTopKRouter", "OpenAIPrivacyFilterTopKRouter", "PhimoeTopKRouter",
            "Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter", "Qwen3NextTopKRouter",
            "Qwen3OmniMoeTalkerTextTopKRouter", "Qwen3OmniMoeTextTopKRouter",
            "Qwen3OmniMoeThinkerTextTopKRouter", "Qwen3VLMoeTextTopKRouter",
            "Qwen3_5MoeTopKRouter", "Qwen4ExpTextTopKRouter", "UnlimitedOcrTextTopkRouter",
        ],
        SOFTMAX,
    ),
    **dict.fromkeys(
        [
            "AXK1TopkRouter", "AXK2TopkRouter", "AfmoeTokenChoiceRouter",
            "BailingHybridTopkRouter", "BeamTopKRouter", "DeepseekV32TopkRouter",
            "DeepseekV3TopkRouter", "Dots1TopkRouter", "Dots3NoteTextTopkRouter",
            "Dots3NoteVisionTopKRouter", "ExaoneMoeTopkRouter", "FlintTopKRouter",
            "Glm4MoeLiteTopkRouter", "Glm4MoeTopkRouter", "Glm4vMoeTextTopkRouter",
            "Glm5NextTextTopkRouter", "GlmMoeDsaTopkRouter", "HYV3TopKRouter", "HYV4TopkRouter",
            "InklingTopkRouter", "KimiLinearTopkRouter", "Kolibri1TopKRouter", "LagunaTopKRouter",
            "Lfm2MoeTopKRouter", "MiMoV2FlashTopkRouter", "MiniMaxM2TopKRouter",
            "MiniMaxM3VLTopKRouter", "NemotronHTopkRouter", "SolarOpenTopkRouter",
            "Step3p7TopKRouter",
        ],
        SIGMOID,
    ),
    "Cohere2MoeTopKRouter": RouterForm(".expert_selection_fn"),
    "DeepseekV4TopKRouter": RouterForm(".score_fn"),
    "DiffusionGemmaTextRouter": RouterForm("scores"),
    "Gemma4TextRouter": RouterForm("scores"),
    "Inkling2TopKRouter": RouterForm(".score_fn"),
    "JetMoeTopKGating": RouterForm("softmax", 4),
    "Llama4Router": RouterForm("sigmoid", 1),
    "MuseSparkTopkRouter": RouterForm(".scoring_function"),
    "NllbMoeTop2Router": RouterForm("softmax", 2),
    "SwitchTransformersTop1Router": RouterForm("softmax", 2),
}  # fmt: skip

# Routers that are known and left alone. A model's other routers are taken.
LEFT_OUT: dict[str, str] = {
    "DeepseekV4HashRouter": "the token's id chooses its experts, not the scores",
    "DogeCDMoE": "its scores are of two sets of product keys, not of the experts",
    "LongcatFlashTopkRouter": "some of its experts pass the token on, and have no place on a map",
    "ZayaRouter": "its last score is that of no expert at all",
}


def find_routers(
    model: nn.Module, forms: Mapping[str, RouterForm] | None = None
) -> dict[str, tuple[nn.Module, RouterForm]]:
    """Return {dotted name: (router module, its form)} of ``model``, in the order of its modules.

    ``forms`` adds to FORMS, and comes before it: its keys are class names, or the end of the
    dotted name of a module (``"mlp.gate"``). Raises ValueError if there is no router, naming what
    looks like one; and for a key of ``forms`` that no module has.
    """
    own = dict(forms or {})
    for key, given in own.items():
        if not isinstance(given, RouterForm):
            raise TypeError(f"forms[{key!r}] must be a RouterForm, got {given!r}")
    used: set[str] = set()
    found: dict[str, tuple[nn.Module, RouterForm]] = {}
    for name, module in model.named_modules():
        keys = [cls.__name__ for cls in type(module).__mro__]
        ends = [key for key in own if key in keys or f".{name}".endswith(f".{key}")]
        used.update(ends)
        form = own[ends[0]] if ends else next((FORMS[k] for k in keys if k in FORMS), None)
        if form is not None:
            found[name] = module, form
    if unused := own.keys() - used:
        raise ValueError(f"forms names {sorted(unused)}, and {type(model).__name__} has no such")
    if not found:
        raise ValueError(_nothing_found(model))
    return found


def _nothing_found(model: nn.Module) -> str:
    looks: dict[str, str] = {}
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in LEFT_OUT:
            left[kind] = LEFT_OUT[kind]
        elif any(
            word in f"{name.rpartition('.')[2]} {kind}".lower() for word in ("router", "gate")
        ):
            looks.setdefault(kind, name)
    message = f"model must have routers of a known kind, and {type(model).__name__} has none. "
    if left:
        message += "Left out: " + "; ".join(f"{k}, since {why}" for k, why in left.items()) + ". "
    if looks:
        message += (
            "What looks like one: "
            + ", ".join(f"{kind} at {name!r}" for kind, name in [*looks.items()][:8])
            + ". If it is a router, say what it returns: "
            "forms={'its class, or the end of its name': RouterForm('softmax')}. "
        )
    return message + "Known: moge_bench.integrations.router_forms.FORMS"


def count_experts(name: str, router: nn.Module) -> int:
    """Return N of a router module: its ``num_experts``, or the rows of its one weight matrix."""
    for attribute in ("num_experts", "n_routed_experts", "num_local_experts"):
        number = getattr(router, attribute, None)
        if isinstance(number, int):
            return number
    rows = {p.shape[0] for p in router.parameters() if p.dim() == 2}
    if len(rows) == 1:
        return rows.pop()
    raise ValueError(
        f"the router {name!r} ({type(router).__name__}) must tell its number of experts by an "
        f"attribute num_experts or by one weight matrix (N, hidden_size), got {sorted(rows)} rows"
    )


def score_function_of(form: RouterForm, router: nn.Module) -> str | ScoreFunction:
    """Return the word of SCORE_FUNCTIONS, or the function of the router's own, of a form."""
    if not form.score_function.startswith("."):
        return form.score_function
    function = getattr(router, form.score_function[1:])
    if function in SCORE_FUNCTIONS or callable(function):
        return function
    raise ValueError(
        f"{type(router).__name__}{form.score_function} must be one of {[*SCORE_FUNCTIONS]} or a "
        f"function of the logits, got {function!r}"
    )


def scores_of(function: str | ScoreFunction, reported: torch.Tensor) -> torch.Tensor:
    """Return z, (T, N), float32 or float64, of what a router ``reported``, (..., N)."""
    reported = reported.reshape(-1, reported.shape[-1])
    if reported.dtype != torch.float64:
        reported = reported.float()
    return SCORE_FUNCTIONS[function](reported) if isinstance(function, str) else function(reported)


def check_kind(name: str, form: RouterForm, reported: torch.Tensor) -> None:
    """Refuse logits where the form says scores, and scores where it says logits.

    ``reported`` is (..., N). Scores of a softmax are at least 0 and sum to 1 in every row; logits
    of a model do not. Reads values, so that it waits for the device. Raises ValueError.
    """
    rows = reported.detach().reshape(-1, reported.shape[-1]).float()
    if not rows.numel() or rows.shape[1] == 1:
        return
    simplex = bool((rows >= 0).all() & ((rows.sum(-1) - 1).abs() < 1e-2).all())
    if form.score_function == "scores" and bool((rows < 0).any()):
        raise ValueError(
            f"the router {name!r} must report scores, which its form says, and it reports negative "
            "numbers: if they are logits, pass forms={...: RouterForm('softmax')} or 'sigmoid'"
        )
    if form.score_function != "scores" and simplex:
        raise ValueError(
            f"the router {name!r} must report logits, which its form says, and its rows are "
            "at least 0 and sum to 1, as scores do: pass forms={...: RouterForm('scores')}"
        )
