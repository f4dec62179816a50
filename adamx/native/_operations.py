"""What one element goes through, as C expressions.

An element is a C variable: float for float32 and the 16-bit formats (rounded after each
operation, as JAX rounds them), double for float64, 32-bit integers for the others.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# dtype -> (type in memory, type of a variable). Floats of 16 and 8 bits are read,
# written and rounded by functions of the template; of 4 bits, two share a byte.
_TYPES = {
    "float32": ("float", "float"),
    "float64": ("double", "double"),
    "bfloat16": ("uint16_t", "float"),
    "float16": ("uint16_t", "float"),
    "bool": ("uint8_t", "int32_t"),
    "int8": ("int8_t", "int32_t"),
    "uint8": ("uint8_t", "uint32_t"),
    "int4": ("uint8_t", "int32_t"),
    "uint4": ("uint8_t", "uint32_t"),
    "float8_e4m3fn": ("uint8_t", "float"),
    "float8_e5m2": ("uint8_t", "float"),
    "int16": ("int16_t", "int32_t"),
    "uint16": ("uint16_t", "uint32_t"),
    "int32": ("int32_t", "int32_t"),
    "uint32": ("uint32_t", "uint32_t"),
}
_HALVES = ("bfloat16", "float16")
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
# What they are written as before they are put into memory.
_WRITTEN = dict.fromkeys((*_HALVES, *_FLOAT8), "uint32_t")

# An operation's writer: parameters, dtypes of inputs and result, the inputs' names in,
# an expression out; None where C would not do what JAX does.
Writer = Callable[[dict[str, Any], Sequence[str], str, Sequence[str]], str | None]


@functools.cache
def dtype_name(dtype: Any) -> str:
    """A dtype as it is named in this room."""
    return str(dtype)


def is_supported(dtype: str) -> bool:
    """Whether elements of a dtype have a type in C here."""
    return dtype in _TYPES


def stored_type(dtype: str) -> str:
    """The C type of an element in memory."""
    return _TYPES[dtype][0]


def variable_type(dtype: str) -> str:
    """The C type of an element in a variable."""
    return _TYPES[dtype][1]


def written_type(dtype: str) -> str:
    """The C type of what `load` reads and `store` gives, 32 bits wide or wider."""
    return _WRITTEN.get(dtype, variable_type(dtype))


def is_byte(dtype: str) -> bool:
    """Whether an element takes one byte in memory, or half of one."""
    return stored_type(dtype) in ("int8_t", "uint8_t")


def is_packed(dtype: str) -> bool:
    """Whether two elements share a byte, the first one its lower half."""
    return dtype in ("int4", "uint4")


def load(dtype: str, place: str) -> str:
    """The expression that reads an element."""
    return f"{dtype}_load({place})" if dtype in _WRITTEN else place


def store(dtype: str, variable: str) -> str:
    """The expression to be written to an element's place."""
    return f"{dtype}_bits({variable})" if dtype in _WRITTEN else variable


def literal(value: Any, dtype: str) -> str:
    """A number as C writes it, exactly."""
    kind = variable_type(dtype)
    number = np.asarray(value)
    if not _is_float(dtype):
        return f"(({kind}){int(number)}{'u' if kind == 'uint32_t' else ''})"
    x = float(number)
    if math.isnan(x):
        return f"(({kind})NAN)"
    if math.isinf(x):
        return f"(({kind}){'-' if x < 0 else ''}INFINITY)"
    return f"({x.hex()}{'' if kind == 'double' else 'f'})"


def expression(
    primitive: str,
    params: dict[str, Any],
    dtypes: Sequence[str],
    result: str,
    names: Sequence[str],
) -> str | None:
    """An element of an operation's result, or None where it has no such form.

    Args:
      primitive, params: the operation.
      dtypes, names: of its inputs' elements.
      result: dtype of the element.
    """
    chosen = tuple(params.get(name) for name in _PARAMETERS.get(primitive, ()))
    template = _template(primitive, chosen, tuple(dtypes), result)
    if template is None:
        return None
    if primitive in ("max", "min"):
        # NaN is looked for in what varies: a condition that does not vary keeps GCC
        # from vectorising the loop. A number is compared in one instruction.
        if names[0][0] in FIXED:
            names = names[::-1]
        if names[1][0] == "(" and "NAN" not in names[1]:
            sign = ">" if primitive == "max" else "<"
            return f"({names[1]} {sign} {names[0]} ? {names[1]} : {names[0]})"
    return template.format(*names)


# How names begin of what is the same for all elements of a row: scalars, rows, numbers.
FIXED = "sr("


# The parameters on which an operation's expression depends.
_PARAMETERS = {
    "integer_pow": ("y",),
    "round": ("rounding_method",),
    "reduce_precision": ("exponent_bits", "mantissa_bits"),
}


@functools.cache
def _template(
    primitive: str, chosen: tuple[Any, ...], dtypes: tuple[str, ...], result: str
) -> str | None:
    writer = _WRITERS.get(primitive)
    if writer is None or not all(map(is_supported, (*dtypes, result))):
        return None
    params = dict(zip(_PARAMETERS.get(primitive, ()), chosen, strict=True))
    places = [f"{{{i}}}" for i in range(len(dtypes))]
    found = writer(params, dtypes, result, places)
    if result in _FLOAT8 and primitive not in _MOVES:
        return None  # XLA rounds it to 16 bits on the way
    if found is None or result not in _WRITTEN:
        return found
    return f"{result}_round({found})"


def _is_float(name: str) -> bool:
    return "float" in name


def _narrow(name: str, text: str) -> str:
    """An integer in its own width: what is left of it in memory."""
    if is_packed(name):
        return f"{name}_of((uint32_t)({text}))"
    stored, kind = _TYPES[name]
    return f"(({kind})({stored})({text}))"


def _infix(sign: str) -> Writer:
    def write(params: Any, dtypes: Any, result: str, x: Any) -> str:
        if _is_float(result):
            return f"({x[0]} {sign} {x[1]})"
        return _narrow(result, f"(uint32_t){x[0]} {sign} (uint32_t){x[1]}")

    return write


def _quotient(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
    return f"({x[0]} / {x[1]})" if _is_float(result) else None


def _bitwise(sign: str) -> Writer:
    return lambda params, dtypes, result, x: f"({x[0]} {sign} {x[1]})"


def _compare(sign: str) -> Writer:
    return lambda params, dtypes, result, x: f"({x[0]} {sign} {x[1]})"


def _greater_or_less(sign: str) -> Writer:
    """NaN in either is NaN."""
    return lambda params, dtypes, result, x: (
        f"(({x[0]} {sign} {x[1]} || {x[0]} != {x[0]}) ? {x[0]} : {x[1]})"
    )


def _function(name: str) -> Writer:
    def write(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
        if not _is_float(result):
            return None
        suffix = "" if result == "float64" else "f"
        return f"{name}{suffix}({', '.join(x)})"

    return write


def _identity(params: Any, dtypes: Any, result: str, x: Any) -> str:
    return x[0]


def _absolute(params: Any, dtypes: Any, result: str, x: Any) -> str:
    if _is_float(result):
        return f"fabs{'' if result == 'float64' else 'f'}({x[0]})"
    if result[0] != "i":
        return x[0]
    return _narrow(result, f"{x[0]} < 0 ? 0u - {x[0]} : (uint32_t){x[0]}")


def _negative(params: Any, dtypes: Any, result: str, x: Any) -> str:
    return f"(-{x[0]})" if _is_float(result) else _narrow(result, f"0u - {x[0]}")


def _sign(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
    if not _is_float(result):
        return None
    kind = _TYPES[result][1]
    one = f"({x[0]} > 0 ? ({kind})1 : ({kind})-1)"
    return f"(({x[0]} != {x[0]} || {x[0]} == 0) ? {x[0]} : {one})"


def _square(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
    return f"({x[0]} * {x[0]})" if _is_float(result) else None


def _integer_power(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
    power = params["y"]
    # What XLA multiplies in which order is its own matter beyond a square.
    if not _is_float(result) or result in _WRITTEN or power not in (1, 2, -1):
        return None
    return {1: x[0], 2: f"({x[0]} * {x[0]})", -1: f"(1 / {x[0]})"}[power]


def _inverse_root(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
    if not _is_float(result):
        return None
    return f"(1 / sqrt{'' if result == 'float64' else 'f'}({x[0]}))"


def _round(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
    if not _is_float(result):
        return None
    to_even = int(params["rounding_method"]) == 1
    return _function("rint" if to_even else "round")(params, dtypes, result, x)


def _is_finite(params: Any, dtypes: Any, result: str, x: Any) -> str:
    return f"(({x[0]} - {x[0]}) == 0)"


def _select(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
    if len(x) != 3 or dtypes[0] != "bool":
        return None
    return f"({x[0]} ? {x[2]} : {x[1]})"


def _clamp(params: Any, dtypes: Any, result: str, x: Any) -> str:
    low, value, high = x
    raised = f"({value} < {low} ? {low} : {value})"
    return f"({raised} > {high} ? {high} : {raised})"


def _not(params: Any, dtypes: Any, result: str, x: Any) -> str:
    return f"(!{x[0]})" if result == "bool" else _narrow(result, f"~{x[0]}")


def _shift(sign: str, is_signed: bool = False) -> Writer:
    """Further than the width: nothing is left, of a signed number its sign."""

    def write(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
        if result not in ("int32", "uint32"):
            return None
        far = f"(uint32_t){x[1]} > 31u"
        if is_signed:
            return (
                f"(({_TYPES[result][1]})((int32_t){x[0]} {sign} ({far} ? 31 : {x[1]})))"
            )
        shifted = f"((uint32_t){x[0]} {sign} ({x[1]} & 31))"
        return f"(({_TYPES[result][1]})({far} ? 0u : {shifted}))"

    return write


def _convert(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
    source = dtypes[0]
    if result == "bool":
        return f"({x[0]} != 0)"
    if source == "float64" and result in _WRITTEN:
        return None  # it would be rounded twice
    if _is_float(result):
        # Many processors convert signed integers only.
        signed = "(int32_t)" if source in ("uint4", "uint8", "uint16") else ""
        return f"(({_TYPES[result][1]}){signed}{x[0]})"
    if _is_float(source):
        if is_packed(result):
            return None
        # Towards zero, at most to the borders of the type; NaN is 0.
        low, high = np.iinfo(result).min, np.iinfo(result).max
        if high > 65535 or source == "float64":
            return f"(({_TYPES[result][1]})to_long({x[0]}, {low}.0, {high}.0))"
        return f"(({_TYPES[result][1]})to_short({x[0]}, {low}.0f, {high}.0f))"
    return _narrow(result, x[0])


def _bitcast(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
    pair = (dtypes[0], result)
    if pair in (("float32", "uint32"), ("float32", "int32")):
        return f"(({_TYPES[result][1]})float_bits({x[0]}))"
    if pair in (("uint32", "float32"), ("int32", "float32")):
        return f"bits_float((uint32_t){x[0]})"
    if pair[0] == "uint16" and result in _HALVES:
        return f"{result}_load((uint16_t){x[0]})"
    if pair[0] in _HALVES and result == "uint16":
        return f"((uint32_t){pair[0]}_bits({x[0]}))"
    if {*pair} == {"uint32", "int32"}:
        return f"(({_TYPES[result][1]}){x[0]})"
    return None


def _reduced_precision(params: Any, dtypes: Any, result: str, x: Any) -> str | None:
    if result != "float32":
        return None
    # float16 is left to XLA: it flushes numbers below the range to 0, C does not.
    kept = (params["exponent_bits"], params["mantissa_bits"])
    return {(8, 23): x[0], (8, 7): f"bfloat16_round({x[0]})"}.get(kept)


_WRITERS: dict[str, Writer] = {
    "add": _infix("+"),
    "add_any": _infix("+"),
    "sub": _infix("-"),
    "mul": _infix("*"),
    "div": _quotient,
    "max": _greater_or_less(">"),
    "min": _greater_or_less("<"),
    "abs": _absolute,
    "neg": _negative,
    "sign": _sign,
    "square": _square,
    "integer_pow": _integer_power,
    "sqrt": _function("sqrt"),
    "rsqrt": _inverse_root,
    "exp": _function("exp"),
    "expm1": _function("expm1"),
    "log": _function("log"),
    "log1p": _function("log1p"),
    "pow": _function("pow"),
    "tanh": _function("tanh"),
    "floor": _function("floor"),
    "ceil": _function("ceil"),
    "round": _round,
    "is_finite": _is_finite,
    "eq": _compare("=="),
    "ne": _compare("!="),
    "lt": _compare("<"),
    "le": _compare("<="),
    "gt": _compare(">"),
    "ge": _compare(">="),
    "and": _bitwise("&"),
    "or": _bitwise("|"),
    "xor": _bitwise("^"),
    "not": _not,
    "shift_left": _shift("<<"),
    "shift_right_logical": _shift(">>"),
    "shift_right_arithmetic": _shift(">>", is_signed=True),
    "select_n": _select,
    "clamp": _clamp,
    "convert_element_type": _convert,
    "bitcast_convert_type": _bitcast,
    "reduce_precision": _reduced_precision,
    "copy": _identity,
    "copy_p": _identity,
    "optimization_barrier": _identity,
    "pvary": _identity,
    "pcast": _identity,
    "stop_gradient": _identity,
    "broadcast_in_dim": _identity,  # of a scalar: see `_regions`
}


# Operations whose result is an element that there was, or a rounded one.
_MOVES = ("convert_element_type", "select_n", "copy", "copy_p", "broadcast_in_dim")
