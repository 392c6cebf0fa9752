"""The layer inside what others build around it: compilers, ranks, workers, autocast, torch.func."""

import pytest
import torch
import torch.distributed as dist
from rank_samples import run_ranks
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from moge_bench import MoELayer, group_norm

SIZES = (64, 100, 7, 33, 80)


def make(**settings):
    torch.manual_seed(0)
    return MoELayer(8, 12, 16, 2, group_weight=1.0, **settings)


def objective(layer, x):
    y, aux = layer(x)
    return y.square().sum() + aux.loss


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_every_mode_of_compile_serves_many_batch_sizes_with_two_graphs(mode):
    """torch compiles for the first size, at the second for every size, and then no more."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layer = make(nonfinite="propagate")
    compiled = torch.compile(layer, mode=mode, fullgraph=True)
    for num_tokens in SIZES:
        x = torch.randn(num_tokens, 8)
        results = []
        for call in (compiled, layer):
            layer.zero_grad()
            loss = objective(call, x)
            loss.backward()
            results.append([loss.detach(), *(p.grad.clone() for p in layer.parameters())])
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def tokens_of_rank(layer, rank):
    """Tokens along rows 4 r and 4 r + 1 of the gate: they go to these two experts, more or less."""
    rows = layer.router.gate.weight.detach()[4 * rank : 4 * rank + 2]
    return 100 * rows.repeat(6, 1)


def step_of_rank():
    layer = make()
    parallel = DistributedDataParallel(layer)  # it must live until the backward pass
    y, aux = parallel(tokens_of_rank(layer, dist.get_rank()))
    (y.square().sum() + aux.loss).backward()
    return [p.grad for p in layer.parameters()]


def test_ddp_where_experts_get_no_token_on_a_rank_or_on_any():
    """Their gradient is 0 and not None, so DDP needs no find_unused_parameters."""
    first, second = run_ranks(2, step_of_rank)
    alone, loads = [], []
    for rank in range(2):
        layer = make()
        x = tokens_of_rank(layer, rank)
        objective(layer, x).backward()
        loads.append(layer(x)[1].routing.load)
        alone.append([p.grad for p in layer.parameters()])
    silent = [(load == 0).sum() for load in (*loads, loads[0] + loads[1])]
    assert min(silent) > 0 and not torch.equal(loads[0] == 0, loads[1] == 0)
    for both, again, a, b in zip(first, second, *alone, strict=True):
        torch.testing.assert_close(both, (a + b) / 2)
        assert torch.equal(both, again)


class Scored(Dataset):
    """A data set whose items a worker routes and scores."""

    def __init__(self):
        self.layer = make().eval()

    def __len__(self):
        return 2

    def __getitem__(self, index):
        torch.manual_seed(index)
        x = torch.randn(300, 8)
        with torch.no_grad():
            y, aux = self.layer(x)
            return y.sum(), aux.loss, group_norm(aux.routing.scores)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader_compute_the_same(context):
    """A worker inherits no thread pool: an op that waited for the parent's would never end."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        data = Scored()
        expected = [data[index] for index in range(2)]  # the parent's threads are there now
        loader = DataLoader(
            data, batch_size=None, num_workers=1, multiprocessing_context=context, timeout=120
        )
        found = list(loader)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected)


def test_autocast_leaves_the_routing_as_it_is():
    """The gate and the losses are float32 there too; only the experts multiply in bfloat16."""
    layer, x = make(), torch.randn(20, 8)
    y, aux = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        z, other = layer(x)
    assert torch.equal(other.routing.experts, aux.routing.experts)
    assert torch.equal(other.loss, aux.loss) and other.loss.dtype == torch.float32
    torch.testing.assert_close(z.float(), y, rtol=0.05, atol=0.05)  # 8 bits of mantissa
    assert not torch.equal(z.float(), y)
    (z.float().square().sum() + other.loss).backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in layer.parameters())


def test_torch_func_needs_the_reference_and_says_so():
    """Gradients by torch.func of all parameters, as backward gives them."""
    layer, x = make(backend="reference").double(), torch.randn(20, 8, dtype=torch.float64)
    objective(layer, x).backward()
    parameters = dict(layer.named_parameters())

    def loss(parameters, module):
        y, aux = torch.func.functional_call(module, parameters, (x,))
        return y.square().sum() + aux.loss

    found = torch.func.grad(loss)(parameters, layer)
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        torch.func.grad(loss)(parameters, make().double())
