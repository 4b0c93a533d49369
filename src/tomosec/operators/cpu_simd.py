"""A value type of eight SIMD lanes for Numba: LLVM's ``<8 x float>`` and ``<8 x double>``.

Plain Numba loops over eight neighbors run six to ten times slower here, probably because LLVM cannot prove that the
arrays do not overlap. With explicit vectors there is nothing to prove. LLVM splits the type where registers are
narrower, so this works on any CPU.

Arrays are one-dimensional and contiguous, of float32 or float64; indices count scalars and are not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 8


class Lanes(types.Type):  # type: ignore[misc]
    """Numba type of eight scalars of ``dtype``."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


def _vector(dtype: Any) -> Any:
    return ir.VectorType(ir.FloatType() if dtype == types.float32 else ir.DoubleType(), LANES)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, _vector(lanes.dtype))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(_vector(array_type.dtype)))


@intrinsic  # type: ignore[untyped-decorator]
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """Return the eight scalars ``array[index : index + 8]``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type = signature.args[0]
        pointer = _pointer(context, builder, array_type, args[0], args[1])
        return builder.load(pointer, align=array_type.dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Set ``array[index : index + 8]``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type = signature.args[0]
        pointer = _pointer(context, builder, array_type, args[0], args[1])
        builder.store(args[2], pointer, align=array_type.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def splat(typing_context: Any, scalar: Any) -> Any:
    """Return eight copies of a scalar."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(args[0].type, LANES)
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

    return Lanes(scalar)(scalar), generate


def _elementwise(operation: str, doc: str) -> Callable[..., Any]:
    def function(typing_context: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, operation)(args[0], args[1], flags=("contract",))

        return left(left, right), generate

    function.__name__ = function.__qualname__ = operation
    function.__doc__ = doc
    return intrinsic(function)  # type: ignore[no-any-return]


add = _elementwise("fadd", "Return left + right, lane by lane.")
subtract = _elementwise("fsub", "Return left − right, lane by lane.")
multiply = _elementwise("fmul", "Return left · right, lane by lane.")


@intrinsic  # type: ignore[untyped-decorator]
def multiply_add(typing_context: Any, left: Any, right: Any, addend: Any) -> Any:
    """Return left · right + addend, lane by lane, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = args[0].type
        name = f"llvm.fma.v{LANES}{'f32' if signature.return_type.dtype == types.float32 else 'f64'}"
        fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        return builder.call(fused, args)

    return left(left, right, addend), generate
