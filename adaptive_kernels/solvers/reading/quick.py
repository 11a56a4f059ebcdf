"""Whose schedulers are known, and the quick way to drive those that ask for little."""

import functools
import inspect
import re
from typing import Any

import torch
from torch import Tensor


class Vector(Tensor):
    """A float64 tensor that stays so where a scheduler casts it; what is made of it is a Tensor.

    Half the time of `Float64`, which sees every call: enough where step() draws nothing and casts
    nothing but its arguments. The closed loop on random data tells where it was not.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    def _itself(self, *_: Any, **__: Any) -> Tensor:
        return self

    to = float = half = bfloat16 = type = type_as = _itself


# Calls for noise: those of diffusers' own function, with what they are given, and any other.
_RANDN_TENSOR = re.compile(r"\brandn_tensor\((?:[^()]|\([^()]*\))*\)")
_OTHER_NOISE = re.compile(r"\b(?!randn_tensor\b)(rand\w*|normal_?|bernoulli_?)\(")


def is_of_diffusers(scheduler: type) -> bool:
    """Whether a class and all it inherits from are diffusers' own."""
    return all(base.__module__.startswith("diffusers.") for base in scheduler.__mro__[:-1])


@functools.cache
def may_be_quick(scheduler: type) -> bool:
    """Whether all noise of a scheduler of diffusers comes from the generator that step() is given.

    A draw from that one is noticed; one from everybody's would have moved it.
    """
    if not is_of_diffusers(scheduler):
        return False
    try:
        source = "".join(inspect.getsource(base) for base in scheduler.__mro__[:-1])
    except (OSError, TypeError):
        return False
    drawn = _RANDN_TENSOR.findall(source)
    given = all("generator=generator" in call for call in drawn)
    return given and len(drawn) == source.count("randn_tensor(") and not _OTHER_NOISE.search(source)
