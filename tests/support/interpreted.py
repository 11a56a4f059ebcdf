"""The Triton ops in Triton's interpreter, on CPU tensors; skips where Triton is not installed."""

import contextlib
import functools
import importlib
import sys

import numpy as np
import pytest
import torch

import adaptive_kernels

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")
interpreter = pytest.importorskip("triton.runtime.interpreter")


@functools.cache
def interpreted():
    """A second copy of the modules, whose kernels Triton's interpreter runs on CPU tensors."""
    modules = ("place", "noise", "defect", "sums", "decide", "sweep", "step", "run", "launch")
    names = [f"adaptive_kernels.ops.triton.{name}" for name in modules]
    compiled = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    triton.knobs.runtime.interpret = True
    try:
        copy = importlib.import_module(names[-1])
        copy.kernels()
    finally:
        triton.knobs.runtime.interpret = False
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(compiled)
        for name, module in compiled.items():
            setattr(adaptive_kernels.ops.triton, name.rpartition(".")[2], module)
    return copy


@contextlib.contextmanager
def interpreting():
    """What the interpreter gets wrong is put right here, as a GPU does it."""
    builder = interpreter.InterpreterBuilder
    binary_op, cast = builder.binary_op, builder.cast_impl

    def binary(self, left, right, operation):
        """A comparison of scalars is a bool, not what was compared."""
        out = binary_op(self, left, right, operation)
        return interpreter.TensorHandle(out.data, tl.int1) if out.data.dtype == bool else out

    def rounded(self, source, target):
        """float32 to bfloat16 rounds to nearest even; the interpreter truncates."""
        if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
            return cast(self, source, target)
        values = torch.from_numpy(np.array(source.data)).bfloat16()
        return interpreter.TensorHandle(
            values.view(torch.int16).numpy().view(np.uint16), tl.bfloat16
        )

    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(builder, "binary_op", binary)
        patch.setattr(builder, "cast_impl", rounded)
        # Imported before the interpreter was wanted, it is compiled code.
        add = tl.standard._sum_combine
        patch.setattr(tl, "sum", lambda value, axis: tl.reduce(value, axis, add))
        # Each call of a device function would patch the language anew, for 2 ms.
        patch.setattr(
            interpreter.InterpretedFunction, "__call__", lambda self, *args: self.rewrite()(*args)
        )
        yield interpreted()
