import gc

import pytest
import torch

from moge_bench.perf.memory import MIB, peak_tensor_bytes


def floats(mib):
    return torch.empty(mib * MIB // 4)


def test_a_tensor_and_a_temporary():
    def setup():
        kept = floats(1)

        def call():
            assert kept.numel()
            floats(2)

        return call

    assert peak_tensor_bytes(setup) == 3 * MIB


def test_freed_before_the_next_is_not_counted_twice():
    def setup():
        def call():
            a = floats(2)
            b = floats(1)
            del a
            c = floats(1)
            return b, c

        return call

    # 2, 3, then 1, then 2: the peak is 3.
    assert peak_tensor_bytes(setup) == 3 * MIB


def test_gradients_and_optimiser_state_count():
    def setup():
        weight = torch.nn.Parameter(floats(1))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)

        def call():
            optimizer.zero_grad(set_to_none=False)
            weight.backward(gradient=weight.detach())
            optimizer.step()

        return call

    # Weight, gradient, momentum buffer; the incoming gradient is the weight itself.
    assert 3 * MIB <= peak_tensor_bytes(setup) <= 4 * MIB + 1024


def test_garbage_from_before_is_not_taken_off():
    class Ring:
        def __init__(self):
            self.me, self.held = self, floats(1)

    Ring(), Ring()  # cycles, which the collector alone frees: before the count, not within it

    def setup():
        assert not gc.isenabled()
        return lambda: floats(2)

    assert peak_tensor_bytes(setup) == 2 * MIB
    assert gc.isenabled()


def test_only_the_last_call_is_measured():
    sizes = iter([8, 8, 1])

    def setup():
        return lambda: floats(next(sizes))

    assert peak_tensor_bytes(setup) == 1 * MIB


def test_an_exception_of_the_call_passes_through():
    def setup():
        raise KeyError("from setup")

    with pytest.raises(KeyError, match="from setup"):
        peak_tensor_bytes(setup)
