from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor
FIELD_FIELD_NUMBER: _ClassVar[int]
field: _descriptor.FieldDescriptor
ONE_OF_FIELD_NUMBER: _ClassVar[int]
one_of: _descriptor.FieldDescriptor

class FieldRules(_message.Message):
    __slots__ = ("required", "minimum", "maximum", "max_length", "pattern", "max_items", "fix")
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    required: bool
    minimum: float
    maximum: float
    max_length: int
    pattern: str
    max_items: int
    fix: str
    def __init__(self, required: _Optional[bool] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., max_length: _Optional[int] = ..., pattern: _Optional[str] = ..., max_items: _Optional[int] = ..., fix: _Optional[str] = ...) -> None: ...

class OneofRules(_message.Message):
    __slots__ = ("required", "fix")
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    required: bool
    fix: str
    def __init__(self, required: _Optional[bool] = ..., fix: _Optional[str] = ...) -> None: ...
