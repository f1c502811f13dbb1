"""Checks a request against the rules written in its proto.

The rules are field options (`protos/elite/validation/v1/validation.proto`). They are compiled
once per message type into a list of closures, because reading options costs far more than
applying them: `Plan` is checked on every call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

from elite.validation.v1 import validation_pb2
from services.common.errors import FieldViolation, invalid_fields

# A check takes a message and the path to it, and yields what is wrong.
Check = Callable[[Message, str], Iterator[FieldViolation]]

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}
_EXACT = 2**53
_FLOATS = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}


def validate(message: Message) -> None:
    """Raises `ServiceError` (INVALID_REQUEST) naming every field that breaks a rule."""
    violations = list(violations_of(message))
    if violations:
        raise invalid_fields(violations)


def violations_of(message: Message, path: str = "") -> Iterator[FieldViolation]:
    """Yields the rules `message` and the messages inside it break, depth first."""
    for check in _checks(message.DESCRIPTOR):
        yield from check(message, path)


@cache
def _checks(descriptor: Descriptor) -> tuple[Check, ...]:
    checks = [check for field in descriptor.fields for check in _field_checks(field)]
    checks += [_oneof_check(oneof) for oneof in descriptor.oneofs if _oneof_rules(oneof).required]
    return tuple(checks)


def _field_checks(field: FieldDescriptor) -> Iterator[Check]:
    options: Any = field.GetOptions()
    rules: validation_pb2.FieldRules = options.Extensions[validation_pb2.field]
    has_rules: bool = options.HasExtension(validation_pb2.field)
    if has_rules and rules.required:
        yield _required_check(field, rules.fix)
    if field.is_repeated and has_rules and rules.HasField("max_items"):
        yield _max_items_check(field, rules)
    if not field.is_repeated and field.cpp_type in _INTEGERS | _FLOATS:
        yield _range_check(field, rules)
    if not field.is_repeated and field.cpp_type == FieldDescriptor.CPPTYPE_STRING and has_rules:
        yield _text_check(field, rules)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        yield _known_enum_check(field)
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        yield _nested_check(field)


def _is_absent(message: Message, field: FieldDescriptor) -> bool:
    if field.is_repeated:
        return not getattr(message, field.name)
    if field.containing_oneof is not None and not message.HasField(field.name):
        return False  # the oneof's own rule speaks for its members
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return not message.HasField(field.name)
    return not getattr(message, field.name)


def _required_check(field: FieldDescriptor, fix: str) -> Check:
    def check(message: Message, path: str) -> Iterator[FieldViolation]:
        """A field that must be there."""
        if _is_absent(message, field):
            yield FieldViolation(path + field.name, "is missing", fix)

    return check


def _max_items_check(field: FieldDescriptor, rules: validation_pb2.FieldRules) -> Check:
    most = rules.max_items
    fix = rules.fix or f"give at most {most}"

    def check(message: Message, path: str) -> Iterator[FieldViolation]:
        """A list that is too long."""
        count = len(getattr(message, field.name))
        if count > most:
            yield FieldViolation(path + field.name, f"has {count} elements", fix)

    return check


def _range_check(field: FieldDescriptor, rules: validation_pb2.FieldRules) -> Check:
    """Also refuses NaN and infinity in every float field, ruled or not."""
    lowest = rules.minimum if rules.HasField("minimum") else float("-inf")
    highest = rules.maximum if rules.HasField("maximum") else float("inf")
    is_float = field.cpp_type in _FLOATS
    fix = rules.fix or "out of range"
    infinite = (float("inf"), float("-inf"))

    def check(message: Message, path: str) -> Iterator[FieldViolation]:
        """A number out of range; one that is absent is in range."""
        value = getattr(message, field.name)
        if field.has_presence and not message.HasField(field.name):
            return
        if not lowest <= value <= highest or (is_float and value in infinite):
            yield FieldViolation(path + field.name, f"is {shown(value)}", fix)

    return check


def shown(value: float) -> str:
    """A number as the protos' own texts have it: whole where it is, and exactly known."""
    whole = isinstance(value, int) or (value.is_integer() and abs(value) <= _EXACT)
    return str(int(value)) if whole else f"{value:g}"


def _text_check(field: FieldDescriptor, rules: validation_pb2.FieldRules) -> Check:
    longest = rules.max_length if rules.HasField("max_length") else None
    pattern = re.compile(rules.pattern) if rules.pattern else None

    def check(message: Message, path: str) -> Iterator[FieldViolation]:
        """Text that is too long or of another form."""
        value: str = getattr(message, field.name)
        if longest is not None and len(value) > longest:
            problem = f"is {len(value)} characters long; the limit is {longest}"
            yield FieldViolation(path + field.name, problem, rules.fix)
        elif pattern is not None and value and not pattern.fullmatch(value):
            yield FieldViolation(path + field.name, f"is {value[:80]!r}", rules.fix)

    return check


def _known_enum_check(field: FieldDescriptor) -> Check:
    enum_type = field.enum_type
    assert enum_type is not None
    known = frozenset(enum_type.values_by_number)
    names = ", ".join(value.name for value in enum_type.values if value.number)

    def check(message: Message, path: str) -> Iterator[FieldViolation]:
        """Numbers that the enum does not have."""
        value: Any = getattr(message, field.name)
        for index, number in enumerate(value if field.is_repeated else [value]):
            if number not in known:
                where = f"{field.name}[{index}]" if field.is_repeated else field.name
                yield FieldViolation(path + where, f"is {number}", f"one of {names}")

    return check


def _nested_check(field: FieldDescriptor) -> Check:
    nested = field.message_type
    assert nested is not None
    name = field.name

    def check_one(message: Message, path: str) -> Iterator[FieldViolation]:
        """What is wrong inside the message."""
        if message.HasField(name):
            yield from violations_of(getattr(message, name), f"{path}{name}.")

    def check_each(message: Message, path: str) -> Iterator[FieldViolation]:
        """What is wrong inside each message of the list."""
        elements: Any = getattr(message, name)
        if nested.GetOptions().map_entry:
            return
        for index, element in enumerate(elements):
            yield from violations_of(element, f"{path}{name}[{index}].")

    return check_each if field.is_repeated else check_one


def _oneof_rules(oneof: OneofDescriptor) -> validation_pb2.OneofRules:
    options: Any = oneof.GetOptions()
    rules: validation_pb2.OneofRules = options.Extensions[validation_pb2.one_of]
    return rules


def _oneof_check(oneof: OneofDescriptor) -> Check:
    fix = _oneof_rules(oneof).fix
    members = " or ".join(field.name for field in oneof.fields)

    def check(message: Message, path: str) -> Iterator[FieldViolation]:
        """None of the fields of which one must be there."""
        if message.WhichOneof(oneof.name) is None:
            where = path.rstrip(".") or members
            yield FieldViolation(where, f"needs {members}", fix)

    return check
