"""What a graph cannot hold is refused by name, before it happens, in the thread that asked."""

import threading

import pytest
import torch

from adaptive_kernels.executors.guard import CaptureError, Guard, is_compiled, where
from tests.support import denoisers

X = torch.linspace(-1, 1, 12).view(3, 4)

REFUSED = {
    "item": (lambda x: x.sum().item(), r"synchronises \(aten._local_scalar_dense\): a value is"),
    "float": (lambda x: float(x[0, 0]), "a value is read on the host"),
    "if": (lambda x: x if (x > 0).any() else -x, "a value is read on the host"),
    "nonzero": (lambda x: x.nonzero(), "the host waits for a value or a size"),
    "unique": (lambda x: x.unique(), "the host waits for a value or a size"),
    "mask": (lambda x: x[x > 0], "indexed with a mask"),
    "write by mask": (lambda x: x.clone().index_put_((x > 0,), torch.ones(6)), "with a mask"),
    "constant": (lambda x: x * torch.tensor(2.0), "made from host values"),
    "to the device": (lambda x: torch.empty(3, device="meta").to(x.device), "between host and"),
    "to the host": (lambda x: x.to("meta"), "copied between host and device"),
    "repeat": (lambda x: x.repeat_interleave((x[:, 0] > 0).long(), 0), "output_size= tells it"),
    "randn": (lambda x: x + torch.randn_like(x), r"draws random numbers \(aten.randn_like\)"),
    "dropout": (lambda x: torch.dropout(x, 0.5, True), "draws random numbers"),
    "generator": (
        lambda x: torch.rand(2, generator=torch.Generator()),
        r"draws random numbers \(aten.rand\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(CaptureError, match=message), Guard(torch.device("cpu")):
        call(X)


@pytest.mark.parametrize("kind", [denoisers.UNet, denoisers.DiT])
def test_ordinary_networks_pass_with_the_same_result(kind):
    """Attention has the tag of random ops; without dropout it draws nothing."""
    model, x = denoisers.made(kind), torch.randn(2, 4, 8, 8)
    t = torch.tensor([3, 700])
    expected = model(x, t)
    with Guard(torch.device("cpu")):
        got = model(x, t)
    assert torch.equal(got, expected)


def test_one_value_written_through_a_mask_is_a_fill():
    with Guard(torch.device("cpu")):
        X.clone().index_put_((X > 0,), X.new_zeros(()))


def test_a_draw_of_another_thread_is_not_the_networks():
    """A generator that moved once may have been moved by anyone."""
    guard, others = Guard(torch.device("cpu")), iter([True, False])

    def call():
        if next(others):
            torch.rand(1)
        return 7

    assert guard.draws(call) == (7, False)
    assert guard.draws(lambda: torch.rand(1))[1]


def test_another_device_is_not_watched():
    with Guard(torch.device("cuda", 0)):
        assert X.sum().item() == pytest.approx(0, abs=1e-6)
        assert len(X[X > 0]) and torch.tensor(1.0).item() == 1


def test_other_threads_are_not_watched():
    got = []
    with Guard(torch.device("cpu")):
        thread = threading.Thread(target=lambda: got.append(X.sum().item() + torch.rand(1).item()))
        thread.start()
        thread.join()
    assert len(got) == 1


def test_compiled_networks_are_known():
    model = denoisers.made(denoisers.UNet)
    assert not is_compiled(model) and not is_compiled(lambda x, t: x)
    inside = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    inside[1].compile()
    for compiled in (torch.compile(model), torch.compile(lambda x, t: x), inside):
        assert is_compiled(compiled)
    assert is_compiled(torch.nn.Sequential(torch.compile(torch.nn.Linear(2, 2))))


def test_the_place_is_the_users_line():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(5, 4))
    try:
        model(X)
    except RuntimeError as error:
        assert where(error).startswith(f"{__file__}:")
    else:
        raise AssertionError("a wrong shape passed")
