"""`step` and `advance` as torch ops: schema, fake tensors, torch.compile, refusals."""

import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from adaptive_kernels import ops
from adaptive_kernels.ops import fields, reference
from tests.support import problems
from tests.support.problems import ready

NAMES = [argument.name for argument in ops.advance._schema.arguments][:-1]  # but condition


@pytest.mark.parametrize("rule", ["third_order", "defect", "every(3) linear", "plan"])
@pytest.mark.parametrize("guided", [False, True])
def test_opcheck(rule, guided):
    state = ready(rule, guided=guided)
    assert [v is None for v in (state.outputs, state.weights, state.rule_table)] == {
        "third_order": [True] * 3,
        "every(3) linear": [False, False, True],
    }.get(rule, [False] * 3)
    state.workspace = torch.zeros(ops.workspace_shape(2, 40), dtype=torch.float64)
    torch.library.opcheck(ops.step, (*state.arguments(), True))
    torch.library.opcheck(ops.advance, state.arguments())


def test_fake_tensors_of_any_device():
    for device, rule in (("cpu", "third_order"), ("cuda", "third_order"), ("cuda", "defect")):
        state = ready(rule, guided=True)
        state.workspace = torch.zeros(ops.workspace_shape(2, 40), dtype=torch.float64)
        real = state.arguments()
        with FakeTensorMode() as mode:
            fake = [
                mode.from_tensor(t).to(device) if isinstance(t, torch.Tensor) else t for t in real
            ]
            assert ops.step(*fake, True) is None
            assert ops.advance(*fake, condition=7) is None


@pytest.mark.parametrize("op", ["step", "advance"])
def test_a_meta_tensor_among_others_is_refused_and_nothing_is_written(op):
    """torch hands such a call to the op's fake, which would pass it over in silence."""
    for name in NAMES:
        state = ready("defect", guided=True)
        before, arguments = state.clone(), dict(zip(NAMES, state.arguments(), strict=True))
        if not isinstance(arguments[name], torch.Tensor):
            continue
        arguments[name] = arguments[name].to("meta")
        wanted = "latents is, got" if name == "latents" else f"{name} must be on cpu as latents"
        with pytest.raises(RuntimeError, match=wanted):
            getattr(ops, op)(*arguments.values(), *([True] if op == "step" else []))
        assert state.progress.equal(before.progress) and state.latents.equal(before.latents)


def replaced(name, value, rule="third_order"):
    arguments = dict(zip(NAMES, ready(rule, guided=True).arguments(), strict=True))
    arguments[name] = value(arguments[name]) if callable(value) else value
    return list(arguments.values())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("latents", lambda t: t[0], r"latents must have 3 dimensions \[R, B, N\], got 2"),
        ("latents", lambda t: t[:3].clone(), "latents must hold at least 4 steps, got 3"),
        ("latents", lambda t: t.double(), "latents must be float32"),
        ("latents", lambda t: t.expand(4, 2, 40).mT.contiguous().mT, "latents must be contiguous"),
        (
            "history",
            lambda t: t.repeat(2, 1, 1),
            r"history must have shape \(1, 2, 40\), got \(2, 2, 40\)",
        ),
        (
            "model_input",
            lambda t: t[:2].clone(),
            r"model_input must have shape \(4, 40\), got \(2, 40\)",
        ),
        ("model_input", lambda t: t.double(), "model_input must be float32, float16 or bfloat16"),
        ("model_output", lambda t: t[:3].clone(), "model_output must have 2 or 4 rows, got 3"),
        (
            "model_output",
            lambda t: t[:, :39].contiguous(),
            r"model_output must have shape \(4, 40\), got \(4, 39\)",
        ),
        ("model_output", lambda t: t.int(), "model_output must be float32, float16 or bfloat16"),
        ("timestep", lambda t: t.int(), "timestep must be float32 or int64"),
        ("progress", lambda t: t.long(), "progress must be int32"),
        ("progress", lambda t: t[:3].clone(), r"progress must have shape \(5, 2\), got \(3, 2\)"),
        ("progress", lambda t: t - 1, "progress must not be negative .* got step -1"),
        ("measures", lambda t: t.float(), "measures must be float64"),
        ("refreshed", lambda t: t[:5].clone(), r"refreshed must have shape \(8, 2\), got \(5, 2\)"),
        ("score", lambda t: t.double(), "score must be float32"),
        (
            "guidance_scale",
            lambda t: t[:1].clone(),
            r"guidance_scale must have shape \(2\), got \(1\)",
        ),
        ("threshold", lambda t: t.double(), "threshold must be float32"),
        ("output_noise", lambda t: t[:1].clone(), r"output_noise must have shape \(2\)"),
        ("rows", lambda t: t[:, :10].clone(), r"rows must have shape \[T, 10 \+ K\]"),
        ("rows", lambda t: t.repeat(1, 2), r"rows must have shape .* 1 <= K <= 8, got \(8, 24\)"),
        ("rows", lambda t: t[:5].clone(), r"refreshed must have shape \(5, 2\), got \(8, 2\)"),
        ("seed", torch.zeros(2).int(), "seed must be int64"),
        ("noise", torch.zeros(8, 2, 39), r"noise must have shape \(8, 2, 40\), got \(8, 2, 39\)"),
        ("outputs", torch.zeros(3, 2, 40), "outputs and weights must be given together"),
        ("weights", torch.zeros(8, 4, 4, 8), "outputs and weights must be given together"),
        ("rule_table", torch.zeros(8, 4, 3, 5), "rule_table must come with outputs and weights"),
        ("criterion", 4, "outputs, weights and rule_table must be given for this criterion"),
        ("criterion", 5, "outputs, weights and rule_table must be given for this criterion"),
        ("criterion", 6, "criterion must be 0 to 5, got 6"),
        ("criterion", -1, "criterion must be 0 to 5, got -1"),
        ("max_skip", -1, "max_skip must be at least 0, got -1"),
        ("warmup", 2, "warmup must be at least 3 for this criterion, got 2"),
        ("stages", 0, "stages must be at least 1, got 0"),
    ],
)
def test_refusals_name_the_argument(name, value, message):
    with pytest.raises(RuntimeError, match=message):
        ops.advance(*replaced(name, value))


@pytest.mark.parametrize("name", [field.name for field in fields.FIELDS if not field.optional])
def test_none_for_a_tensor_that_must_be_given_is_refused_by_name(name):
    with pytest.raises(RuntimeError, match=f"{name} must be a tensor, got None"):
        ops.advance(*replaced(name, None))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("outputs", None, "outputs and weights must be given together"),
        ("weights", None, "outputs and weights must be given together"),
        ("rule_table", None, "outputs, weights and rule_table must be given for this criterion"),
        (
            "outputs",
            lambda t: t[:2].clone(),
            r"outputs must have shape \(3, 2, 40\), got \(2, 2, 40\)",
        ),
        ("outputs", lambda t: t.double(), "outputs must be float32, got float64"),
        ("outputs", lambda t: t.mT.contiguous().mT, "outputs must be contiguous"),
        ("weights", lambda t: t[0], r"weights must have shape \[T, G, G, 8\] .*, got \(4, 4, 8\)"),
        (
            "weights",
            lambda t: t[:, :0],
            r"weights must have shape \[T, G, G, 8\] with G >= 1, got \(8, 0",
        ),
        (
            "weights",
            lambda t: t[:, :3].clone(),
            r"weights must have shape \(8, 3, 3, 8\), got \(8, 3, 4, 8\)",
        ),
        (
            "weights",
            lambda t: t[:7].clone(),
            r"weights must have shape \(8, 4, 4, 8\), got \(7, 4, 4, 8\)",
        ),
        (
            "weights",
            lambda t: t[..., :6].clone(),
            r"weights must have shape \(8, 4, 4, 8\), got \(8, 4, 4, 6\)",
        ),
        ("weights", lambda t: t.half(), "weights must be float32, got float16"),
        (
            "rule_table",
            lambda t: t[0],
            r"rule_table must have shape \[T, G, Q, 5\] .*, got \(4, 3, 5\)",
        ),
        (
            "rule_table",
            lambda t: t[:, :, :0],
            r"rule_table must have shape \[T, G, Q, 5\] with Q >= 1, got \(8, 4, 0, 5\)",
        ),
        (
            "rule_table",
            lambda t: t[:, :2].clone(),
            r"rule_table must have shape \(8, 4, 3, 5\), got \(8, 2, 3, 5\)",
        ),
        ("rule_table", lambda t: t.double(), "rule_table must be float32, got float64"),
        ("warmup", 0, "warmup must be at least 1 for this criterion, got 0"),
    ],
)
def test_refusals_of_a_fill_name_the_argument(name, value, message):
    with pytest.raises(RuntimeError, match=message):
        ops.advance(*replaced(name, value, "defect"))


def test_buffers_that_share_memory_are_refused():
    state = ready("defect")
    state.outputs = state.latents[:3]
    with pytest.raises(RuntimeError, match="latents and outputs must not share memory"):
        state.advance()
    state = ready("defect")
    state.model_output = state.outputs[1]
    with pytest.raises(RuntimeError, match="outputs and model_output must not share memory"):
        state.advance()
    state = ready("defect")
    state.weights = state.outputs.new_zeros(8, 4, 4, 8)
    state.outputs = state.weights.view(-1)[:240].view(3, 2, 40)
    with pytest.raises(RuntimeError, match="outputs and weights must not share memory"):
        state.advance()
    state = ready("defect")
    state.rule_table = state.score.new_zeros(8, 4, 3, 5)
    state.score = state.rule_table.view(-1)[:16].view(8, 2)
    with pytest.raises(RuntimeError, match="score and rule_table must not share memory"):
        state.advance()
    state = ready("defect")
    state.guidance_scale, state.threshold = (
        state.weights.view(-1)[:2],
        state.rule_table.view(-1)[:2],
    )
    state.advance()  # what is only read may be shared
    state = ready()
    state.model_output = state.latents[0]
    with pytest.raises(RuntimeError, match="latents and model_output must not share memory"):
        state.advance()
    state = ready()
    state.threshold = state.score[0]
    with pytest.raises(RuntimeError, match="score and threshold must not share memory"):
        state.advance()
    state = ready()
    state.model_input = state.model_output
    with pytest.raises(RuntimeError, match="model_input and model_output must not share memory"):
        state.advance()


def test_a_condition_is_refused_without_a_graph():
    state = ready()
    for call in (
        lambda: ops.advance(*state.arguments(), 7),
        lambda: ops.step(*state.arguments(), True, 7),
    ):
        with pytest.raises(RuntimeError, match="condition needs the CUDA library"):
            call()
    with pytest.raises(RuntimeError, match="condition needs the CUDA library"):
        reference.advance(*state.arguments(), 7)
    assert state.index.tolist() == [0, 0]


def test_batch_wide_refuses_samples_at_different_steps():
    for rule in ("third_order", "defect"):
        state = ready(rule)
        problems.ruled(state, batch_wide=True)
        state.index[:] = torch.tensor([1, 2])
        with pytest.raises(RuntimeError, match="all samples at one step, got steps 1 and 2"):
            state.advance()


def test_without_the_compiled_library_the_reference_serves_and_says_so(tmp_path):
    """A copy of the package without its .so: the same results, one warning, told by info()."""
    package = Path(ops.__file__).parents[1]
    copytree(package, tmp_path / "adaptive_kernels", ignore=ignore_patterns("*.so"))
    script = f"""
import sys, warnings
sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parents[2])!r}]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import adaptive_kernels
    from adaptive_kernels import ops
    from tests.support import problems
    for _ in range(2):
        problems.state(problems.table(8), 2, 40)
assert adaptive_kernels.__file__.startswith({str(tmp_path)!r})
assert sum("slower reference (plain torch): not built" in str(w.message) for w in caught) == 1
assert ops.info()["serves"]["cpu"]["implementation"].startswith("reference")
of = problems.state(problems.table(8), 2, 40)
for tick in range(8):
    of.model_output.copy_(problems.outputs(of, tick))
    of.advance()
print(of.nfe.tolist(), [round(v, 4) for v in of.current()[:, :3].flatten().tolist()])
"""
    got = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert got.returncode == 0, got.stderr
    state = problems.state(problems.table(8), 2, 40)
    for tick in range(8):
        state.model_output.copy_(problems.outputs(state, tick))
        state.advance()
    expected = [round(v, 4) for v in state.current()[:, :3].flatten().tolist()]
    assert got.stdout.strip() == f"{state.nfe.tolist()} {expected}"
