"""Which executor works where: facts in, rules out."""

import itertools
from dataclasses import replace

import pytest

from adaptive_kernels.executors import capability
from adaptive_kernels.executors.capability import EXECUTORS, Facts
from adaptive_kernels.ops import dispatch

CUDA = Facts("cuda", True, False, ("compiled CUDA", "loaded _C_cuda.abi3.so"), None)


def works(facts):
    return [name for name, (yes, _) in capability.executors(facts).items() if yes]


def test_a_current_cuda_machine_has_all_of_them():
    assert works(CUDA) == list(EXECUTORS) == ["graph", "groups", "eager"]


@pytest.mark.parametrize(
    ("change", "left", "why"),
    [
        ({"device": "cpu"}, ["eager"], "CUDA graphs need a CUDA or ROCm device, got cpu"),
        ({"device": "xpu"}, ["eager"], "CUDA graphs need a CUDA or ROCm device, got xpu"),
        ({"present": False}, [], "torch finds no CUDA or ROCm device here"),
        (
            {"rocm": True, "implementation": ("Triton", "this torch is a ROCm build")},
            ["groups", "eager"],
            "ROCm has no conditional nodes",
        ),
        (
            {"implementation": ("Triton", "not built: no nvcc; Triton 3.9.0")},
            ["groups", "eager"],
            "only the compiled CUDA library can end a loop inside a graph: not built: no nvcc",
        ),
        (
            {"implementation": (dispatch.REFERENCE, "not built")},
            ["eager"],
            "which a graph cannot hold: not built",
        ),
        (
            {"loop": "the CUDA driver knows CUDA 12.2; a loop inside a graph needs 12.4 or newer"},
            ["groups", "eager"],
            "the CUDA driver knows CUDA 12.2",
        ),
    ],
)
def test_what_is_missing_is_named(change, left, why):
    facts = replace(CUDA, **change)
    assert works(facts) == left
    assert why in capability.executors(facts)["graph"][1]


def test_every_answer_has_a_reason_and_a_loop_implies_groups():
    for device, present, rocm, name, loop in itertools.product(
        ("cpu", "cuda", "xpu", "mps"),
        (True, False),
        (True, False),
        ("compiled CUDA", "Triton", dispatch.REFERENCE, "compiled C++"),
        (None, "no driver"),
    ):
        answers = capability.executors(Facts(device, present, rocm, (name, "so"), loop))
        assert list(answers) == list(EXECUTORS)
        assert all(why for _, why in answers.values())
        assert answers["groups"][0] or not answers["graph"][0]
        assert answers["eager"][0] == present


def test_this_machine_is_asked_without_a_driver_and_without_a_crash():
    facts = capability.facts("cuda")
    found, why = capability.driver()
    assert (facts.loop is None) == (found is not None and facts.present) and why
    assert works(capability.facts("cpu")) == ["eager"]
