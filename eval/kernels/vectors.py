"""Vectors of 16 numbers inside compiled functions: a number of each of 16 lanes, so that no sum runs across a vector.

A vector has 16 entries on every processor, which computes them in as many instructions as it needs. Operations are
IEEE 754's, one rounding each, in the order of the source; nothing is fused or reassociated but what says so. So bits
depend neither on the instruction set nor on the number of lanes.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

WIDTH = 16


class Vector(types.Type):
    """16 floats of a type."""

    def __init__(self, dtype: types.Float):
        self.dtype = dtype
        super().__init__(name=f"vector_{WIDTH}_{dtype}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector: Vector):
        super().__init__(manager, vector, ir.VectorType(manager.lookup(vector.dtype).get_value_type(), WIDTH))


@intrinsic
def spread(_context, number):
    """Put a number into all entries."""

    def generate(context, builder, signature, args):
        vector = context.get_value_type(signature.return_type)
        return _spread(builder, vector, args[0])

    return Vector(number)(number), generate


@intrinsic
def load(_context, like, array, place):
    """Load 16 entries of a contiguous `array` from flat index `place` on, as floats of the type of `like`."""

    def generate(context, builder, signature, args):
        loaded = builder.load(_pointer(context, builder, array, args[1], args[2]))
        loaded.align = _item_bytes(array)
        return _converted(context, builder, loaded, array.dtype, like)

    return Vector(like)(like, array, place), generate


@intrinsic
def store(_context, vector, array, place):
    """Store where `load` reads; into arrays of smaller types go integers, and floats that these represent."""

    def generate(context, builder, signature, args):
        value = _converted(context, builder, args[0], vector.dtype, array.dtype)
        builder.store(value, _pointer(context, builder, array, args[1], args[2])).align = _item_bytes(array)
        return context.get_dummy_value()

    return types.void(vector, array, place), generate


@intrinsic
def fetch(_context, array, place):
    """Prefetch the memory at `place`, which may lie behind the end."""

    def generate(context, builder, signature, args):
        data = context.make_array(array)(context, builder, args[0]).data
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # For reading, into all caches, as data.
        options = [ir.Constant(number, option) for option in (0, 3, 1)]
        builder.call(function, [builder.bitcast(builder.gep(data, [args[1]]), pointer), *options])
        return context.get_dummy_value()

    return types.void(array, place), generate


@intrinsic
def cast(_context, like, vector):
    """Round the vector's entries to the type of `like`."""

    def generate(context, builder, signature, args):
        return _converted(context, builder, args[1], vector.dtype, like)

    return Vector(like)(like, vector), generate


@intrinsic
def multiply_add(_context, a, b, c):
    """Compute a * b + c, rounded once."""
    return a(a, b, c), _call("fma", a)


@intrinsic
def root(_context, vector):
    """Compute square roots, correctly rounded."""
    return vector(vector), _call("sqrt", vector)


@intrinsic
def nearest(_context, vector):
    """Round to the nearest integers; halves go to the even ones."""
    return vector(vector), _call("roundeven", vector)


@intrinsic
def greater(_context, a, b):
    """Take the larger of two numbers in each place."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, b), generate


@intrinsic
def smaller(_context, a, b):
    """Take the smaller of two numbers in each place."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return a(a, b), generate


@intrinsic
def power_of_two(_context, vector):
    """Compute 2 to the power of integers between -126 and 127, float32."""

    def generate(context, builder, signature, args):
        integers = ir.VectorType(ir.IntType(32), WIDTH)
        exponents = builder.fptosi(args[0], integers)
        biased = builder.add(exponents, ir.Constant(integers, [127] * WIDTH))
        return builder.bitcast(builder.shl(biased, ir.Constant(integers, [23] * WIDTH)), args[0].type)

    return vector(vector), generate


def _operation(sign, name: str) -> None:
    @intrinsic
    def operation(_context, a, b):
        def generate(context, builder, signature, args):
            return getattr(builder, name)(*args)

        return a(a, b), generate

    @overload(sign)
    def of_vectors(a, b):
        if isinstance(a, Vector) and a == b:
            return lambda a, b: operation(a, b)
        return None


_operation(operator.add, "fadd")
_operation(operator.sub, "fsub")
_operation(operator.mul, "fmul")
_operation(operator.truediv, "fdiv")


def _call(name: str, vector: Vector):
    def generate(context, builder, signature, args):
        kind = context.get_value_type(vector)
        function = ir.FunctionType(kind, [kind] * len(args))
        whole = f"llvm.{name}.v{WIDTH}f{vector.dtype.bitwidth}"
        return builder.call(cgutils.get_or_insert_function(builder.module, function, whole), args)

    return generate


def _spread(builder, vector: ir.VectorType, number):
    undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), None)
    return builder.shuffle_vector(builder.insert_element(undefined, number, first), undefined, zeros)


def _converted(context, builder, vector, given: types.Integer | types.Float, wanted: types.Integer | types.Float):
    kind = ir.VectorType(context.get_value_type(wanted), WIDTH)
    if given == wanted:
        return vector
    if isinstance(given, types.Integer):
        return builder.sitofp(vector, kind)
    if isinstance(wanted, types.Integer):
        return builder.fptosi(vector, kind)
    return (builder.fpext if wanted.bitwidth > given.bitwidth else builder.fptrunc)(vector, kind)


def _pointer(context, builder, array: types.Array, value, place):
    data = context.make_array(array)(context, builder, value).data
    kind = ir.VectorType(context.get_data_type(array.dtype), WIDTH)
    return builder.bitcast(builder.gep(data, [place]), kind.as_pointer())


def _item_bytes(array: types.Array) -> int:
    return np.dtype(str(array.dtype)).itemsize
