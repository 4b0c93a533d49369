"""A value type of eight SIMD lanes for Numba: LLVM's ``<8 x float>`` and ``<8 x double>``.

Plain Numba loops over eight neighbors run six to ten times slower here, probably because LLVM cannot prove that the
arrays do not overlap. With explicit vectors there is nothing to prove. LLVM splits the type where registers are
narrower, so this works on any CPU.

Arrays are one-dimensional and contiguous, of float32 or float64; indices count scalars and are not checked. The arithmetic
takes single scalars too, and rounds them as it rounds a lane.
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


def _copies(builder: Any, scalar: Any) -> Any:
    vector = ir.VectorType(scalar.type, LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


@intrinsic  # type: ignore[untyped-decorator]
def splat(typing_context: Any, scalar: Any) -> Any:
    """Return eight copies of a scalar."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _copies(builder, args[0])

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
divide = _elementwise("fdiv", "Return left / right, lane by lane.")


@intrinsic  # type: ignore[untyped-decorator]
def clamp(typing_context: Any, lanes: Any, low: Any, high: Any) -> Any:
    """Return the lanes, none below the scalar ``low`` or above the scalar ``high``; they must be finite."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, low, high = args[0], *(_copies(builder, scalar) for scalar in args[1:])
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)

    return lanes(lanes, low, high), generate


@intrinsic  # type: ignore[untyped-decorator]
def ramp(typing_context: Any, first: Any) -> Any:
    """Return ``first``, ``first + 1``, … ``first + 7``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        steps = ir.Constant(ir.VectorType(args[0].type, LANES), [float(step) for step in range(LANES)])
        return builder.fadd(_copies(builder, args[0]), steps)

    return Lanes(first)(first), generate


@intrinsic  # type: ignore[untyped-decorator]
def whole(typing_context: Any, lanes: Any) -> Any:
    """Return the integer part of lanes that are not negative."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = f"llvm.trunc.v{LANES}{'f32' if signature.return_type.dtype == types.float32 else 'f64'}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(args[0].type, [args[0].type]), name)
        return builder.call(function, args)

    return lanes(lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_offsets(typing_context: Any, array: Any, index: Any, cells: Any) -> Any:
    """Set int32 ``array[index : index + 8]`` to eight times the cell numbers in the lanes: where each cell's lanes begin."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integers = ir.VectorType(ir.IntType(32), LANES)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.PointerType(integers))
        offsets = builder.mul(builder.fptosi(args[2], integers), ir.Constant(integers, [LANES] * LANES))
        builder.store(offsets, pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, cells), generate


@intrinsic  # type: ignore[untyped-decorator]
def multiply_add(typing_context: Any, left: Any, right: Any, addend: Any) -> Any:
    """Return left · right + addend, lane by lane, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, kind = args[0].type, signature.return_type
        scalar = "f32" if getattr(kind, "dtype", kind) == types.float32 else "f64"
        name = f"llvm.fma.v{LANES}{scalar}" if isinstance(kind, Lanes) else f"llvm.fma.{scalar}"
        fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        return builder.call(fused, args)

    return left(left, right, addend), generate
