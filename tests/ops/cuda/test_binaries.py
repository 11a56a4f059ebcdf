"""The compiled CUDA kernels: what they take of registers, spill and execute; 16 bytes at a time.

python -m tests.ops.cuda.test_binaries > tests/ops/cuda/registers.json      records what was built
"""

import itertools
import json
import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECORD = Path(__file__).with_name("registers.json")
ARCHITECTURES = {"sm_75", "sm_80", "sm_90", "sm_100", "sm_120"}
NETWORKS = {"f": "float32", "N3c104HalfE": "float16", "N3c108BFloat16E": "bfloat16", "v": "any"}
SUMMED = ["nothing", "third", "first", "defect"]
# Of the rules a solver is sampled by, and of those that are seldom asked for.
RULES = [
    *[("nothing", False), ("nothing", True), ("third", False), ("first", False), ("defect", True)]
]
SELDOM = [("third", True), ("first", True)]
MOST_SPILLED = 96  # bytes of a thread


def names(verb, network, rules, terms, shapes):
    """step_kernel<bfloat16 third reuse +history, 2>; at the end quads, or threads and blocks."""
    for (summed, filled), more, shape in itertools.product(rules, terms, shapes):
        yield f"{verb}_kernel<{network} {summed} {'fill' if filled else 'reuse'}{more}, {shape}>"


def kernels():
    """What launch_step and launch_advance choose from."""
    both, history = " +history +noise", " +history"
    yield from names("step", "any", [*RULES, *SELDOM], [both], [2])
    for network in ("float32", "float16", "bfloat16"):
        summing = [rule for rule in RULES if rule[0] != "nothing"]
        yield from names("step", network, RULES, ["", history, both], [2])
        yield from names("step", network, summing, ["", history], [1])
        yield from names("step", network, SELDOM, [both], [2])
        yield from names("advance", network, RULES, [""], ["512, 2"])
        yield from names("advance", network, [*RULES, *SELDOM], [both], ["512, 1"])
        yield from names("advance", network, summing[:2], [""], ["256, 4"])
        yield from names("advance", network, summing[2:], [""], ["256, 3"])


KERNELS = set(kernels())


def binary():
    built = sorted((ROOT / "adaptive_kernels" / "ops").glob("_C_cuda.*.so"))
    return built[-1] if built else None


def inspect(*options):
    """What cuobjdump, of Triton's package, says of the library."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, *options, binary()], capture_output=True, text=True, check=True)
    return said.stdout


def kernel_name(mangled):
    """As in `names`, of _ZN2ak11step_kernelINS_7VariantIN3c104HalfELNS_6SummedE1ELb0E..."""
    verb, network, summed, filled, history, noise, rest = re.match(
        r"_ZN2ak\d+(\w+?)_kernelINS_7VariantI(\w+?)LNS_6SummedE(\d)ELb(\d)ELb(\d)ELb(\d)EEE(.*?)EvNS",
        mangled,
    ).groups()
    terms = " +history" * int(history) + " +noise" * int(noise)
    rule = (SUMMED[int(summed)], bool(int(filled)))
    shape = ", ".join(re.findall(r"Li(\d+)E", rest))
    return next(names(verb, NETWORKS[network], [rule], [terms], [shape]))


def listing(*options):
    """(architecture, kernel, line) of what cuobjdump lists by kernel."""
    architecture = kernel = None
    for line in inspect(*options).splitlines():
        if match := re.search(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function ?: ?(\w+)|Function (\w+):", line):
            kernel = kernel_name(match[1] or match[2])
        else:
            yield architecture, kernel, line


@cache
def resources():
    """{architecture: {kernel: {REG, STACK, LOCAL, SHARED, ...}}}"""
    found = {}
    for architecture, kernel, line in listing("-res-usage"):
        if "REG:" in line:
            numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            found.setdefault(architecture, {})[kernel] = numbers
    return found


@cache
def instructions():
    """{architecture: {kernel: its instructions}}, those at its end that no thread reaches too."""
    found = {}
    for architecture, kernel, line in listing("-sass"):
        if re.search(r"/\*[0-9a-f]{4,}\*/\s+\S", line):
            found.setdefault(architecture, Counter())[kernel] += 1
    return found


def compiler():
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    return re.search(r"release ([\d.]+)", said)[1]


def measured():
    """{architecture: {kernel: [registers, bytes spilled, instructions]}}"""
    return {
        architecture: {
            kernel: [used["REG"], used["STACK"], instructions()[architecture][kernel]]
            for kernel, used in sorted(found.items())
        }
        for architecture, found in resources().items()
        if architecture in ARCHITECTURES
    }


needs_binary = pytest.mark.skipif(binary() is None, reason="the CUDA library was not built")


@needs_binary
def test_every_kernel_is_there_for_every_architecture():
    for architecture in ARCHITECTURES:
        assert set(resources()[architecture]) == KERNELS


@needs_binary
def test_no_kernel_takes_more_than_recorded():
    """Registers are what limits how many blocks run at once; each of them fetches the code."""
    recorded = json.loads(RECORD.read_text())
    if compiler() != recorded["nvcc"]:
        pytest.skip(f"kernels were recorded with nvcc {recorded['nvcc']}, not {compiler()}")
    for architecture, found in measured().items():
        for kernel, numbers in found.items():
            most = recorded["kernels"][architecture][kernel]
            assert all(map(int.__le__, numbers, most)), (architecture, kernel, numbers, most)
            assert numbers[1] <= MOST_SPILLED, (architecture, kernel)


@needs_binary
def test_the_library_is_small():
    assert binary().stat().st_size < 20e6


@needs_binary
def test_kernels_move_16_bytes_at_a_time():
    """SASS of sm_90: rows on 16-byte boundaries are read and written in 128 bits."""
    found = {}
    for _, kernel, line in listing("-sass", "-arch", "sm_90"):
        if match := re.search(r"\s((?:LDG|STG)[.\w]*)\s", line):
            found.setdefault(kernel, Counter())[match[1]] += 1
    assert set(found) == KERNELS
    for kernel, counts in found.items():
        # Messages, which are read in twos, are another matter.
        wide = {op: sum(n for name, n in counts.items()
                        if name.startswith(op) and "128" in name and "STRONG.GPU" not in name)
                for op in ("LDG", "STG")}  # fmt: skip
        if "<any " in kernel:
            assert wide == {"LDG": 0, "STG": 0}, (kernel, counts)
        else:
            # Latents; the new ones.
            assert wide["LDG"] >= 1 and wide["STG"] >= 1, (kernel, counts)


if __name__ == "__main__":
    lines = [
        f'    "{architecture}": {{\n'
        + ",\n".join(f"      {json.dumps(k)}: {json.dumps(n)}" for k, n in found.items())
        + "\n    }"
        for architecture, found in measured().items()
    ]
    print(f'{{\n  "nvcc": "{compiler()}",\n  "kernels": {{')
    print(",\n".join(lines) + "\n  }\n}")
