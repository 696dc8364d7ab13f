"""Typed values to JSON and back, exactly: nothing is ignored, and nothing is filled in.

msgspec alone would ignore a field that a value does not have, and fill in a missing field's
default: a renamed field of a saved record would then be read as "nothing was seen", which can be a
pass.
"""

import json
from typing import Any

import msgspec


def to_values(value: object) -> Any:  # noqa: ANN401 - JSON
    """Return a frozen dataclass as JSON has it, with every field."""
    return json.loads(json.dumps(msgspec.to_builtins(value)))


def from_values[Kind](values: object, kind: type[Kind]) -> Kind:
    """Return the value of a kind that JSON values stand for.

    Raises:
        ValueError: they are of another form, or have more or fewer fields than the kind.
    """
    value = msgspec.convert(values, type=kind)
    # As text, since a NaN is not equal to itself.
    if _text(to_values(value)) != _text(values):
        names = _difference(value, values)
        raise ValueError(f"other fields than those of {kind.__name__}: {names}")
    return value


def _text(values: object) -> str:
    return json.dumps(_numbers_alike(values), sort_keys=True)


def _numbers_alike(values: object) -> object:
    """Return the values with whole floats as integers: both spell the same JSON number."""
    if isinstance(values, dict):
        return {key: _numbers_alike(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_numbers_alike(value) for value in values]
    return int(values) if isinstance(values, float) and values.is_integer() else values


def _difference(value: object, values: object) -> str:
    """Return the names of the outermost fields that differ."""
    written, read = to_values(value), values
    if not isinstance(written, dict) or not isinstance(read, dict):
        return "another form"
    names = {
        name
        for name in {*written, *read}
        if name not in written or name not in read or _text(written[name]) != _text(read[name])
    }
    return ", ".join(sorted(names))
