"""Streaming against stock training, time and memory: `python -m bench.speed [--fast]`.

`stock` is unmodified transformers with PEFT adapters on every linear module of the layers, sdpa
attention and (non-reentrant) gradient checkpointing; the loss comes from `labels`, so that every
token's logits are computed, as they are for users. `streaming` is this project's executor, set up
by a plan that keeps attention's outputs. Where DeepSpeed is installed, a third column is stock with
its tiled MLP and loss (bench/speed_tiled.py). Same weights, adapters, tokens and targets; each in a
process set up as it is in use (bench/speed_worker.py), and only one computes at a time.

For every length all run one step with memory tracked, which also warms up, then rounds of one timed
step each, in turns, in the next round the other way about. Ratios are those of a round, streaming
over the others, and their median. Losses that differ end the run and nothing
is written. Writes `bench/results/speed.json` and prints a table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import speed_worker
from bench.machine import describe_machine
from bench.rates import measured_profile
from bench.speed_report import Measured, added_to, case_row, goals, ratio_rows, show
from bench.speed_worker import STOCK, STREAMING, TILED, ProcessWorker, Worker
from elite.planner.v1 import planner_pb2
from services.common.errors import ServiceError
from services.planner import responses
from services.planner.adapters import EVERY_LINEAR
from services.planner.budgets import Constraints
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype, DeviceKind, Machine
from services.planner.memory import Sizing
from services.planner.models import ModelShape, model_by_id, model_from_config
from services.planner.options import (
    BasePrecision,
    Executor,
    OptimizationSet,
    Place,
    Policy,
    kept_keys_place,
)
from services.planner.profiles import machine_from_profile
from services.planner.rates import Rates, single_rates
from services.planner.search import Search
from services.planner.tables import table

RESULTS = Path(__file__).parent / "results" / "speed.json"
_TOKENS = (2048, 4096, 8192, 16384, 32768)
_FAST_TOKENS = (64, 128)
_SHORTEST = 4  # of which a quarter are targets
_MODELS = "llama-8x256,qwen2.5-0.5b:2"
_FAST_MODELS = "llama-2x64"
_ROUNDS = 3
_BUDGET_SECONDS = 3600.0
_LORA_RANK = 16
_MOST_TARGET_TOKENS = 256
# Long enough for a step's memory by token, short enough to fit anywhere.
_TRIAL_TOKENS = 256
# Relative: rounding of one loss by two orders of the same operations.
TOLERANCES = {ComputeDtype.FLOAT32: 1e-4, ComputeDtype.BFLOAT16: 2e-2}
# Shapes of no one's model, named by layers and width. The vocabulary is small so that the head's
# share of the weights is as in real models, about a sixth.
_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-8x256": {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 688,
        "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4,
        "vocab_size": 4096, "max_position_embeddings": 1 << 20, "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    "llama-2x64": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 256, "max_position_embeddings": 1024, "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
}  # fmt: skip
# Where this machine's were not measured: every chunk takes as long.
_ANY_RATES = single_rates(1e12, [(1.0, 1e12)], 1e11)
UNMEASURED = Rates({2: _ANY_RATES, 4: _ANY_RATES}, 1e11, 1e10, 1e10)


class Disagreement(Exception):  # noqa: N818 - it is what was found
    """The two executors do not compute the same."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to train."""

    name: str
    config: dict[str, Any]

    @classmethod
    def of(cls, text: str) -> Subject:
        """A shape of this file, or `ID[:LAYERS]` of the catalogue. Raises `ServiceError`."""
        name, _, layers = text.partition(":")
        if name not in _SHAPES:
            model_by_id(name)  # refuses with a hint
        rows = {row["id"]: row["config"] for row in table("models")["models"]}
        config = dict(rows.get(name) or _SHAPES[name])
        if layers:
            config["num_hidden_layers"] = int(layers)
        return cls(name, config)

    @property
    def key(self) -> str:
        """Tells it from the same model with other layers."""
        return f"{self.name}:{self.layers}"

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.config["num_hidden_layers"])

    @property
    def shape(self) -> ModelShape:
        """The model as the planner knows it."""
        return model_from_config(json.dumps(self.config))


@dataclass(frozen=True, slots=True)
class Setting:
    """What all cases of a run have in common.

    chunk_tokens: 0 takes the planner's choice, from the rates.
    """

    dtype: ComputeDtype
    device_kind: DeviceKind
    memory_bytes: int
    rounds: int
    chunk_tokens: int = 0
    rates: Rates = UNMEASURED
    kernel: str = "sdpa_flash"

    @property
    def machine(self) -> Machine:
        """The device, as far as a step's allocations go."""
        kernel = self.kernel
        if self.device_kind is DeviceKind.CUDA and self.dtype is ComputeDtype.FLOAT32:
            kernel = "sdpa_efficient"
        return Machine(
            device_name=self.device_kind.value, device_kind=self.device_kind, device_index=0,
            shared_memory=self.device_kind is DeviceKind.CPU, gpu_safe_bytes=self.memory_bytes,
            host_safe_bytes=self.memory_bytes, process_overhead_bytes=0, disk_free_bytes=0,
            rates=self.rates, dtypes=(self.dtype,),
            attention_kernels=(kernel,), has_bitsandbytes=False,
        )  # fmt: skip


def plan_for(subject: Subject, tokens: int, setting: Setting) -> planner_pb2.Plan:
    """The streaming executor for a window of so many tokens; a quarter are targets, at most."""
    machine, shape = setting.machine, subject.shape
    targets = min(_MOST_TARGET_TOKENS, tokens // 4)
    tier = Tier(1, tokens - targets, targets, _LORA_RANK)
    chosen = OptimizationSet(
        base_precision=BasePrecision.FULL, dtype=setting.dtype,
        attention_kernel=machine.attention_kernels[0], executor=Executor.STREAMING,
        policy=Policy.SELECTIVE, attention_outputs=Place.DEVICE, adamw_8bit=False,
        kept_keys=kept_keys_place(
            Place.DEVICE, Place.DEVICE, shape.query_head_count, shape.key_value_head_count
        ),
    )  # fmt: skip
    asked = Search(shape, machine, Constraints())
    verdict = asked.judge(tier, chosen, Sizing(chunk_tokens=min(setting.chunk_tokens, tokens)))
    assert verdict.candidate is not None, "the set was named"
    answer = responses.Answer(shape, machine, asked.budget, EVERY_LINEAR)
    return responses.plan_message(verdict.candidate, answer)


@dataclass(slots=True)
class Contest:
    """A model in the hands of every executor; stock's is the first."""

    subject: Subject
    setting: Setting
    workers: Mapping[str, Worker]
    bytes_per_token: float = field(init=False)

    def __post_init__(self) -> None:
        """Loads all, and runs a short step of each to see what a token takes."""
        plan, key = plan_for(self.subject, _TRIAL_TOKENS, self.setting), self.subject.key
        for executor, worker in self.workers.items():
            worker.ask(speed_worker.load, key, executor, self.subject.config, plan)
        trial = [one.weighed for one in self._weigh(plan)]
        self.bytes_per_token = max(
            (one.peak_bytes - one.static_bytes) / _TRIAL_TOKENS for one in trial
        )
        self._release()

    def cases(self, tokens: int) -> list[dict[str, Any]]:
        """Every executor's case of a length. Raises `Disagreement`."""
        plan = plan_for(self.subject, tokens, self.setting)
        chunk_tokens = int(plan.execution.streaming.chunk_tokens)
        case = {
            "model": self.subject.name, "layers": self.subject.layers,
            "dtype": self.setting.dtype.value, "tokens": tokens,
        }  # fmt: skip
        return [case_row(case, one, chunk_tokens) for one in self._measure(plan)]

    def _measure(self, plan: planner_pb2.Plan) -> list[Measured]:
        """Memory, then rounds of a timed step each."""
        found = self._weigh(plan)
        for number in range(self.setting.rounds):
            for one in found if number % 2 == 0 else reversed(found):
                worker = self.workers[one.executor]
                one.timed.append(worker.ask(speed_worker.time_step, self.subject.key, plan))
            self._require_agreement(plan, {one.executor: one.timed[-1].loss for one in found})
        self._release()
        return found

    def _weigh(self, plan: planner_pb2.Plan) -> list[Measured]:
        found = [
            Measured(executor, worker.ask(speed_worker.weigh, self.subject.key, plan))
            for executor, worker in self.workers.items()
        ]
        self._require_agreement(plan, {one.executor: one.weighed.loss for one in found})
        return found

    def _release(self) -> None:
        for worker in self.workers.values():
            worker.ask(speed_worker.release, self.subject.key)

    def _require_agreement(self, plan: planner_pb2.Plan, losses: Mapping[str, float]) -> None:
        case = f"{self.subject.name} at {plan.context_tokens + plan.target_tokens:,} tokens"
        require_agreement(case, losses, TOLERANCES[self.setting.dtype])


def require_agreement(case: str, losses: Mapping[str, float], tolerance: float) -> None:
    """Raises `Disagreement` unless losses are stock's but for rounding; NaN never is."""
    stock = losses[STOCK]
    for name, loss in losses.items():
        if not abs(loss - stock) <= tolerance * abs(stock):
            raise Disagreement(f"{case}: the loss is {stock} by stock and {loss} by {name}")


def run(
    contests: Sequence[Contest], lengths: Sequence[int], budget_seconds: float
) -> dict[str, Any]:
    """Measures all models, shorter lengths first. Raises `Disagreement`."""
    started = time.monotonic()
    cases: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for tokens, contest in itertools.product(sorted(lengths), contests):
        name, spent_seconds = contest.subject.name, time.monotonic() - started
        print(f"{name}, {tokens:,} tokens", flush=True)
        reason = reason_to_leave_out(contest, tokens, budget_seconds - spent_seconds)
        if reason:
            left_out.append({"model": name, "tokens": tokens, "reason": reason})
        else:
            found = contest.cases(tokens)
            cases += found
            ratios += ratio_rows(found)
    return {"cases": cases, "ratios": ratios, "left_out": left_out}


def reason_to_leave_out(contest: Contest, tokens: int, seconds_left: float) -> str:
    """Why a length is not measured; empty when it is. Bytes are those of a short step, by token."""
    if seconds_left <= 0:
        return "the seconds of --budget-seconds are spent"
    _, free_bytes = contest.workers[STOCK].ask(speed_worker.device_facts)
    needed_bytes = tokens * contest.bytes_per_token
    if needed_bytes > free_bytes:
        return f"a step takes some {needed_bytes / 1e9:.1f} GB, {free_bytes / 1e9:.1f} are free"
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes; exits with a message when losses differ."""
    options = _parser().parse_args(arguments)
    earlier = _earlier(options.output) if options.add else None
    workers = make_workers()
    try:
        document = measure_all(options, workers)
    except (Disagreement, ServiceError) as error:
        sys.exit(f"nothing is written: {error}")
    finally:
        for worker in workers.values():
            worker.close()
    if earlier:
        document = added_to(earlier, document)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    show(document)


def _earlier(path: Path) -> dict[str, Any]:
    """What was written before; exits with a message when that was not on this machine."""
    if not path.exists():
        sys.exit(f"--add: there is no {path}; run without it")
    document: dict[str, Any] = json.loads(path.read_text())
    for name, value in describe_machine().items():
        if name != "date" and document["machine"].get(name) != value:
            measured = document["machine"].get(name)
            sys.exit(f"--add: {path} was measured with {name} {measured}, here it is {value}")
    return document


def make_workers() -> dict[str, Worker]:
    """A process for each executor; DeepSpeed's where it is installed."""
    has_deepspeed = importlib.util.find_spec("deepspeed") is not None
    names = (STOCK, *([TILED] if has_deepspeed else []), STREAMING)
    return {name: ProcessWorker(name) for name in names}


def measure_all(options: argparse.Namespace, workers: Mapping[str, Worker]) -> dict[str, Any]:
    """The document for the options. Raises `Disagreement`."""
    models = options.model or (_FAST_MODELS if options.fast else _MODELS)
    subjects = [Subject.of(name) for name in models.split(",")]
    device_kind, free_bytes = workers[STREAMING].ask(speed_worker.device_facts)
    setting = Setting(
        ComputeDtype(options.dtype), DeviceKind(device_kind), free_bytes, options.rounds,
        options.chunk, _rates(options, device_kind),
    )  # fmt: skip
    lengths = options.tokens or (_FAST_TOKENS if options.fast else _TOKENS)
    contests = [Contest(subject, setting, workers) for subject in subjects]
    measured = run(contests, lengths, options.budget_seconds)
    return {
        "machine": describe_machine() | {"device": device_kind} | _versions(workers), **measured,
        "goals": goals(measured["ratios"]),
    }  # fmt: skip


def _rates(options: argparse.Namespace, device_kind: str) -> Rates:
    """This CPU's, measured now; the planner takes a longer or shorter chunk for them."""
    if options.chunk or device_kind != DeviceKind.CPU.value:
        return UNMEASURED
    print("rates of this machine", flush=True)
    return machine_from_profile(measured_profile(quick=options.fast)).rates


def _versions(workers: Mapping[str, Worker]) -> dict[str, str]:
    """Of what only one contender needs."""
    return {"deepspeed": importlib.metadata.version("deepspeed")} if TILED in workers else {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help=f"ID[:LAYERS], by commas; default {_MODELS}")
    parser.add_argument("--tokens", type=_lengths, help="lengths of the window, by commas")
    parser.add_argument("--rounds", type=_positive, default=_ROUNDS, help="timed steps of each")
    parser.add_argument("--dtype", choices=[dtype.value for dtype in TOLERANCES], default="float32")
    parser.add_argument("--chunk", type=_positive, default=0, help="tokens; default: the planner's")
    parser.add_argument(
        "--budget-seconds", type=float, default=_BUDGET_SECONDS,
        help="when they are spent, longer lengths are left out",
    )  # fmt: skip
    parser.add_argument("--fast", action="store_true", help="tiny, to see that it works")
    parser.add_argument(
        "--add", action="store_true",
        help="keep what the file has of other models and lengths, measured on this machine",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _lengths(text: str) -> list[int]:
    lengths = [int(part) for part in text.split(",")]
    if min(lengths) < _SHORTEST:
        raise ValueError(text)
    return lengths


if __name__ == "__main__":
    main()
