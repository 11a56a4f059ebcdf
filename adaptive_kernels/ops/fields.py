"""The arguments of `step` and `advance`: names, shapes and dtypes, once for whoever asks.

From here come the ops' schemas and documentation, the check of arguments, a state's buffers and the
names that tests go through; csrc/op/fields.h is the same table for C++.

Sizes: T steps, B samples of N elements, K history terms, M = B rows of a network or 2 B with
guidance (unconditional first), ring depth R >= 3 stages + 1; G, Q and P are what the tensors hold.
"""

import collections
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..rules.tables import OUTPUTS, PREDICTORS, SCALARS, WEIGHTS

MEASURES = 6
# A GPU sums over pieces of so many elements, and has a head and so many sums of each, of 8 bytes.
PIECE, SUMS = 1024, 16
# Rows of `progress`.
PROGRESS = ("index", "run", "nfe", "last_call", "call_before")

FLOAT = (torch.float32,)
NETWORK = (torch.float32, torch.float16, torch.bfloat16)

# Whose a field is: a solver's under a config, what a sampling is given, or what the op works in.
TABLE, INPUT, BUFFER = "tables", "inputs", "buffers"


class Field(NamedTuple):
    """A tensor of the ops."""

    name: str
    shape: tuple[str | int, ...]  # of the sizes above
    dtypes: tuple[torch.dtype, ...]
    part: str  # TABLE, INPUT or BUFFER
    text: str
    written: bool = False
    optional: bool = False


FIELDS = (
    Field(
        *("latents", ("R", "B", "N"), FLOAT, BUFFER),
        "those of step i are in slot i mod R, those of a sample's own step and of as many before "
        "it as its criterion reads. Other slots hold anything: `advance` may leave out what no "
        "later step reads.",
        written=True,
    ),
    Field(
        *("history", ("K - 1", "B", "N"), FLOAT, BUFFER),
        "h_i is in slot i mod (K - 1).",
        written=True,
    ),
    Field(*("model_input", ("M", "N"), NETWORK, BUFFER), "c_{i+1} x_{i+1}.", written=True),
    Field(
        *("timestep", ("M",), (torch.float32, torch.int64), BUFFER),
        "t_{i+1} in the scheduler's units.",
        written=True,
    ),
    Field(
        *("progress", (len(PROGRESS), "B"), (torch.int32,), BUFFER),
        "index (steps done), run (steps since the refresh), nfe, last_call and call_before (steps "
        "of the last refresh and of the one before it).",
        written=True,
    ),
    Field(
        *("measures", ("B", MEASURES), (torch.float64,), BUFFER),
        "what the criterion keeps of the steps before: sums over the first difference of the last "
        "two whole steps; under `defect` the rate of the fill's error, the variance of the noise "
        "of a guided output, the noise of the three kept outputs in units of it, and the share of "
        "its defect that the next refresh leaves out of what it keeps.",
        written=True,
    ),
    Field(
        *("refreshed", ("T", "B"), (torch.bool,), BUFFER),
        "whether step i was done on a fresh output.",
        written=True,
    ),
    Field(
        *("score", ("T", "B"), FLOAT, BUFFER),
        "left over right side of the criterion that decided step i.",
        written=True,
    ),
    Field(
        *("outputs", (OUTPUTS, "B", "N"), FLOAT, BUFFER),
        "e of refresh number r is in slot r mod 3, under `defect` less a share of its defect; "
        "None: an output is used again as it is.",
        written=True,
        optional=True,
    ),
    Field(
        *("workspace", ("B", "P", SUMS), (torch.float64,), BUFFER),
        "`workspace_shape`, on a boundary of 16 bytes: zeros before the first call on it, all of "
        "it, and between calls what the last one left. With anything else a sample may stand still "
        "or be decided by sums of another call, and nothing reports it; two calls at a time on one "
        "workspace may never end. Needed on a GPU; None on the CPU.",
        written=True,
        optional=True,
    ),
    Field(*("model_output", ("M", "N"), NETWORK, BUFFER), "what the network returned."),
    Field(*("guidance_scale", ("B",), FLOAT, INPUT), "g, of no effect where M = B."),
    Field(*("threshold", ("B",), FLOAT, INPUT), "of the criterion."),
    Field(
        *("output_noise", ("B",), FLOAT, INPUT),
        "under `defect` the most that counts as noise of a guided output, rms; 0: none.",
    ),
    Field(
        *("rows", ("T", f"{SCALARS} + K"), FLOAT, TABLE),
        "the solver by step: p, q, A, S, c_{i+1}, t_{i+1}, u, w, ps, qs, C_0 .. C_{K-1}.",
    ),
    Field(
        *("weights", ("T", "G", "G", WEIGHTS), FLOAT, TABLE),
        "f, r, spread and the noise of an output, by step and by the distances between step, last "
        "refresh and the one before; with `outputs`. A spread below zero: of one output alone.",
        optional=True,
    ),
    Field(
        *("rule_table", ("T", "G", "Q", PREDICTORS), FLOAT, TABLE),
        "what the criterion looks up: under `defect` the predicted error per unit of the rate and "
        "the terms of the noise beside it, by refresh, distance to the one before and length of "
        "the run, NaN where none is predicted and the network is called; under `plan`, first, 1 "
        "where the network is called, else 0.",
        optional=True,
    ),
    Field(
        *("seed", ("B",), (torch.int64,), INPUT),
        "the noise stream of each sample. With neither seeds nor `noise` a step whose S is not 0 "
        "leaves NaN: kernels for solvers that add no noise are shorter.",
        optional=True,
    ),
    Field(*("noise", ("T", "B", "N"), FLOAT, INPUT), "in place of the seeds.", optional=True),
)
NAMES = tuple(field.name for field in FIELDS)
FIELD = {field.name: field for field in FIELDS}
# The integers and the switch that follow the tensors: `rules.criteria.Rule`.
RULE = dict.fromkeys(("criterion", "max_skip", "warmup", "stages"), "int") | {"batch_wide": "bool"}
MORE = {
    "step": {"fresh": "bool", "condition": "int? condition=None"},
    "advance": {"condition": "int? condition=None"},
}

# What `advance` takes, in order; `step` takes `fresh` after them.
Arguments = collections.namedtuple("Arguments", [*NAMES, *RULE])
Arguments.__doc__ = "The ops' arguments by name: the tensors of `FIELDS`, then the rule's integers."


def schema(op: str) -> str:
    """The op's schema; every written tensor has an alias of its own."""
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    tensors = [
        f"Tensor{f'({next(letters)}!)' if field.written else ''}{'?' * field.optional} {field.name}"
        for field in FIELDS
    ]
    scalars = [f"{kind} {name}" for name, kind in RULE.items()]
    more = [kind if " " in kind else f"{kind} {name}" for name, kind in MORE[op].items()]
    return f"{op}({', '.join([*tensors, *scalars, *more])}) -> ()"


def bind(op: str, arguments: tuple, named: dict) -> tuple[Arguments, dict]:
    """A call's arguments by name: those of both ops, and the op's own.

    Raises: TypeError where one is missing or unknown.
    """
    names = (*Arguments._fields, *MORE[op])
    values = {"condition": None, **dict(zip(names, arguments, strict=False)), **named}
    if len(arguments) > len(names) or values.keys() != set(names):
        raise TypeError(f"the arguments of {op} are {', '.join(names)}")
    own = {name: values.pop(name) for name in MORE[op]}
    return Arguments(**values), own


def tensors(arguments: Arguments) -> Iterator[tuple[Field, Tensor]]:
    """Every tensor that is given, with its field."""
    for field, value in zip(FIELDS, arguments, strict=False):
        if value is not None:
            yield field, value


def document() -> str:
    """The tensors as a table in Markdown."""
    lines = ["| argument | | what it is |", "|---|---|---|"]
    for field in FIELDS:
        shape = ", ".join(map(str, field.shape))
        facts = [f"[{shape}] {dtype_names(field.dtypes)}"]
        facts += ["written"] * field.written + ["may be None"] * field.optional
        lines.append(f"| `{field.name}` | {', '.join(facts)} | {field.text} |")
    return "\n".join(lines)


def dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(most)} or {last}" if most else last


def pieces(elements: int) -> int:
    """Into how many pieces a GPU cuts a sample of so many elements."""
    return max(-(-elements // PIECE), 1)


def workspace_shape(batch: int, elements: int) -> tuple[int, int, int]:
    """Shape of `workspace` for B samples of N elements: csrc/op/fields.h."""
    return batch, 1 + pieces(elements), SUMS
