"""Predicted against measured device memory: `python -m bench.memory [--models a,b] [--tiers 1,4]`.

Every model at its real size and every tier, under fake tensors, for each optimisation set whose
tensors can be faked. The streaming executor's layers are alike and its chunks many, so its cases
have fewer layers. As many cases at a time as there are cores. Writes `bench/results/memory.json`
and prints the errors.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoConfig, logging

from bench.machine import describe_machine
from bench.oracle import measure_step
from services.common.engine_process import available_cores
from services.planner import responses, search
from services.planner.adapters import EVERY_LINEAR, Adapters
from services.planner.evaluation import Evaluation
from services.planner.ladder import Tier, load_ladder
from services.planner.machine import ComputeDtype, DeviceKind, Machine
from services.planner.memory import Sizing
from services.planner.models import ModelShape, catalogue, model_by_id
from services.planner.options import BasePrecision, Codec, Executor, OptimizationSet, Place, Policy
from services.planner.rates import Rates, single_rates
from services.planner.tables import table

RESULTS = Path(__file__).parent / "results" / "memory.json"
_STREAMED_LAYERS = 3
# By whether a set streams; many chunks take long.
_TIERS = {False: (1, 8), True: (1, 4)}
# Too large for most cards whole: their weights are streamed.
_LARGE_MODELS = ("llama-3.1-8b", "llama-3.1-70b")
_LARGE_MODELS_SETS = ("streaming weights from host",)
# A pretended card: of its rates only the threads touch memory.
_DTYPE_RATES = single_rates(1e12, [(1.0, 1e12)], 1e11)
_MACHINE = Machine(
    device_name="oracle", device_kind=DeviceKind.CUDA, device_index=0, shared_memory=False,
    gpu_safe_bytes=2**50, host_safe_bytes=2**50, process_overhead_bytes=0, disk_free_bytes=0,
    rates=Rates({2: _DTYPE_RATES, 4: _DTYPE_RATES}, 1e11, 1e10, 1e10),
    dtypes=(ComputeDtype.BFLOAT16, ComputeDtype.FLOAT32), attention_kernels=("sdpa_flash",),
    has_bitsandbytes=True, has_workspaces=False,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """An optimisation set, and what is trained under it."""

    chosen: OptimizationSet
    adapters: Adapters = EVERY_LINEAR
    attention_only: bool = False

    def shape_of(self, model: ModelShape) -> ModelShape:
        """The model, with fewer layers for the streaming executor."""
        layers = min(_STREAMED_LAYERS, model.layer_count)
        if not self.chosen.streaming or layers == model.layer_count:
            return model
        return replace(model, layer_count=layers)

    def adapters_of(self, model: ModelShape) -> Adapters:
        """The adapters, by the names the model gives its linears."""
        if not self.attention_only:
            return self.adapters
        rows = zip(model.architecture.linears, model.linears, strict=True)
        return Adapters(tuple(
            linear.name for row, linear in rows
            if row.outputs in ("query", "key_value", "query_key_value")
        ))  # fmt: skip


_PLAIN = OptimizationSet(
    base_precision=BasePrecision.FULL, dtype=ComputeDtype.BFLOAT16, attention_kernel="sdpa_flash",
    adamw_8bit=False,
)  # fmt: skip
_FLOAT32 = replace(_PLAIN, dtype=ComputeDtype.FLOAT32)
_STREAMED = replace(_PLAIN, executor=Executor.STREAMING)
_ON_HOST = replace(
    _STREAMED, policy=Policy.SELECTIVE, layer_inputs=Place.HOST, attention_outputs=Place.HOST,
    hidden_gradients=Place.HOST,
)  # fmt: skip
SETS = {
    "bfloat16": Setting(_PLAIN),
    "bfloat16 without checkpointing": Setting(replace(_PLAIN, policy=Policy.KEEP_ALL)),
    "bfloat16 selective": Setting(
        replace(_PLAIN, policy=Policy.SELECTIVE, attention_outputs=Place.DEVICE)
    ),
    "float32": Setting(_FLOAT32),
    "float32 without checkpointing": Setting(replace(_FLOAT32, policy=Policy.KEEP_ALL)),
    "bfloat16 with float32 adapters": Setting(_PLAIN, Adapters(float32=True)),
    "bfloat16 with adapters on attention": Setting(_PLAIN, attention_only=True),
    "bfloat16 with dropout": Setting(_PLAIN, Adapters(dropout=0.05)),
    "float32 with dropout": Setting(_FLOAT32, Adapters(dropout=0.05)),
    "streaming bfloat16": Setting(_STREAMED),
    "streaming float32": Setting(replace(_STREAMED, dtype=ComputeDtype.FLOAT32)),
    "streaming selective on host": Setting(_ON_HOST),
    "streaming with keys on host": Setting(replace(_ON_HOST, key_values=Place.HOST)),
    "streaming int8 on host": Setting(
        replace(_STREAMED, layer_inputs=Place.HOST, hidden_gradients=Place.HOST, codec=Codec.INT8)
    ),
    "streaming every second layer on host": Setting(
        replace(
            _STREAMED, layer_inputs=Place.HOST, hidden_gradients=Place.HOST, layer_input_interval=2
        )
    ),
    "streaming weights from host": Setting(replace(_STREAMED, weights=Place.HOST)),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One prediction beside its measurement, in bytes; optimizer states in neither.

    host: what waits in host memory, as torch pins it.
    """

    model: str
    layers: int
    tier: int
    tokens: int
    set: str
    predicted_bytes: int
    measured_bytes: int
    lines: dict[str, int]
    predicted_host_bytes: int
    measured_host_bytes: int

    @property
    def error(self) -> float:
        """Relative; negative when the prediction is too low."""
        return self.predicted_bytes / self.measured_bytes - 1


def run_case(
    model: ModelShape,
    tier: Tier,
    name: str,
    config: Mapping[str, object] | None = None,
    *,
    threads: int = 1,
    chunk_tokens: int = 0,
) -> Case:
    """Predicts and measures one step. config: the model's config.json; None: the catalogue's.

    threads: of a CPU, which attention's backward is cut for. chunk_tokens: 0: as planned.
    """
    machine = replace(_MACHINE, rates=replace(_MACHINE.rates, threads=threads))
    chosen, adapters = SETS[name].chosen, SETS[name].adapters_of(model)
    model = SETS[name].shape_of(model)
    sizing = Sizing(chunk_tokens=chunk_tokens)
    candidate = Evaluation(model, machine, adapters).one(tier, chosen, sizing)
    budget = search.budget_for(machine, search.Constraints())
    answer = responses.Answer(model, machine, budget, adapters)
    plan = responses.plan_message(candidate, answer)
    fields = config_of(model, config)
    measured = measure_step(AutoConfig.for_model(**fields), plan, fake=True, threads=threads)
    device = candidate.memory.device
    lines = {line: size for line, size in device.lines.items() if line != "optimizer"}
    return Case(
        model.model_id,
        model.layer_count,
        tier.tier,
        tier.tokens,
        name,
        sum(lines.values()),
        measured.peak_bytes,
        lines,
        candidate.memory.host.phases["backward"],
        measured.pinned_bytes,
    )


def config_of(model: ModelShape, config: Mapping[str, object] | None = None) -> dict[str, object]:
    """The config.json fields of a model, with as many layers as the shape has.

    config: None: the catalogue's.
    """
    if config is None:
        rows = {row["id"]: row for row in table("models")["models"]}
        config = dict(rows[model.model_id]["config"])
    types = config.get("layer_types")
    if isinstance(types, list):
        config = {**config, "layer_types": types[: model.layer_count]}
    return {**config, "num_hidden_layers": model.layer_count}


def matrix(
    models: Sequence[str], tiers: Sequence[int], sets: Sequence[str]
) -> Iterator[tuple[str, int, str]]:
    """Model, tier and set of all cases. No tiers: those of the set's executor."""
    ladder = {tier.tier: tier for tier in load_ladder()}
    for model_id in models:
        for name in sets:
            streams = SETS[name].chosen.streaming
            for tier in tiers or _TIERS[streams]:
                # A sliding window that is shorter: the resident executor refuses.
                if streams or not model_by_id(model_id).reads_at_most(ladder[tier].tokens):
                    yield model_id, tier, name


def run_cases(rows: Sequence[tuple[str, int, str]]) -> Iterator[Case]:
    """All cases, in their order, so many at a time as there are cores."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(available_cores(), mp_context=context) as pool:
        yield from pool.map(_run_row, rows)


def _run_row(row: tuple[str, int, str]) -> Case:
    logging.set_verbosity_error()
    model_id, number, name = row
    (tier,) = (tier for tier in load_ladder() if tier.tier == number)
    return run_case(model_by_id(model_id), tier, name)


def one_per_architecture() -> list[str]:
    """The smallest model of every architecture in the catalogue."""
    smallest: dict[str, ModelShape] = {}
    for model in sorted(catalogue().values(), key=lambda model: model.parameter_count):
        smallest.setdefault(model.architecture.model_type, model)
    return [model.model_id for model in smallest.values()]


def summary(cases: list[Case]) -> dict[str, float]:
    """Errors in percent over all cases."""
    errors = [100 * case.error for case in cases]
    return {
        "cases": len(errors),
        "median_absolute_error_percent": statistics.median(abs(error) for error in errors),
        "worst_absolute_error_percent": max(abs(error) for error in errors),
        "mean_error_percent": statistics.mean(errors),
        "lowest_error_percent": min(errors),
    }


def main() -> None:
    """Runs the matrix the arguments name, prints and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="by commas; default: the smallest of every architecture")
    parser.add_argument("--tiers", help="by commas; default: 1 and 8, streamed 1 and 4")
    parser.add_argument("--sets", default=",".join(SETS), help="by commas")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    models = arguments.models.split(",") if arguments.models else one_per_architecture()
    tiers = [int(tier) for tier in (arguments.tiers or "").split(",") if tier]
    rows = [*matrix(models, tiers, arguments.sets.split(","))]
    if not arguments.models:
        rows += matrix(_LARGE_MODELS, tiers, _LARGE_MODELS_SETS)
    cases = []
    for case in run_cases(rows):
        cases.append(case)
        print(
            f"{case.model:18} tier {case.tier:2} {case.set:32} "
            f"{case.predicted_bytes / 1e9:9.3f} GB  {case.measured_bytes / 1e9:9.3f} GB  "
            f"{100 * case.error:+.2f} %",
            flush=True,
        )
    document = {
        "machine": describe_machine(),
        "summary": summary(cases),
        "cases": [
            {field: getattr(case, field) for field in Case.__dataclass_fields__} for case in cases
        ],
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["summary"], indent=1))


if __name__ == "__main__":
    main()
