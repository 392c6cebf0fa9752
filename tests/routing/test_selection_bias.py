"""Loss-free balancing: forward counts, one call a step moves the bias (docs/method.md)."""

import copy

import pytest
import torch
import torch.distributed as dist
from rank_samples import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from moge_bench import TopographicRouter, update_selection_bias


def make(num_experts=4, **settings):
    torch.manual_seed(0)
    settings = {"group_size": None, "bias_update_rate": 0.01, **settings}
    return TopographicRouter(8, num_experts, **settings)


def count(router, load):
    router._load_counts.copy_(torch.tensor(load))


def test_bias_moves_once_a_step_by_the_sign_of_the_missing_load():
    router = make()
    count(router, [3, 1, 2, 2])  # mean 2
    update_selection_bias(nn.Sequential(router))
    assert router.selection_bias.tolist() == pytest.approx([-0.01, 0.01, 0, 0])
    update_selection_bias(router)  # nothing was counted since
    assert router.selection_bias.tolist() == pytest.approx([-0.01, 0.01, 0, 0])


def test_loads_that_float32_cannot_tell_apart():
    router = make(num_experts=2)
    count(router, [2**25 + 1, 2**25])  # float32 holds 24 bits: both would be 2^25
    update_selection_bias(router)
    assert router.selection_bias.tolist() == pytest.approx([-0.01, 0.01])


def test_forward_counts_in_training_only_and_moves_nothing():
    router, x = make(top_k=2), torch.randn(30, 8)
    loads = [router(x).load, router(x).load]
    router.eval()(x)
    assert torch.count_nonzero(router.selection_bias) == 0
    counts = router.take_load_counts()
    assert torch.equal(counts, loads[0] + loads[1])
    assert int(counts.sum()) == 2 * 30 * 2  # passes, tokens, choices
    assert int(router.take_load_counts().sum()) == 0


def test_padding_is_not_counted():
    router = make(top_k=2)
    router(torch.randn(30, 8), torch.arange(30) < 12)
    assert int(router.take_load_counts().sum()) == 12 * 2


def test_balances_and_touches_no_weight():
    x, router = torch.randn(256, 8), make(16, top_k=2, bias_update_rate=0.001)
    first = router(x).load.double().std()
    for _ in range(200):
        last = router(x)
        update_selection_bias(router)
    assert last.load.double().std() < first / 2
    chosen = last.scores.gather(1, last.experts)
    torch.testing.assert_close(last.weights, chosen / chosen.sum(1, keepdim=True))


@pytest.mark.parametrize("backend", ["reference", "extension"])
def test_bias_is_added_to_the_scores(backend):
    # Scores 0.5, 0.3, 0.2; with the bias 0.5, 0.3, 0.45: the third comes second.
    router = TopographicRouter(3, 3, group_size=None, bias_update_rate=1.0, backend=backend)
    router.gate.weight.data = torch.tensor([[0.5], [0.3], [0.2]]).log().expand(3, 3) / 3
    router.selection_bias[2] = 0.25
    routing = router(torch.ones(1, 3))
    assert routing.experts.tolist() == [[0, 2]]
    assert routing.weights[0].tolist() == pytest.approx([0.5 / 0.7, 0.2 / 0.7])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("renormalize", [False, True])
def test_backends_agree(masked, renormalize):
    x, mask = torch.randn(200, 8), torch.arange(200) % 3 > 0 if masked else None
    routings = []
    for backend in ("reference", "extension"):
        router = make(
            16, top_k=2, group_size=3, noise=True, renormalize=renormalize, backend=backend
        )
        router.selection_bias.copy_(torch.linspace(-0.1, 0.1, 16))
        torch.manual_seed(2)
        routings.append(router(x, mask))
    reference, extension = routings
    for name in ("experts", "load", "first_load"):
        assert torch.equal(getattr(reference, name), getattr(extension, name)), name
    for name in ("weights", "importance", "group_loss", "scores"):
        torch.testing.assert_close(getattr(reference, name), getattr(extension, name))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_counts_nothing_and_chooses_the_same(use_reentrant):
    router, x = make(noise=True), torch.randn(64, 8, requires_grad=True)
    chosen = []

    def weights(x):
        routing = router(x)
        chosen.append(routing.experts)
        return routing.weights

    with set_checkpoint_early_stop(False):  # else it stops before the second append
        checkpoint(weights, x, use_reentrant=use_reentrant).square().sum().backward()
    assert torch.equal(*chosen)
    assert int(router.take_load_counts().sum()) == 64 * 2


def test_recomputation_of_a_compiled_router_counts_nothing():
    router, x = make(), torch.randn(64, 8, requires_grad=True)
    compiled = torch.compile(lambda x: router(x).weights, backend="aot_eager", fullgraph=True)
    checkpoint(compiled, x, use_reentrant=False).square().sum().backward()
    assert int(router.take_load_counts().sum()) == 64 * 2


@pytest.mark.parametrize(
    "cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()]
)
def test_bias_keeps_its_float32_values_whatever_the_module_is_cast_to(cast):
    router = make()
    router.selection_bias.fill_(0.1)
    cast(router)
    assert router.selection_bias.dtype == torch.float32
    assert torch.equal(router.selection_bias, torch.full((4,), 0.1))


def test_two_thousand_steps_in_bfloat16_go_all_the_way():
    router = make(bias_update_rate=1e-3).bfloat16()
    for _ in range(2000):
        count(router, [1, 0, 0, 0])
        update_selection_bias(router)
    # 2000 steps of 1e-3; bfloat16 would have stopped at 0.25, where a step is half a unit.
    assert router.selection_bias.tolist() == pytest.approx([-2, 2, 2, 2], rel=1e-4)


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_in_bfloat16_leaves_the_bias_float32(assign):
    saved = {name: tensor.bfloat16() for name, tensor in make().state_dict().items()}
    saved["selection_bias"].fill_(0.5)
    router = make()
    router.load_state_dict(saved, assign=assign)
    assert router.selection_bias.dtype == torch.float32
    assert router.selection_bias.tolist() == [0.5] * 4


def test_bias_of_version_1_is_loaded_with_a_warning():
    saved = make().state_dict()
    saved["selection_bias"].fill_(0.5)
    saved._metadata[""]["version"] = 1
    with pytest.warns(RuntimeWarning, match="saved by version 1, which added it to the logits"):
        make().load_state_dict(saved)


def test_copies_keep_bias_and_counts():
    router = make()
    count(router, [3, 1, 2, 2])
    copied = copy.deepcopy(router)
    update_selection_bias(router)
    update_selection_bias(copied)
    assert torch.equal(router.selection_bias, copied.selection_bias)


def test_module_without_such_a_router():
    with pytest.raises(ValueError, match="bias_update_rate > 0, Linear has none"):
        update_selection_bias(nn.Linear(2, 2))


def test_negative_rate():
    with pytest.raises(ValueError, match="bias_update_rate must be at least 0, got -1"):
        make(bias_update_rate=-1)


class Weights(nn.Module):
    """DDP wants a module whose output is a tensor."""

    def __init__(self):
        super().__init__()
        self.router = make(2, top_k=1, renormalize=False, bias_update_rate=0.1)

    def forward(self, x):
        return self.router(x).weights


def train_two_steps():
    model, rank = Weights(), dist.get_rank()
    ddp = DistributedDataParallel(model)
    # A token along a row of the gate goes to that row's expert: rank 0 sends 16 to expert 0, rank
    # 1 sends 24 to expert 1.
    x = 100 * model.router.gate.weight.detach()[rank].expand(16 + 8 * rank, 8)
    for _ in range(2):
        for _ in range(3):  # from the second on DDP sends rank 0's buffers to all
            ddp(x).sum().backward()
        update_selection_bias(ddp)
    return model.router.selection_bias


def test_bias_follows_the_load_of_all_ranks_and_is_equal_on_them():
    biases = run_ranks(2, train_two_steps)
    # 3 * 16 choices against 3 * 24: expert 0 lies below the mean on both ranks, 2 * 0.1 up.
    torch.testing.assert_close(biases[0], torch.tensor([0.2, -0.2]))
    assert torch.equal(*biases)
