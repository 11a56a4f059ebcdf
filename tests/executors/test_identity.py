"""What a capture goes on using is seen: whatever changes an image changes the identity."""

import functools

import pytest
import torch

from adaptive_kernels.executors.identity import identity
from adaptive_kernels.sampling.network import Look
from tests.support import denoisers

SCALE, SHIFT = 0.5, torch.ones(3)


def by_globals(x, timestep):
    return x * SCALE + SHIFT


def calls_another(x, timestep):
    return by_globals(x, timestep)


class Holder:
    """An object that is called, and one that is only held."""

    def __init__(self, scale=1.0):
        self.scale, self.shift, self.model = scale, torch.ones(2), denoisers.made(denoisers.UNet)

    def __call__(self, x, timestep):
        return self.model(x, timestep) * self.scale + self.shift

    def method(self, x, timestep):
        return self(x, timestep)


def module():
    network = denoisers.made(denoisers.UNet)
    network.scaling = {"adapter": 1.0}
    return network


def replace_parameter(network):
    network.leave.bias = torch.nn.Parameter(network.leave.bias.detach().clone())


def rebound():
    scale = 1.0

    def model(x, timestep):
        return x * scale

    def change(_):
        nonlocal scale
        scale = 2.0

    return model, change


def with_default(holder):
    def model(x, timestep, scale=holder):
        return x * scale.scale

    return model


def set_global(name, value):
    return lambda _: globals().__setitem__(name, value)


CHANGES = {
    "parameter replaced": (module, replace_parameter),
    "parameter cast": (module, lambda m: m.leave.bfloat16()),
    "buffer added": (module, lambda m: m.leave.register_buffer("extra", torch.ones(1))),
    "training": (module, lambda m: m.leave.train()),
    "plain attribute": (module, lambda m: setattr(m.leave, "scale", 0.7)),
    "LoRA's scaling": (module, lambda m: m.scaling.update(adapter=0.5)),
    "layer replaced": (module, lambda m: setattr(m, "middle", torch.nn.Identity())),
    "hook": (module, lambda m: m.middle.register_forward_hook(lambda *_: None)),
    "object's value": (Holder, lambda o: setattr(o, "scale", 2.0)),
    "object's tensor": (Holder, lambda o: setattr(o, "shift", torch.ones(2))),
    "object's model": (Holder, lambda o: replace_parameter(o.model)),
    "method's owner": (lambda: Holder().method, lambda m: setattr(m.__self__, "scale", 2.0)),
    "partial": (
        lambda: functools.partial(Holder(), extra=Holder()),
        lambda p: setattr(p.keywords["extra"], "scale", 3.0),
    ),
    "global value": (lambda: by_globals, set_global("SCALE", 0.25)),
    "global tensor": (lambda: by_globals, set_global("SHIFT", torch.zeros(3))),
    "global behind a function": (lambda: calls_another, set_global("SCALE", 0.75)),
    "default": (
        lambda: with_default(Holder()),
        lambda f: setattr(f.__defaults__[0], "scale", 9),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name):
    """By who looks anew, and by who has seen the modules before."""
    make, change = CHANGES[name]
    model = make()
    first = Look()
    before = identity(model, first)
    again = Look(first.seen)
    assert identity(model) == before and identity(model, again) == before
    change(model)
    assert identity(model) != before
    assert identity(model, Look(again.seen)) != before


def test_a_rebound_variable_is_seen():
    model, change = rebound()
    before = identity(model)
    change(None)
    assert identity(model) != before


def test_values_written_in_place_are_the_same_model():
    """A graph reads them where they lie."""
    model = module()
    before = identity(model)
    model.load_state_dict(denoisers.made(denoisers.UNet, seed=1).state_dict())
    assert identity(model) == before


def test_a_function_made_anew_from_the_same_parts_is_the_same():
    model, text = module(), torch.ones(4)

    def make(text):
        return lambda x, t: model(x, t) + text

    assert identity(make(text)) == identity(make(text))
    assert identity(make(text)) != identity(make(text.clone()))
    holder = Holder()
    assert identity(holder.method) == identity(holder.method)
    assert identity(functools.partial(model, text)) == identity(functools.partial(model, text))
    assert identity(Holder()) != identity(holder)


def test_other_models_are_others_and_loops_end():
    one, other = module(), module()
    assert identity(one) != identity(other)
    holder = Holder()
    holder.me = holder
    holder.many = list(range(10**5))
    assert identity(holder) == identity(holder)
    assert identity(float("nan")) != identity(1.0)
