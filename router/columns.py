"""Records, late answers and feedback as Arrow columns, and back: any frozen struct of `router.records`, field by field.

The schema is read off the structs, so a field that is added to a record is shipped from then on, and a file that was
written without it gives its default. Bodies are text columns of their own: who does not ask for them does not read them.
Knows no file and no folder. Raw JSON is text, None is null, `NO_BODY` too.
"""

import functools
import types
import typing
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate, chain, pairwise, repeat
from typing import Any, TypeVar

import msgspec
import pyarrow as pa

from router.records import NO_BODY

S = TypeVar("S", bound=msgspec.Struct)

_INT64 = 2**63
_SCALARS = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}


def schema_of(kind: type[msgspec.Struct], text: pa.DataType | None = None) -> pa.Schema:
    """Arrow schema of a struct. `text` is the type of bodies, `pa.string()` when none is given."""
    return pa.schema(_fields(kind, text or pa.string()))


def batch_of(kind: type[S], values: Sequence[S], text: pa.DataType | None = None) -> pa.RecordBatch:
    """One row a struct.

    Raises:
        pa.ArrowInvalid: a body is not UTF-8; `text=pa.binary()` takes it.
    """
    schema = schema_of(kind, text)
    return pa.RecordBatch.from_arrays(_encode_fields(values, kind, list(schema)), schema=schema)


def with_column(
    schema: pa.Schema, name: str, kind: type[msgspec.Struct], text: pa.DataType | None = None
) -> pa.Schema:
    """The schema with one more column: in each row a list of structs."""
    return schema.append(pa.field(name, _arrow(tuple[kind, ...], text or pa.string())))  # type: ignore[valid-type]


def tuples_of(
    kind: type[S], values: Sequence[Sequence[S]], text: pa.DataType | None = None
) -> pa.Array:
    """A column that has a list of structs in each row."""
    hint = tuple[kind, ...]  # type: ignore[valid-type]
    return _encode(values, hint, pa.field("", _arrow(hint, text or pa.string())))


def lists_of(kind: type[S], column: pa.Array) -> list[tuple[S, ...]]:
    """The lists of structs that `tuples_of` wrote."""
    return _decode(column, tuple[kind, ...])  # type: ignore[valid-type]


def structs_of(kind: type[S], batch: pa.RecordBatch) -> list[S]:
    """The structs of a batch, one a row; columns that it lacks have their default."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    return _construct(kind, columns, batch.num_rows)


def leaves(schema: pa.Schema, without: Collection[str]) -> list[str]:
    """Paths of the columns to read, as Parquet names them, but those whose last name is in `without`."""
    return [
        path for field in schema for path in _paths(field) if path.split(".")[-1] not in without
    ]


def _paths(field: pa.Field) -> list[str]:
    inner = field.type
    if pa.types.is_struct(inner):
        return [f"{field.name}.{path}" for child in inner for path in _paths(child)]
    if pa.types.is_map(inner):
        return [f"{field.name}.key_value.key", f"{field.name}.key_value.value"]
    if pa.types.is_list(inner):
        below = _paths(inner.value_field.with_name("element"))
        return [f"{field.name}.list.{path}" for path in below]
    return [field.name]


@functools.cache
def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        field.name: field.default_factory()
        if field.default_factory is not msgspec.NODEFAULT
        else None
        if field.default is msgspec.NODEFAULT
        else field.default
        for field in msgspec.structs.fields(kind)
    }


def _bare(hint: Any) -> Any:
    """The type without its `| None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
    return hint


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def _fields(kind: type[msgspec.Struct], text: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, _arrow(_hints(kind)[name], text)) for name in kind.__struct_fields__]


def _arrow(hint: Any, text: pa.DataType) -> pa.DataType:
    hint = _bare(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is msgspec.Raw:
        return text
    if _is_struct(hint):
        return pa.struct(_fields(hint, text))
    if origin is typing.Literal:
        return pa.string()
    if origin is tuple:
        return pa.list_(pa.field("element", _arrow(args[0], text)))
    if origin is dict:
        return pa.map_(_arrow(args[0], text), _arrow(args[1], text))
    return _SCALARS[hint]


def _encode(values: Sequence[Any], hint: Any, field: pa.Field) -> pa.Array:
    hint, kind = _bare(hint), field.type
    if hint is msgspec.Raw:
        return pa.array([bytes(v) or None for v in values], kind)
    if _is_struct(hint):
        return _encode_structs(values, hint, kind)
    origin = typing.get_origin(hint)
    if origin is tuple:
        flat = list(chain.from_iterable(values))
        below = _encode(flat, typing.get_args(hint)[0], kind.value_field)
        return pa.ListArray.from_arrays(_offsets(values), below, type=kind)
    if origin is dict:
        keys = pa.array(list(chain.from_iterable(values)), kind.key_type)
        items = pa.array([v for d in values for v in d.values()], kind.item_type)
        return pa.MapArray.from_arrays(_offsets(values), keys, items, type=kind)
    if hint is int:
        return _integers(values, kind)
    return pa.array(values, kind)


def _encode_structs(
    values: Sequence[Any], hint: type[msgspec.Struct], kind: pa.StructType
) -> pa.Array:
    is_null = [v is None for v in values]
    mask = None
    if any(is_null):
        mask = pa.array(is_null, pa.bool_())
        values = [_blank(hint) if v is None else v for v in values]
    fields = list(kind)
    return pa.StructArray.from_arrays(
        _encode_fields(values, hint, fields), fields=fields, mask=mask
    )


def _encode_fields(
    values: Sequence[Any], kind: type[msgspec.Struct], fields: Sequence[pa.Field]
) -> list[pa.Array]:
    rows = map(msgspec.structs.astuple, values)
    columns = list(zip(*rows, strict=True)) or [()] * len(fields)
    return [
        _encode(column, _hints(kind)[field.name], field)
        for column, field in zip(columns, fields, strict=True)
    ]


@functools.cache
def _blank(kind: type[msgspec.Struct]) -> msgspec.Struct:
    """What stands below a null: nothing, but containers need an empty one."""
    return kind(*(_blank_value(_hints(kind)[name]) for name in kind.__struct_fields__))


def _blank_value(hint: Any) -> Any:
    if _is_struct(hint):
        return _blank(hint)
    return {dict: {}, tuple: (), None: NO_BODY if hint is msgspec.Raw else None}.get(
        typing.get_origin(hint)
    )


def _integers(values: Sequence[int | None], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (OverflowError, pa.ArrowInvalid):
        # A backend that reports 1e30 tokens must not stop the log: the number is cut to 64 bits.
        cut = [v if v is None else max(-_INT64, min(v, _INT64 - 1)) for v in values]
        return pa.array(cut, kind)


def _offsets(values: Iterable[Any]) -> pa.Array:
    return pa.array(list(accumulate(map(len, values), initial=0)), pa.int32())


def _construct(kind: type[S], columns: dict[str, pa.Array], rows: int) -> list[S]:
    defaults = _defaults(kind)
    values = [
        _decode(columns[name], _hints(kind)[name])
        if name in columns
        else repeat(defaults[name], rows)
        for name in kind.__struct_fields__
    ]
    return list(map(kind, *values))


def _decode(array: pa.Array, hint: Any) -> list[Any]:
    bare = _bare(hint)
    if bare is msgspec.Raw:
        return [msgspec.Raw(v) if v else NO_BODY for v in array.cast(pa.binary()).to_pylist()]
    if _is_struct(bare):
        return _decode_structs(array, bare)
    origin = typing.get_origin(bare)
    if origin is tuple:
        flat = _decode(array.flatten(), typing.get_args(bare)[0])
        return [tuple(flat[a:b]) for a, b in _spans(array)]
    if origin is dict:
        pairs = list(_pairs(array))
        return [dict(pairs[a:b]) for a, b in _spans(array)]
    return array.to_pylist()  # type: ignore[no-any-return]


def _decode_structs(array: pa.StructArray, kind: type[msgspec.Struct]) -> list[Any]:
    # `flatten` minds the offset of a slice, `field` does not; it lays the parent's nulls over the children.
    columns = dict(zip((f.name for f in array.type), array.flatten(), strict=True))
    built = _construct(kind, columns, len(array))
    if array.null_count:
        return [
            v if valid else None
            for v, valid in zip(built, array.is_valid().to_pylist(), strict=True)
        ]
    return built


def _pairs(array: pa.MapArray) -> Iterable[tuple[Any, Any]]:
    start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
    keys, items = array.keys[start:end], array.items[start:end]
    return zip(keys.to_pylist(), items.to_pylist(), strict=True)


def _spans(array: pa.Array) -> Iterable[tuple[int, int]]:
    """Where each row's elements lie among the flattened ones."""
    offsets = array.offsets.to_pylist()
    first = offsets[0]
    return [(a - first, b - first) for a, b in pairwise(offsets)]
