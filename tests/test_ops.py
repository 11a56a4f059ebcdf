"""`step` and `advance` as torch ops: schema, fake tensors, torch.compile, refusals."""

import subprocess
import sys
import sysconfig
from pathlib import Path
from shutil import copytree, ignore_patterns

import problems
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from adaptive_kernels import ops
from adaptive_kernels.config import AdaptiveConfig

NAMES = [argument.name for argument in ops.advance._schema.arguments]


def ready(**kwargs):
    of = problems.state(problems.table(8, 2), 2, 40, **kwargs)
    of.latents.nan_to_num_(0.5)
    of.history.nan_to_num_(0.5)
    of.model_output.copy_(problems.outputs(of, 0))
    return of


@pytest.mark.parametrize("guided", [False, True])
def test_opcheck(guided):
    of = ready(guided=guided)
    torch.library.opcheck(ops.step, (*of.arguments(), True))
    torch.library.opcheck(ops.advance, of.arguments())


def test_fake_tensors_of_any_device():
    for device in ("cpu", "cuda"):
        real = ready(guided=True).arguments()
        with FakeTensorMode() as mode:
            fake = [
                mode.from_tensor(t).to(device) if isinstance(t, torch.Tensor) else t for t in real
            ]
            assert ops.step(*fake, True) is None
            assert ops.advance(*fake) is None


@pytest.mark.skipif(
    not Path(sysconfig.get_paths()["include"], "Python.h").exists(),
    reason="torch.compile on the CPU needs Python's headers (python3-dev)",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_network_with_step_has_no_graph_break(dtype):
    """network + advance in one fullgraph region gives the latents and decisions of eager."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Tanh()).to(dtype)
    eager = ready(dtype=dtype, config=AdaptiveConfig(2.0, 3))
    compiled = problems.clone(eager)

    def tick(of):
        of.model_output.copy_(network(of.model_input))
        of.advance()

    compiled_tick = torch.compile(tick, fullgraph=True, backend="inductor")
    with torch.no_grad():
        for _ in range(8):
            tick(eager)
            compiled_tick(compiled)
    assert torch.equal(eager.progress, compiled.progress)
    assert eager.nfe.max() < 8
    assert torch.equal(eager.refreshed, compiled.refreshed)
    # Inductor may fuse the network's own arithmetic differently by some last places.
    unit = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-20
    assert (eager.current() - compiled.current()).abs().max() <= 8 * unit


def replaced(name, value):
    arguments = dict(zip(NAMES, ready(guided=True).arguments(), strict=True))
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
        ("progress", lambda t: t - 1, "progress must not be negative, got step -1"),
        ("norms", lambda t: t.float(), "norms must be float64"),
        ("refreshed", lambda t: t[:5].clone(), r"refreshed must have shape \(8, 2\), got \(5, 2\)"),
        ("score", lambda t: t.double(), "score must be float32"),
        (
            "guidance_scale",
            lambda t: t[:1].clone(),
            r"guidance_scale must have shape \(2\), got \(1\)",
        ),
        ("threshold", lambda t: t.double(), "threshold must be float32"),
        ("rows", lambda t: t[:, :6].clone(), r"rows must have shape \[T, 6 \+ K\]"),
        ("rows", lambda t: t[:5].clone(), r"refreshed must have shape \(5, 2\), got \(8, 2\)"),
        ("seed", lambda t: t.int(), "seed must be int64"),
        ("noise", torch.zeros(8, 2, 39), r"noise must have shape \(8, 2, 40\), got \(8, 2, 39\)"),
        ("criterion", 9, "criterion must be 0 to 3, got 9"),
        ("max_skip", -1, "max_skip must be at least 0, got -1"),
        ("warmup", 2, "warmup must be at least 3 for this criterion, got 2"),
        ("stages", 0, "stages must be at least 1, got 0"),
    ],
)
def test_refusals_name_the_argument(name, value, message):
    with pytest.raises(RuntimeError, match=message):
        ops.advance(*replaced(name, value))


def test_buffers_that_share_memory_are_refused():
    of = ready()
    of.model_output = of.latents[0]
    with pytest.raises(RuntimeError, match="latents and model_output must not share memory"):
        of.advance()
    of = ready()
    of.threshold = of.score[0]
    with pytest.raises(RuntimeError, match="score and threshold must not share memory"):
        of.advance()
    of = ready()
    of.model_input = of.model_output
    with pytest.raises(RuntimeError, match="model_input and model_output must not share memory"):
        of.advance()


def test_batch_wide_refuses_samples_at_different_steps():
    of = ready(config=AdaptiveConfig(granularity="batch"))
    of.progress[0] = torch.tensor([1, 2])
    with pytest.raises(RuntimeError, match="all samples at one step, got steps 1 and 2"):
        of.advance()


def test_without_the_compiled_library_the_reference_serves_and_says_so(tmp_path):
    """A copy of the package without its .so: the same results, one warning, told by info()."""
    package = Path(ops.__file__).parent
    copytree(package, tmp_path / "adaptive_kernels", ignore=ignore_patterns("*.so"))
    script = f"""
import sys, warnings
sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parent)!r}]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import adaptive_kernels, torch, problems
    from adaptive_kernels import ops
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
    of = problems.state(problems.table(8), 2, 40)
    for tick in range(8):
        of.model_output.copy_(problems.outputs(of, tick))
        of.advance()
    expected = [round(v, 4) for v in of.current()[:, :3].flatten().tolist()]
    assert got.stdout.strip() == f"{of.nfe.tolist()} {expected}"
