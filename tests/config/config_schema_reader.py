"""A reader of as much JSON Schema as the schemas here use, to hold them against the parsers."""

import math
import re

_TYPES = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: _is_number(v),
    "integer": lambda v: _is_number(v) and v == math.floor(v),
}


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(a, b):
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def valid(value, schema):
    """Whether ``value`` is valid; a keyword that is not known here is an error, not ignored."""
    if schema is False:
        return False
    return all(_RULES[keyword](value, given, schema) for keyword, given in schema.items())


def _properties(value, given, schema):
    if not isinstance(value, dict):
        return True
    return all(valid(value[name], given[name]) for name in value if name in given)


def _additional(value, given, schema):
    if not isinstance(value, dict):
        return True
    return all(
        valid(value[name], given) for name in value if name not in schema.get("properties", {})
    )


def _then(value, given, schema):
    return not valid(value, schema["if"]) or valid(value, given)


def _ignored(value, given, schema):
    return True


_RULES = {
    "$schema": _ignored,
    "title": _ignored,
    "description": _ignored,
    "default": _ignored,
    "if": _ignored,
    "then": _then,
    "type": lambda v, g, s: _TYPES[g](v),
    "enum": lambda v, g, s: any(_same(v, e) for e in g),
    "const": lambda v, g, s: _same(v, g),
    "anyOf": lambda v, g, s: any(valid(v, each) for each in g),
    "minimum": lambda v, g, s: not _is_number(v) or v >= g,
    "maximum": lambda v, g, s: not _is_number(v) or v <= g,
    "minLength": lambda v, g, s: not isinstance(v, str) or len(v) >= g,
    "pattern": lambda v, g, s: not isinstance(v, str) or bool(re.search(g, v)),
    "maxLength": lambda v, g, s: not isinstance(v, str) or len(v) <= g,
    "maxItems": lambda v, g, s: not isinstance(v, list) or len(v) <= g,
    "minItems": lambda v, g, s: not isinstance(v, list) or len(v) >= g,
    "items": lambda v, g, s: (
        not isinstance(v, list)
        or all(valid(each, g) for each in v[len(s.get("prefixItems", ())) :])
    ),
    "prefixItems": lambda v, g, s: (
        not isinstance(v, list)
        or all(map(valid, v, g))  # zip: a shorter list has fewer to be checked
    ),
    "required": lambda v, g, s: not isinstance(v, dict) or all(name in v for name in g),
    "properties": _properties,
    "additionalProperties": _additional,
    "propertyNames": lambda v, g, s: not isinstance(v, dict) or all(valid(n, g) for n in v),
}
