"""The generated page of the protos: services, methods, roles, messages, fields, rules."""

from __future__ import annotations

import importlib.resources
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from elite.access.v1 import access_pb2
from elite.validation.v1 import validation_pb2
from scripts.reference_markdown import Row, first_upper, table
from services.common.validation import shown

ROOT = Path(__file__).resolve().parent.parent


def _files() -> list[descriptor_pb2.FileDescriptorProto]:
    """Every proto with its comments, which the generated modules do not have."""
    folder = ROOT / "protos"
    sources = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.proto"))
    known = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "set"
        options = [f"--proto_path={folder}", f"--proto_path={known}", "--include_source_info"]
        if protoc.main(["protoc", *options, f"--descriptor_set_out={target}", *sources]):
            raise SystemExit("protoc failed")
        found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    return sorted(found.file, key=lambda file: file.name)


def protos_page() -> list[str]:
    """Services, methods and the role each needs; messages, fields, rules."""
    lines = ["# Protos", "", "The contract is [`protos/`](../../protos). Roles are those of the"]
    lines += [
        "tokens file ([how to secure it](../how-to/secure.md)); each may do what those before"
    ]
    lines += [
        "it may: viewer, submitter, admin. Without a tokens file anybody may do anything.",
        "",
    ]
    for file in _files():
        lines += _file_lines(file)
    return lines


def _file_lines(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    comments = {tuple(place.path): _comment(place) for place in file.source_code_info.location}
    yield from (f"## {file.package}", "", f"`{file.name}`. {comments.get((2,), '')}", "")
    for number, service in enumerate(file.service):
        yield from (f"### {service.name}", "", comments.get((6, number), ""), "")
        rows = (
            _method_row(method, comments.get((6, number, 2, place), ""))
            for place, method in enumerate(service.method)
        )
        yield from table(("method", "takes", "gives", "role", "what"), rows)
    for number, message in enumerate(file.message_type):
        yield from _message_lines(message, message.name, (4, number), comments)
    for number, enum in enumerate(file.enum_type):
        yield from _enum_lines(enum, enum.name, (5, number), comments)


def _comment(place: descriptor_pb2.SourceCodeInfo.Location) -> str:
    return " ".join((place.leading_comments or place.trailing_comments).split())


def _method_row(method: descriptor_pb2.MethodDescriptorProto, text: str) -> Row:
    role = method.options.Extensions[access_pb2.required_role] or access_pb2.ROLE_ADMIN
    role_name = access_pb2.Role.Name(role).removeprefix("ROLE_").lower()
    gives = ("stream of " if method.server_streaming else "") + _short(method.output_type)
    return f"`{method.name}`", _short(method.input_type), gives, role_name, text


def _short(type_name: str) -> str:
    return f"`{type_name.rpartition('.')[2]}`"


def _message_lines(
    message: Any, name: str, path: tuple[int, ...], comments: dict[tuple[int, ...], str]
) -> Iterator[str]:
    yield from (f"### {name}", "", comments.get(path, ""), "")
    rows = [
        _field_row(message, field, comments.get((*path, 2, number), ""))
        for number, field in enumerate(message.field)
    ]
    yield from table(("field", "type", "rules", "what"), rows) if rows else ["No fields.", ""]
    for number, child in enumerate(message.nested_type):
        if not child.options.map_entry:
            inner = (*path, 3, number)
            yield from _message_lines(child, f"{name}.{child.name}", inner, comments)
    for number, enum in enumerate(message.enum_type):
        yield from _enum_lines(enum, f"{name}.{enum.name}", (*path, 4, number), comments)


def _field_row(message: Any, field: Any, text: str) -> Row:
    kind = _short(field.type_name) if field.type_name else _scalar(field)
    if field.label == field.LABEL_REPEATED:
        kind = f"repeated {kind}"
    elif field.proto3_optional:
        kind = f"optional {kind}"
    rules = _rules(field.options.Extensions[validation_pb2.field])
    if field.HasField("oneof_index") and not field.proto3_optional:
        rules = "; ".join(filter(None, [_oneof(message.oneof_decl[field.oneof_index]), rules]))
    return f"`{field.name}`", kind, rules, text


def _scalar(field: Any) -> str:
    return f"`{field.Type.Name(field.type).removeprefix('TYPE_').lower()}`"


def _oneof(oneof: Any) -> str:
    needed = oneof.options.Extensions[validation_pb2.one_of].required
    return f"one of `{oneof.name}`" + (", required" if needed else "")


def _rules(rules: validation_pb2.FieldRules) -> str:
    found = ["required"] if rules.required else []
    found += [f"at least {shown(rules.minimum)}"] if rules.HasField("minimum") else []
    found += [f"at most {shown(rules.maximum)}"] if rules.HasField("maximum") else []
    found += [f"length at most {rules.max_length}"] if rules.HasField("max_length") else []
    found += [f"`{rules.pattern}`"] if rules.pattern else []
    found += [f"at most {rules.max_items} of them"] if rules.HasField("max_items") else []
    return ", ".join(found) + (f". {first_upper(rules.fix)}" if rules.fix and found else "")


def _enum_lines(
    enum: Any, name: str, path: tuple[int, ...], comments: dict[tuple[int, ...], str]
) -> Iterator[str]:
    yield from (f"### {name}", "", comments.get(path, ""), "")
    rows = (
        (f"`{value.name}`", str(value.number), comments.get((*path, 2, number), ""))
        for number, value in enumerate(enum.value)
    )
    yield from table(("value", "number", "what"), rows)
