"""Writes the generated pages of docs/reference from the code and the protos.

With `--check` nothing is written: it fails when a page is not what the code gives.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
STATE = "/STATE"
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

from prometheus_client import CollectorRegistry  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402
from typer.main import get_command  # noqa: E402

from elite.profiler.v1 import profiler_pb2  # noqa: E402
from elite.trainer.v1 import trainer_pb2  # noqa: E402
from elite_cli import commands, main  # noqa: E402
from scripts.reference_markdown import Row, first_upper, table  # noqa: E402
from scripts.reference_protos import protos_page  # noqa: E402
from scripts.reference_texts import (  # noqa: E402
    BY_GRPC,
    CAUSES,
    CLIENT_VARIABLES,
    OTHER_VARIABLES,
    REASONS,
    UNDESCRIBED,
)
from services.common.errors import STATUS_CODES, ErrorReason  # noqa: E402
from services.common.metrics import RpcMetrics, serve_worker_metrics  # noqa: E402
from services.planner.metrics import PlannerMetrics  # noqa: E402
from services.planner.settings import PlannerSettings  # noqa: E402
from services.profiler.metrics import ProfileCollector  # noqa: E402
from services.profiler.settings import ProfilerSettings  # noqa: E402
from services.trainer.api.collector import FleetCollector, lease_expirations  # noqa: E402
from services.trainer.api.settings import TrainerApiSettings  # noqa: E402
from services.trainer.settings import TrainerSettings  # noqa: E402
from services.trainer.worker.metrics import WorkerMetrics  # noqa: E402
from services.trainer.worker.settings import TrainerWorkerSettings  # noqa: E402

SETTINGS = (
    ProfilerSettings, PlannerSettings, TrainerSettings, TrainerApiSettings, TrainerWorkerSettings
)  # fmt: skip


# Settings


def configuration_page() -> list[str]:
    """Every variable that a service, a client or the command line reads."""
    lines = ["# Settings", ""]
    lines += ["Settings are environment variables. A service that gets a wrong one does not start,"]
    lines += ["and says which. `ELITE_TRAINER_*` is read by the trainer's API and its workers."]
    lines += ["`~/.local/state` is `$XDG_STATE_HOME` where that is set.", ""]
    for kind in SETTINGS:
        prefix = str(kind.model_config["env_prefix"])
        lines += [f"## {prefix}*", "", (kind.__doc__ or "").strip(), ""]
        fields = [item for item in kind.model_fields.items() if item[0] != "trainer"]
        rows = (_setting_row(kind, prefix, name, field) for name, field in fields)
        lines += table(("variable", "type", "default", "what"), rows)
    lines += ["## ELITE_CLIENT_*", "", "How every client of ours connects: the command line, and a"]
    lines += ["worker that calls the planner or the profiler.", ""]
    rows = ((f"`ELITE_CLIENT_{name}`", text) for name, text in CLIENT_VARIABLES.items())
    lines += table(("variable", "what"), rows)
    lines += ["## ELITE_CLI_*", "", "For the command line; an option goes before its variable.", ""]
    lines += table(("variable", "option", "what"), _cli_variables())
    lines += ["## Others", ""]
    lines += table(("variable", "what"), ((f"`{k}`", v) for k, v in OTHER_VARIABLES.items()))
    return lines


def _setting_row(kind: Any, prefix: str, name: str, field: FieldInfo) -> Row:
    text = field.description or _inherited(kind, name) or UNDESCRIBED[name]
    limits = _limits(field)
    what = text + (f" ({limits})" if limits else "")
    return f"`{prefix}{name.upper()}`", _type_name(field.annotation), _default(field), what


def _inherited(kind: Any, name: str) -> str:
    for parent in kind.__mro__[1:]:
        found = getattr(parent, "model_fields", {}).get(name)
        if found is not None and found.description:
            return str(found.description)
    return ""


def _limits(field: FieldInfo) -> str:
    words = {"ge": "at least", "gt": "more than", "le": "at most", "max_length": "length at most"}
    found = []
    for rule in field.metadata:
        found += [f"{text} {getattr(rule, k)}" for k, text in words.items() if hasattr(rule, k)]
    return ", ".join(found)


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is tuple:
        return "list of " + _type_name(get_args(kind)[0])
    names = [part for part in get_args(kind) or (kind,) if part is not type(None)]
    words = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
    return " or ".join(words.get(part, str(part)) for part in names)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if field.default_factory is not None and not isinstance(value, Path):
        return "what is found"
    if isinstance(value, Path):
        return f"`{str(value).replace(STATE, '~/.local/state')}`"
    if isinstance(value, tuple):
        value = " ".join("python" if part == sys.executable else part for part in value)
    if isinstance(value, bool):
        value = str(value).lower()
    return "none" if value in (None, "") else f"`{value}`"


# The command line


def command_line() -> Any:
    if not main.app.registered_commands:
        commands.register(main.app)
    return get_command(main.app)


def _parameters(command: Any) -> list[Any]:
    return [found for found in command.params if found.name != "help"]


def cli_page() -> list[str]:
    """Every command and option of `elite`."""
    top = command_line()
    lines = ["# Command line", "", top.help, ""]
    lines += [str(top.epilog).replace("The options above", "The global options")]
    lines += ["", "## Global options", "", *_parameter_table(_parameters(top))]
    for name, command in top.commands.items():
        lines += _command_lines(f"elite {name}", command)
    return lines


def _command_lines(name: str, command: Any) -> Iterator[str]:
    text = re.sub(r"\s*\n\s*\n\s*", "\n\n", command.help or "").strip()
    yield from (f"## {name}", "", text, "")
    children = getattr(command, "commands", {})
    parameters = _parameters(command)
    if not children:
        needed = [_usage(found) for found in parameters if found.required]
        yield from ("```", " ".join([name, *needed, "[OPTIONS]"]), "```", "")
        yield from _parameter_table(parameters)
    for child_name, child in children.items():
        yield from _command_lines(f"{name} {child_name}", child)


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return f"{parameter.opts[0]} {str(parameter.name).upper()}"


def _parameter_table(parameters: list[Any]) -> list[str]:
    rows = [_parameter_row(found) for found in parameters]
    return table(("option", "default", "what"), rows) if rows else []


def _parameter_row(parameter: Any) -> Row:
    if parameter.param_type_name == "argument":
        return f"`{str(parameter.name).upper()}`", "required", parameter.help or ""
    names = " ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    variable = f" Variable: `{parameter.envvar}`." if parameter.envvar else ""
    return names, _parameter_default(parameter), (parameter.help or "") + variable


def _parameter_default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = getattr(parameter.default, "value", parameter.default)
    if parameter.is_flag:
        value = (parameter.opts if value else parameter.secondary_opts or ["off"])[0]
    return "" if value in (None, "") else f"`{value}`"


def _cli_variables() -> Iterator[Row]:
    for found in _parameters(command_line()):
        if found.envvar:
            yield f"`{found.envvar}`", f"`{found.opts[0]}`", found.help or ""


# Metrics


def _collectors() -> Iterator[tuple[str, list[Any]]]:
    """What each service registers, without a Redis, a card or a port."""
    for service in ("profiler", "planner", "trainer"):
        registry = CollectorRegistry()
        calls = RpcMetrics(service, registry)
        found: list[Any] = [calls.requests, calls.duration_seconds]
        if service == "profiler":
            found += ProfileCollector(_full_profile).collect()
        elif service == "planner":
            found += vars(PlannerMetrics(registry)).values()
            with tempfile.TemporaryDirectory() as scratch:
                found.append(serve_worker_metrics("", "planner", scratch))
        else:
            found += [*FleetCollector(TrainerSettings()).describe(), lease_expirations]
        yield {"trainer": "trainer API"}.get(service, service), found
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    yield "trainer worker", list(registry._collector_to_names)


def _full_profile() -> profiler_pb2.NodeProfile:
    """A profile in which every figure is known, so that every gauge is there."""
    disk = profiler_pb2.Disk(
        total_bytes=1, free_bytes=1, read_bytes_per_second=1, write_bytes_per_second=1
    )
    return profiler_pb2.NodeProfile(host=profiler_pb2.Host(scratch_disk=disk))


def metrics_page() -> list[str]:
    """Every metric of every service."""
    lines = [
        "# Metrics",
        "",
        "Each process serves these at its `METRICS_ADDRESS`, path `/metrics`,",
    ]
    lines += ["beside `python_*` and `process_*`. A histogram has `_bucket`, `_sum` and `_count`."]
    lines += ["[How to monitor](../how-to/monitor.md).", ""]
    for service, collectors in _collectors():
        lines += [f"## {first_upper(service)}", ""]
        rows = (_metric_row(collector) for collector in collectors)
        lines += table(("metric", "type", "labels", "what"), rows)
    return lines


def _metric_row(collector: Any) -> Row:
    family = collector if hasattr(collector, "documentation") else next(iter(collector.describe()))
    name = family.name + ("_total" if family.type == "counter" else "")
    labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
    return f"`{name}`", family.type, labels, family.documentation


# Errors


def errors_page() -> list[str]:
    """Reasons with their status, causes of failure, and what to do."""
    lines = ["# Errors", "", "A refused call ends with a `google.rpc.Status`: a message, an"]
    lines += ["`ErrorInfo` with the domain `elite` and one of the reasons below, and, for a bad"]
    lines += ["request, a `BadRequest` that names each field, its problem and the fix.", ""]
    rows = ((f"`{r.value}`", STATUS_CODES[r].name, REASONS[r.name]) for r in ErrorReason)
    lines += table(("reason", "gRPC status", "what to do"), rows)
    lines += [
        "These are gRPC's own, and have no `ErrorInfo`:",
        "",
    ]
    lines += [*table(("status", "when"), BY_GRPC.items()), "## Causes of failed runs", ""]
    lines += ["`Run.error` has the cause, a message, and the engine's last lines."]
    lines += ["[What to do when a run failed](../how-to/failed-runs.md) has more.", ""]
    causes = [name.removeprefix("FAILURE_CAUSE_") for name in trainer_pb2.FailureCause.keys()[1:]]
    lines += table(("cause", "what to do"), ((f"`{name}`", CAUSES[name]) for name in causes))
    return lines


def pages() -> dict[str, str]:
    """The text of every generated page, by file name."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("ELITE_")}
    # Pages say what holds everywhere, not what is set here.
    with patch.dict(os.environ, {**others, "XDG_STATE_HOME": STATE}, clear=True):
        made = {
            "configuration.md": configuration_page(), "cli.md": cli_page(),
            "protos.md": protos_page(), "metrics.md": metrics_page(), "errors.md": errors_page(),
        }  # fmt: skip
    command = "python scripts/generate_reference.py"
    mark = f"<!-- Written by `{command}`: change the code, not this page. -->"
    return {name: re.sub(r"\n{3,}", "\n\n", "\n".join([mark, "", *lines]).rstrip() + "\n")
            for name, lines in made.items()}  # fmt: skip


def run() -> int:
    """Returns the exit status."""
    made = pages()
    if sys.argv[1:] != ["--check"]:
        for name, text in made.items():
            (PAGES / name).write_text(text, encoding="utf-8")
        return 0
    stale = [name for name, text in made.items()
             if not (PAGES / name).is_file() or (PAGES / name).read_text() != text]  # fmt: skip
    if stale:
        command = "python scripts/generate_reference.py"
        print(f"stale, run `{command}`:", *stale, sep="\n  ", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(run())
