"""How a network is called: its dtype, its conditioning, and who says what does not fit."""

import collections
import dataclasses
import enum
import itertools
import types

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import BaseOutput
from torch.utils import _pytree as pytree
from transformers.utils import ModelOutput

import adaptive_kernels as ak
from adaptive_kernels.sampling.network import NetworkCall, network_dtype

SHAPE = (4, 2, 6)
# Samples that leave the batch at different ticks: a row that is not cut would meet others.
CONFIG = ak.AdaptiveConfig(0.3, 4, "third_order")


def noise():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def sample(model, conditioning=None, unconditional=None, **named):
    sampler = ak.AdaptiveSampler(diffusers.DDIMScheduler(clip_sample=False), 20, CONFIG, **named)
    return sampler(model, noise(), conditioning, unconditional, progress=False)


def bend(x, timestep, shift):
    """A network whose rows differ in how many calls they need."""
    shift = torch.as_tensor(shift).reshape(-1, 1, 1).to(x)
    assert len(shift) == len(x)
    return torch.tanh(x * (0.5 + timestep.reshape(-1, 1, 1) / 1000)) + shift * torch.sin(3 * x)


SHIFT = torch.tensor([0.0, 0.5, 1.0, 2.0])


@dataclasses.dataclass
class Plain:
    shift: torch.Tensor
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    shift: torch.Tensor


@dataclasses.dataclass
class Output(BaseOutput):
    shift: torch.Tensor


Pair = collections.namedtuple("Pair", "shift other")


class Registered:
    """A container that pytree knows without key paths."""

    def __init__(self, shift):
        self.shift = shift


pytree.register_pytree_node(
    Registered, lambda node: ([node.shift], None), lambda parts, _: Registered(parts[0])
)


@pytest.mark.parametrize(
    "make",
    [
        Plain,
        Frozen,
        lambda shift: Output(shift=shift),
        lambda shift: Pair(shift, None),
        Registered,
        lambda shift: {"shift": shift},
        lambda shift: [[Plain(shift)]],
        lambda shift: collections.OrderedDict(shift=shift),
        lambda shift: collections.defaultdict(list, {"shift": shift}),
    ],
    ids=[
        "dataclass",
        "frozen",
        "output",
        "named",
        "registered",
        "dict",
        "nested",
        "odict",
        "ddict",
    ],
)
@pytest.mark.parametrize("array", [False, True], ids=["tensor", "numpy"])
@pytest.mark.parametrize("guided", [False, True])
def test_tensors_are_cut_to_the_samples_wherever_they_are(make, array, guided):
    """Inside what pytree knows, with key paths or without, dataclasses, and as NumPy arrays."""

    def model(x, timestep, added):
        while isinstance(added, list):
            added = added[0]
        assert type(added) is kind
        shift = added["shift"] if isinstance(added, dict) else added.shift
        assert isinstance(shift, torch.Tensor)
        return bend(x, timestep, shift)

    kind = type(make(SHIFT)) if not isinstance(make(SHIFT), list) else Plain
    values = [SHIFT.numpy() if array else SHIFT, 0.5 * (SHIFT.numpy() if array else SHIFT)]
    halves = [{"added": make(value)} for value in values]
    plain = [{"shift": SHIFT}, {"shift": 0.5 * SHIFT}]
    named = {"guidance_scale": 2.0} if guided else {}
    ours = sample(model, *halves[: 1 + guided], **named)
    expected = sample(bend, *plain[: 1 + guided], **named)
    assert torch.equal(ours.latents, expected.latents)
    assert ours.nfe.unique().numel() > 1
    for half, value in zip(halves, values, strict=True):
        added = half["added"]
        while isinstance(added, list):
            added = added[0]
        assert (added["shift"] if isinstance(added, dict) else added.shift) is value


class Mode(enum.Enum):
    FAST = 1


def test_plain_values_pass_as_they_are():
    given = {
        "a": None,
        "b": Mode.FAST,
        "c": torch.float16,
        "d": torch.Size([2, 3]),
        "e": np.float32(2.0),
        "f": {"x"},
        "g": range(3),
        "h": torch.nn.Linear(2, 2),
        "i": lambda x: x,
        "j": types.SimpleNamespace(scale=1.0),
    }

    def model(x, timestep, **named):
        assert all(named[key] is value for key, value in given.items())
        return bend(x, timestep, SHIFT[: len(x)])

    sample(model, given)


class Hidden:
    def __init__(self):
        self.inner = {"deep": [torch.zeros(4)]}


class Slotted:
    __slots__ = ("shift",)

    def __init__(self):
        self.shift = torch.zeros(4)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            Hidden(),
            TypeError,
            r"conditioning\['x'\] must be .* got Hidden with 4 rows.*belongs into",
        ),
        (
            Slotted(),
            TypeError,
            r"conditioning\['x'\] must be .* got Slotted with 4 rows inside",
        ),
        (
            collections.UserDict(y=torch.zeros(4)),
            TypeError,
            r"conditioning\['x'\] must be .*UserDict with 4 rows inside.*register_pytree_node",
        ),
        (
            [types.MappingProxyType({"y": torch.zeros(4)})],
            TypeError,
            r"conditioning\['x'\]\[0\] must be .*mappingproxy with 4 rows inside",
        ),
        ((t for t in [SHIFT]), TypeError, r"\['x'\] must be the same at every call.*generator"),
        (Plain(torch.zeros(3)), ValueError, r"\['x'\].shift must have one row per sample.*\(3,\)"),
        (
            Output(shift=torch.zeros(3)),
            ValueError,
            r"\['x'\]\['shift'\] must have one row per sample.*\(3,\)",
        ),
        (Registered(torch.zeros(3)), ValueError, r"\['x'\]\[0\] must have one row per sample"),
        (np.zeros((3, 4)), ValueError, r"\['x'\] must have one row per sample.*\(3, 4\)"),
        (
            np.ma.array(np.zeros(4), mask=True),
            TypeError,
            r"\['x'\] must be .*without a mask",
        ),
        (np.array(["a"] * 4), TypeError, r"\['x'\] must be numbers, got a NumPy array of <U1"),
        (np.array(1.0), ValueError, r"\['x'\] must have one row per sample.*\(\)"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name_and_path(value, error, message):
    with pytest.raises(error, match=message):
        sample(lambda x, t, x_: x, {"x": value})


@dataclasses.dataclass
class Derived:
    """Holds more than its fields."""

    shift: torch.Tensor

    def __post_init__(self):
        self.pooled = 2 * self.shift
        self.gain = 1.0


class Further(Plain):
    """Not decorated itself."""

    def __init__(self, shift):
        super().__init__(shift)
        self.pooled = 2 * shift


@dataclasses.dataclass
class Stubborn:
    shift: torch.Tensor

    def __copy__(self):
        return self


class Members(Plain, enum.Enum):
    ONE = (torch.arange(4.0),)


@pytest.mark.parametrize("kind", [Derived, Further])
def test_what_is_no_field_is_cut_stacked_compared_and_signed_too(kind):
    model = lambda x, t, c: bend(x, t, c.pooled)  # noqa: E731
    halves = [{"c": kind(value)} for value in (SHIFT, 0.5 * SHIFT)]
    plain = [{"shift": 2 * SHIFT}, {"shift": SHIFT}]
    ours, expected = (
        sample(network, *given, guidance_scale=2.0)
        for network, given in ((model, halves), (bend, plain))
    )
    assert torch.equal(ours.latents, expected.latents)
    halves[0]["c"].gain = 2.0
    halves[1]["c"].gain = 3.0
    with pytest.raises(ValueError, match=r"unconditional\['c'\].gain must equal"):
        sample(model, *halves, guidance_scale=2.0)


def test_nothing_is_written_into_the_users_objects():
    value = Stubborn(SHIFT)
    sample(lambda x, t, c: bend(x, t, c.shift), {"c": value})
    assert value.shift is SHIFT
    with pytest.raises(TypeError, match=r"\['c'\] must be .*got Members with 4 rows"):
        sample(lambda x, t, c: x, {"c": Members.ONE})


def test_what_holds_no_tensor_stays_the_object_that_it_is():
    """A counter in a dataclass, say."""
    names = ["a"]

    @dataclasses.dataclass
    class Counter:
        n: int = 0

    counter = Counter()

    def model(x, t, state, shift):
        assert state["names"] is names
        state["counter"].n += 1
        return bend(x, t, shift)

    result = sample(model, {"state": {"counter": counter, "names": names}, "shift": SHIFT})
    assert counter.n == result.nfe.max()


@pytest.mark.parametrize("kind", [Output, ModelOutput])
def test_an_output_whose_field_is_none_is_rebuilt(kind):
    @dataclasses.dataclass
    class More(kind):
        shift: torch.Tensor = None
        mask: torch.Tensor = None

    def model(x, t, c):
        assert type(c) is More and c.mask is None and c["shift"] is c.shift
        return bend(x, t, c[0])

    assert torch.equal(sample(model, {"c": More(shift=SHIFT)}).latents, plain_run())


def plain_run():
    return sample(bend, {"shift": SHIFT}).latents


@pytest.mark.parametrize(
    "array",
    [
        SHIFT.numpy()[::-1].copy()[::-1],
        SHIFT.numpy().astype(">f4"),
        np.broadcast_to(SHIFT.numpy()[:, None], (4, 3))[:, 0],
    ],
    ids=["backwards", "big-endian", "read-only"],
)
def test_arrays_of_all_layouts_are_taken(array):
    assert torch.equal(sample(bend, {"shift": array}).latents, plain_run())


def test_what_holds_itself_is_refused():
    loop, ring, chain = Plain(SHIFT), [], {}
    loop.scale = [loop]
    ring.append(ring)
    chain["y"] = [chain]
    for value, path in ((loop, r".scale\[0\]"), (ring, r"\[0\]"), (chain, r"\['y'\]\[0\]")):
        with pytest.raises(ValueError, match=rf"conditioning\['x'\]{path} must not hold itself"):
            sample(lambda x, t, x_: x, {"x": value})


class Alike:
    def __repr__(self):
        return "K"


def test_keys_that_print_alike_are_refused():
    with pytest.raises(ValueError, match=r"conditioning\['x'\]\[K\] must be one key, got two"):
        sample(lambda x, t, x_: x, {"x": {Alike(): SHIFT, Alike(): SHIFT}})


def test_an_object_that_holds_what_is_the_same_for_all_samples_passes():
    """A table of positions, a store that a model writes other shapes into."""
    table = types.SimpleNamespace(positions=torch.arange(9.0), seen=[torch.zeros(9, 4)])

    def model(x, t, given, shift):
        assert given is table
        return bend(x, t, shift)

    assert torch.equal(sample(model, {"given": table, "shift": SHIFT}).latents, plain_run())


def test_large_plain_values_are_passed_in_no_time():
    given = {"a": bytearray(10**7), "b": range(10**9), "c": types.SimpleNamespace(d=[0] * 10**6)}
    assert torch.equal(
        sample(lambda x, t, **_: bend(x, t, SHIFT[: len(x)] * 0), given).latents,
        sample(lambda x, t: bend(x, t, SHIFT[: len(x)] * 0)).latents,
    )


def test_a_signature_sees_what_stands_around_the_tensors():
    def call(value):
        return NetworkCall(bend, SHAPE, False, {"x": value}, None, True, torch.device("cpu"))

    same = [call(Plain(SHIFT)).structure for _ in range(2)]
    assert same[0] == same[1]
    others = [call(v).structure for v in (Frozen(SHIFT), [SHIFT], {"shift": SHIFT}, Derived(SHIFT))]
    assert all(one != other for one, other in itertools.combinations([same[0], *others], 2))


def test_halves_of_different_kinds_are_refused():
    for a, b in ((Plain(SHIFT), Frozen(SHIFT)), ([], {}), ({"y": SHIFT}, Plain(SHIFT))):
        with pytest.raises(ValueError, match=r"unconditional\['x'\] and .* must be of one kind"):
            sample(lambda x, t, x_: x, {"x": a}, {"x": b}, guidance_scale=2.0)


def test_halves_that_differ_in_plain_values_are_refused_by_path():
    for a, b in (({"x": Plain(SHIFT, 1.0)}, {"x": Plain(SHIFT, 2.0)}), ({"x": 1}, {"x": SHIFT})):
        with pytest.raises(ValueError, match=r"unconditional\['x'\]\S* must equal conditioning"):
            sample(lambda x, t, x_: x, a, b, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"shape and dtype of conditioning\['x'\]"):
        sample(
            lambda x, t, x_: x,
            {"x": np.zeros((4, 2))},
            {"x": np.zeros((4, 3))},
            guidance_scale=2.0,
        )


def wan():
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        cross_attn_norm=True,
        rope_max_seq_len=16,
    )
    return model.eval().requires_grad_(False)


def test_a_bfloat16_network_with_a_float32_first_parameter_is_fed_bfloat16():
    """Wan keeps its scale_shift_table, its first parameter, in float32."""
    model = wan().to(torch.bfloat16)
    model.scale_shift_table.data = model.scale_shift_table.data.float()
    assert next(model.parameters()).dtype == torch.float32
    assert network_dtype(model) == torch.bfloat16
    text = torch.randn(1, 3, 8, dtype=torch.bfloat16)
    sampler = ak.AdaptiveSampler(
        diffusers.FlowMatchEulerDiscreteScheduler(), 4, ak.AdaptiveConfig(criterion="never")
    )
    result = sampler(
        model, torch.randn(1, 4, 1, 4, 4), {"encoder_hidden_states": text}, progress=False
    )
    assert result.latents.isfinite().all()


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float32])
def test_layerwise_casting_is_fed_what_it_computes_in(storage):
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    model = model.eval().requires_grad_(False).to(torch.bfloat16)
    model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.bfloat16)
    assert network_dtype(model) == torch.bfloat16
    sampler = ak.AdaptiveSampler(
        diffusers.DDIMScheduler(clip_sample=False), 4, ak.AdaptiveConfig(criterion="never")
    )
    assert sampler(model, torch.randn(2, 2, 8, 8), progress=False).latents.isfinite().all()


def test_most_parameters_decide_for_a_module_that_says_nothing():
    network = torch.nn.Sequential(
        torch.nn.LayerNorm(7), torch.nn.Linear(7, 7).bfloat16(), torch.nn.Embedding(3, 2).double()
    )
    assert network_dtype(network) == torch.bfloat16
    network.register_parameter("count", torch.nn.Parameter(torch.zeros(99).long(), False))
    assert network_dtype(network) == torch.bfloat16
    assert network_dtype(torch.compile(network)) == torch.bfloat16
    assert network_dtype(lambda x, t: x) == torch.float32
    for said in (torch.float16, torch.float64, torch.float8_e4m3fn, "auto", None):
        network.dtype = said  # no parameter bears it out, or nobody can be fed in it
        assert network_dtype(network) == torch.bfloat16
    network.dtype = torch.float32  # the norm's
    assert network_dtype(network) == torch.float32


class Converted(torch.nn.Module):
    """Remembers the dtype that it was made with, as some do."""

    def __init__(self):
        super().__init__()
        self.dtype = torch.float32
        self.inner = torch.nn.Linear(6, 6)

    def forward(self, x, t):
        return self.inner(x)


class Computed(Converted):
    """Computes in another dtype than it stores, and says so."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.inner = torch.nn.Linear(6, 6)

    dtype = property(lambda self: torch.float16)


class Broken(Converted):
    def __init__(self):
        torch.nn.Module.__init__(self)

    dtype = property(lambda self: next(self.parameters()).dtype)


def test_a_dtype_that_is_worked_out_is_believed_and_a_remembered_one_checked():
    assert network_dtype(Converted().bfloat16()) == torch.bfloat16
    assert network_dtype(torch.compile(Converted().bfloat16())) == torch.bfloat16
    assert network_dtype(Computed()) == network_dtype(torch.compile(Computed())) == torch.float16
    assert network_dtype(Broken()) == torch.float32
    sample(Converted().bfloat16())
    lazy = torch.nn.Sequential(torch.nn.Linear(6, 6).half(), torch.nn.LazyLinear(6))
    assert network_dtype(lazy) == torch.float16


def test_a_mismatch_inside_the_network_names_dtype():
    inner = torch.nn.Linear(6, 6).bfloat16()
    with pytest.raises(
        RuntimeError,
        match=r"fails on an input of float32: .*; name the dtype it takes with dtype=",
    ) as raised:
        sample(lambda x, t: inner(x))
    assert isinstance(raised.value.__cause__, RuntimeError)
    sample(lambda x, t: inner(x), dtype=torch.bfloat16)
    convolution = torch.nn.Conv1d(2, 2, 1).half()
    with pytest.raises(RuntimeError, match=r"the dtype it takes with dtype="):
        sample(lambda x, t: convolution(x))


class Own(RuntimeError):
    pass


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("broken"),
        RuntimeError("no entry for dtype_embed"),
        Own("mat1 and mat2 must have the same dtype"),
        NotImplementedError("not implemented for 'Half'"),
        torch.OutOfMemoryError("expected scalar type"),
    ],
)
def test_what_a_network_raises_otherwise_passes_as_it_is(error):
    def fail(x, t):
        raise error

    with pytest.raises(RuntimeError) as raised:
        sample(fail)
    assert raised.value is error


def test_surplus_channels_are_named():
    with pytest.raises(ValueError, match=r"got \(4, 4, 6\): give .* alone, output\[:, :2\]"):
        sample(lambda x, t: torch.cat((x, x), 1))


def test_a_threshold_per_sample_needs_decisions_per_sample():
    sampler = ak.AdaptiveSampler(
        diffusers.DDIMScheduler(clip_sample=False),
        20,
        ak.AdaptiveConfig(0.3, 4, "third_order", granularity="batch"),
    )
    call = {"conditioning": {"shift": SHIFT}, "progress": False}
    with pytest.raises(ValueError, match="threshold must be one number with granularity 'batch'"):
        sampler(bend, noise(), threshold=torch.tensor([0.1, 0.2, 0.1, 0.1]), **call)
    same = sampler(bend, noise(), threshold=torch.full((4,), 0.1), **call)
    assert torch.equal(same.latents, sampler(bend, noise(), threshold=0.1, **call).latents)
