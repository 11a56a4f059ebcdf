"""Modules that were seen before are looked at again, and walked through where something changed."""

import contextlib
import copy
import functools
import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adaptive_kernels.sampling.network import Look, signature, walk


class Processor:
    """An object beside a module's parameters, as diffusers' attention processors."""

    def __init__(self):
        self.scale, self.cache = 1.0, torch.zeros(2)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3, bias=False), nn.SiLU()))
    model[0].processor, model[0].scales = Processor(), {"adapter": 1.0}
    model[0].table, model[1].names = torch.ones(4), ["a"]
    return model.eval()


CHANGES = {
    "parameter": lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(3, 3))),
    "values elsewhere": lambda m: setattr(m[0].weight, "data", torch.ones(3, 3)),
    "cast": lambda m: m[1].bfloat16(),
    "cast where they lie": lambda m: setattr(
        m[0].bias, "data", m[0].bias.data.view(torch.int32).view(torch.float16)[:3]
    ),
    "buffer": lambda m: m[1][1].register_buffer("extra", torch.ones(1)),
    "parameter for None": lambda m: m[1][0].register_parameter("bias", nn.Parameter(torch.ones(3))),
    "None for a parameter": lambda m: m[0].register_parameter("bias", None),
    "layer": lambda m: m[1].__setitem__(1, nn.Identity()),
    "layer more": lambda m: m.append(nn.Identity()),
    "mode": lambda m: m[1][1].train(),
    "attribute": lambda m: setattr(m[1], "gain", 1.0),
    "attribute gone": lambda m: delattr(m[1], "names"),
    "entry": lambda m: m[0].scales.update(adapter=2.0),
    "entry more": lambda m: m[1].names.append("b"),
    "object's value": lambda m: setattr(m[0].processor, "scale", 2.0),
    "object": lambda m: setattr(m[0], "processor", Processor()),
    "tensor": lambda m: setattr(m[0], "table", torch.ones(4)),
    "hook": lambda m: m[1].register_forward_pre_hook(lambda *_: None),
    "all attributes": lambda m: m[1].__dict__.update(copy.deepcopy(m[1].__dict__)),
    "object's dictionary": lambda m: setattr(
        m[0].processor, "__dict__", {"scale": 3.0, "cache": None}
    ),
    "module's dictionary": lambda m: setattr(m[1], "__dict__", {**vars(m[1]), "training": True}),
    "parameter of another module": lambda m: (
        m[1][0].register_parameter("bias", m[0].weight),
        m[0].register_parameter("weight", None),
    ),
    "values gone": lambda m: setattr(m[0], "weight", nn.parameter.UninitializedParameter()),
}


def look_again(model, look):
    again = Look(look.seen)
    return again.walk(model) is look.walk(model), again


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_asks_for_another_walk(name):
    model, look = network(), Look()
    look.walk(model)
    same, look = look_again(model, look)
    assert same
    CHANGES[name](model)
    same, look = look_again(model, look)
    assert not same
    if name != "values gone":
        assert look_again(model, look)[0], "and another one serves from then on"
    assert look.walk(model).facts == walk.Walk(model).facts


@given(order=st.lists(st.sampled_from(sorted(CHANGES)), max_size=4, unique=True))
def test_what_is_taken_from_before_is_what_a_walk_would_find(order):
    model, look = network(), Look()
    for name in order:
        look.walk(model)
        with contextlib.suppress(AttributeError):  # of what an earlier one has taken away
            CHANGES[name](model)
        look = Look(look.seen)
        found, anew = look.walk(model), walk.Walk(model)
        assert found.facts == anew.facts and found.elements == anew.elements


def test_values_written_in_place_ask_for_nothing():
    model, look = network(), Look()
    look.walk(model)
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].table.zero_()
    assert look_again(model, look)[0]


class Meddler(list):
    """What another thread does to a dictionary in the middle of a look at it."""

    grows = False

    def __iter__(self):
        entries = dict.fromkeys(super().__iter__())
        for name in entries:
            if self.grows:
                entries["third"] = None
            yield name


class Odd(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value


class Listed(dict):
    """A dictionary whose values() are a copy: who keeps them does not see it change."""

    def values(self):
        return list(super().values())


ODD = {
    "sparse": lambda: Odd(torch.eye(3).to_sparse()),
    "lazy": lambda: nn.LazyLinear(3),
    "scripted": lambda: torch.jit.script(nn.Linear(2, 2)),
    "values of its own": lambda: Odd(Listed(a=1)),
    "long list": lambda: Odd(list(range(5000))),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ODD)
def test_what_cannot_tell_is_walked_through_each_time(name):
    model, look = ODD[name](), Look()
    look.walk(model)
    same, again = look_again(model, look)
    assert not same and again.walk(model).facts == look.walk(model).facts


def test_a_change_while_it_is_looked_at_is_a_change():
    model = network()
    model.meddler = Meddler(["first", "second"])
    known = walk.Walk(model)
    assert known.unchanged()
    model.meddler.grows = True
    with pytest.raises(RuntimeError, match="changed size"):
        list(model.meddler)
    assert not known.unchanged()


def test_what_comes_while_a_module_is_walked_through_is_seen_later():
    """Another thread may call the network meanwhile: what a walk has read is what it goes by."""
    model = network()
    model[1].late = Late(model)
    known = walk.Walk(model)
    assert hasattr(model, "cache") and hasattr(model[1], "cache")
    assert not known.unchanged()
    again = Look({id(model): known}).walk(model)
    assert again.unchanged() and again.facts == walk.Walk(model).facts


class Late(list):
    """A container that, as it is read, gives its model what a thread beside might."""

    def __init__(self, model):
        super().__init__([1.0])
        self.model = model

    def __iter__(self):
        self.model.cache = self.model[1].cache = 1.0
        return super().__iter__()


def test_parameters_are_counted_without_a_walk_where_none_is_known():
    model, look = network(), Look()
    elements = look.elements(model)
    assert elements == {torch.float32: 9 + 3 + 9} and look.seen == {}
    look.walk(model)
    assert Look(look.seen).elements(model) == elements


def test_parameters_that_are_replaced_are_not_kept():
    model, look = network(), Look()
    look.walk(model)
    weight = weakref.ref(model[0].weight)
    model[0].weight = nn.Parameter(torch.ones(3, 3))
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize(
    "forward",
    [
        lambda model: functools.partial(nn.Sequential.forward, self=model),
        lambda model: lambda x, t, owner=model: x,
    ],
    ids=["partial", "default"],
)
def test_a_network_is_not_kept_by_what_is_known_of_its_signature(forward):
    model = network()
    model.forward = forward(model)
    assert signature.parameters(model) == signature.parameters(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
