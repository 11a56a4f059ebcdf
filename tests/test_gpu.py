"""On an NVIDIA GPU: the CUDA ops equal the CPU's, bitwise the same every run, without a sync."""

import problems
import pytest
import torch

from adaptive_kernels import AdaptiveConfig, ops

pytestmark = pytest.mark.gpu
RULES = [*problems.REUSE, *problems.FILLED]


def on_gpu(of):
    moved = problems.clone(of)
    for name, value in vars(moved).items():
        if isinstance(value, torch.Tensor):
            setattr(moved, name, value.cuda())
    return moved


def test_the_compiled_library_serves_cuda():
    assert ops.implementation("cuda")[0] == "compiled CUDA", ops.implementation("cuda")[1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["sample", "batch"])
def test_advance_equals_the_cpu(rule, dtype, granularity):
    for elements in (1, 17, 1025, 40001):
        for stages in (1, 2):
            # A solver that adds noise has no repair.
            stochastic = rule in problems.REUSE or ("repair" not in rule and elements == 17)
            solver = problems.table(14, 3, stages, stochastic, seed=elements)
            config = problems.config(rule, solver, 0.4, 3, granularity, elements)
            cpu = problems.state(solver, 3, elements, config, True, dtype, seed=elements)
            gpu = on_gpu(cpu)
            # 14 steps of 17 roundings of noise up to 6; latents and outputs are no larger.
            tolerance = 14 * 17 * 6 * problems.EPS
            while bool((cpu.index < solver.num_steps).any()):
                output = problems.outputs(cpu, int(cpu.index.sum()))
                cpu.model_output.copy_(output)
                gpu.model_output.copy_(output)
                cpu.advance()
                gpu.advance()
                if bool(((cpu.score - 1).abs() < 1e-3).any()):
                    break
                assert torch.equal(cpu.progress, gpu.progress.cpu())
                assert torch.equal(cpu.refreshed, gpu.refreshed.cpu())
                # The arithmetic is the same; only the noise passes through other log and cos.
                error = (cpu.current() - gpu.current().cpu()).abs().max()
                assert error <= tolerance
                gpu.latents.copy_(cpu.latents)
                gpu.history.copy_(cpu.history)
                gpu.norms.copy_(cpu.norms)
                if cpu.outputs is not None:
                    assert (cpu.outputs - gpu.outputs.cpu()).nan_to_num().abs().max() <= tolerance
                    gpu.outputs.copy_(cpu.outputs)


@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_bitwise_the_same_in_a_hundred_runs_and_inside_a_graph(rule):
    solver = problems.table(10, 2)
    start = on_gpu(problems.state(solver, 4, 70001, problems.config(rule, solver, 0.4), True))
    start.model_output.normal_(generator=torch.Generator("cuda").manual_seed(0))

    def three(of):
        for _ in range(3):
            of.advance()

    first = problems.clone(start)
    three(first)
    for _ in range(99):
        again = problems.clone(start)
        three(again)
        assert torch.equal(first.latents.nan_to_num(7), again.latents.nan_to_num(7))
        assert torch.equal(first.norms, again.norms)
    captured = problems.clone(start)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        three(captured)
    graph.replay()
    assert torch.equal(first.latents.nan_to_num(7), captured.latents.nan_to_num(7))
    assert torch.equal(first.progress, captured.progress)


@pytest.mark.parametrize("rule", ["third_order", "defect", "plan"])
def test_nothing_synchronises(rule):
    solver = problems.table(10, 2)
    of = on_gpu(problems.state(solver, 4, 5000, problems.config(rule, solver, 0.4)))
    of.advance()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            of.advance()
            of.step(True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tensors_of_another_device_are_refused_by_name():
    of = on_gpu(problems.state(problems.table(10, 2), 2, 50))
    of.threshold = of.threshold.cpu()
    with pytest.raises(RuntimeError, match="threshold must be on cuda:0 as latents is"):
        of.advance()
    for name in ("outputs", "weights", "run_cost"):
        of = on_gpu(
            problems.state(problems.table(10, 2), 2, 50, AdaptiveConfig(criterion="defect"))
        )
        setattr(of, name, getattr(of, name).cpu())
        with pytest.raises(RuntimeError, match=f"{name} must be on cuda:0 as latents is"):
            of.advance()
