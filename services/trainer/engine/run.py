"""A run from beginning to end: data, model, evaluation, training, evaluation, adapter."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.common.engine_process import CHUNK_BLOCK_BYTES, return_freed_memory
from services.trainer.engine.adapters import trainable_parameters, write_adapter
from services.trainer.engine.apply_plan import apply_plan
from services.trainer.engine.checkpoint import (
    CheckpointStore,
    Identity,
    Position,
    check_identity,
    load_checkpoint,
)
from services.trainer.engine.dataset import Dataset, make_dataset, tokenise
from services.trainer.engine.devices import (
    device_name,
    device_of,
    use_available_cores,
)
from services.trainer.engine.events import EventEmitter
from services.trainer.engine.executors import Executor, make_executor
from services.trainer.engine.failures import INTERNAL, EngineError, StopRequested
from services.trainer.engine.history import History
from services.trainer.engine.memory_tracking import (
    MemoryTracker,
    host_peak_bytes,
    memory_tracker,
    start_host_peak,
)
from services.trainer.engine.models import (
    DTYPES,
    find_model,
    load_model,
    load_tokenizer,
    weights_fingerprint,
)
from services.trainer.engine.optimizer import make_optimizer
from services.trainer.engine.preflight import check_host_memory
from services.trainer.engine.saving import RunSaver, hooks_of, make_step_journal
from services.trainer.engine.specification import Specification
from services.trainer.engine.step_meter import StepMeter
from services.trainer.engine.stop_signal import StopSignal
from services.trainer.engine.streaming.codec_check import check_codec
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.step_journal import StepJournal
from services.trainer.engine.training import Stepper, as_batch, evaluate, initial_loss_scale
from services.trainer.jobs.corpus import find_source_files
from services.trainer.jobs.durable import replace_folder
from services.trainer.jobs.fence import Fence

SKIPPED_FILES_SHOWN = 20
# Where executors get their windows: they move what they need.
_HOST = torch.device("cpu")


@dataclass(frozen=True)
class Run:
    """What every phase of a run shares. told_steps: what others have heard of; None: all."""

    specification: Specification
    fence: Fence
    cache_directory: Path
    events: EventEmitter
    stop: StopSignal
    told_steps: int | None = None

    @property
    def run_directory(self) -> Path:
        """Where everything of the run goes."""
        return self.fence.folder


@dataclass(frozen=True)
class RunState:
    """What a run goes on from. journal: of an executor whose steps are saved in the middle."""

    checkpoints: CheckpointStore
    identity: Identity
    journal: StepJournal | None


@dataclass(frozen=True)
class Loaded:
    """A model as the plan wants it, on its device."""

    model: Any  # with adapters (PEFT)
    executor: Executor
    tracker: MemoryTracker
    meter: StepMeter


def execute(run: Run, *, resume: bool) -> None:
    """Runs to the end, or to `StopRequested`.

    Raises `EngineError`, `CorpusError` or what a library raises; `failures.describe` names it.
    """
    use_available_cores()
    return_freed_memory()
    run.fence.take()
    run.events.keep(History(run.run_directory))
    checkpoints = CheckpointStore(run.fence)
    if checkpoints.exists() and not resume:
        problem = f"{run.run_directory} holds the checkpoints of an earlier run"
        raise EngineError(INTERNAL, problem, "pass --resume, or choose another run directory")
    device_of(run.specification.plan)  # without it, reading the data would be for nothing
    run.events.phase("prepare_data")
    location, dataset = _prepare_data(run)
    run.events.phase("load_model")
    started = time.perf_counter()
    check_host_memory(run.specification.plan)
    model = load_model(location, run.specification.plan)
    identity = Identity.of(
        run.specification.plan, dataset.fingerprint, weights_fingerprint(model),
        run.specification.training.seed,
    )  # fmt: skip
    newest = checkpoints.newest_good()
    if newest:  # before the journal, which drops a step of another run
        check_identity(newest, identity)
    journal = make_step_journal(run.specification, run.fence, identity)
    try:
        loaded = _prepare_model(run, model, dataset, journal, started)
        _train(run, loaded, dataset, RunState(checkpoints, identity, journal))
    except EngineError:
        if journal:  # it would end there again
            journal.drop()
        raise
    if journal:
        journal.drop()
    run.events.phase("save")
    _save_adapter(run, loaded, location)


def _prepare_data(run: Run) -> tuple[str, Dataset]:
    started = time.perf_counter()
    specification, training = run.specification, run.specification.training
    data = specification.data
    corpus = find_source_files(data.path, data.include_globs, data.exclude_globs)
    location = find_model(specification.plan.model, specification.model_path, run.cache_directory)
    dataset = make_dataset(
        tokenise(corpus, load_tokenizer(location), run.cache_directory),
        context_tokens=specification.plan.context_tokens,
        target_tokens=specification.plan.target_tokens,
        held_out_fraction=training.held_out_fraction if training.evaluation_windows else 0.0,
        seed=training.seed,
    )
    sample = dataset.skipped[:SKIPPED_FILES_SHOWN]
    prepared = trainer_pb2.DataPrepared(
        file_count=dataset.file_count,
        token_count=dataset.token_count,
        training_window_count=len(dataset.training),
        held_out_window_count=len(dataset.held_out),
        skipped_files=[f"{entry.relative_path}: {entry.reason}" for entry in sample],
        skipped_file_count=len(dataset.skipped),
        seconds=time.perf_counter() - started,
    )
    run.events.emit(data_prepared=prepared)
    return location, dataset


def _prepare_model(
    run: Run, model: Any, dataset: Dataset, journal: StepJournal | None, started: float
) -> Loaded:
    """The model as the plan wants it; `started` is when it began to be read."""
    plan = run.specification.plan
    device = device_of(plan)
    parameter_count = sum(parameter.numel() for parameter in model.parameters())
    tracker, meter = memory_tracker(device), StepMeter(device)
    with tracker:
        sample_bs = as_batch((dataset.held_out or dataset.training)[0], _HOST)
        applied = apply_plan(model, plan, device, run.specification.training.seed, sample_bs)
        measured = _check_codec(run, applied.model, model, dataset)
        folder = journal.folder if journal else None
        executor = make_executor(model, plan, run.run_directory, folder, meter)
    if _streams(plan):
        # Not before: what loading leaves would be kept beside.
        return_freed_memory(CHUNK_BLOCK_BYTES)
    # Pages of weight files were in it, which the kernel drops when it needs them.
    start_host_peak()
    for mover in applied.movers:
        meter.count(mover)
    event = trainer_pb2.ModelLoaded(
        parameter_count=parameter_count,
        trainable_parameter_count=sum(p.numel() for p in trainable_parameters(applied.model)),
        attention_kernel=applied.attention_kernel,
        device_name=device_name(device),
        memory_bytes=tracker.current_bytes,
        seconds=time.perf_counter() - started,
        applied=[*applied.steps, *measured],
    )
    run.events.emit(model_loaded=event)
    return Loaded(applied.model, executor, tracker, meter)


def _streams(plan: planner_pb2.Plan) -> bool:
    return plan.execution.executor == planner_pb2.EXECUTOR_STREAMING


def _check_codec(run: Run, adapted: Any, model: Any, dataset: Dataset) -> list[str]:
    """What a lossy codec of the plan does to the gradients of the first window."""
    plan = run.specification.plan
    if not _streams(plan):
        return []
    settings = StreamingSettings.of(plan, run.run_directory)
    window = as_batch(dataset.training[0], _HOST)
    measured = check_codec(model, trainable_parameters(adapted), settings, window)
    return [measured] if measured else []


def _train(run: Run, loaded: Loaded, dataset: Dataset, state: RunState) -> None:
    plan, training = run.specification.plan, run.specification.training
    parameters = trainable_parameters(loaded.model)
    optimizer = make_optimizer(plan.execution.optimizer, parameters, training)
    saver = RunSaver(
        run.specification, state.checkpoints, run.events, loaded.model, optimizer, state.identity,
        Position(0, initial_loss_scale(DTYPES[plan.execution.compute_dtype])),
    )  # fmt: skip
    newest = state.checkpoints.newest_good()
    if newest:
        saver.position = load_checkpoint(newest, loaded.model, optimizer)
        saver.saved_step = saver.position.step
        if run.told_steps is not None:
            for event in History(run.run_directory).between(run.told_steps, saver.saved_step):
                run.events.tell(event)
    else:
        _evaluate(run, loaded, dataset, step=0)
    if state.journal:
        state.journal.hooks = hooks_of(saver, lambda: run.stop.requested)
    stepper = Stepper(
        loaded.executor, optimizer, parameters, dataset.training, training, _HOST,
        saver.position.loss_scale, state.journal, loaded.meter.phases,
    )  # fmt: skip
    run.events.phase("train")
    with run.stop.deferred():
        for step in range(saver.position.step, training.steps):
            _run_step(run, loaded, stepper, step)
            saver.position = Position(step + 1, stepper.loss_scale)
            _save_if_due(run, saver, state.journal)
    _evaluate(run, loaded, dataset, step=training.steps)


def _save_if_due(run: Run, saver: RunSaver, journal: StepJournal | None) -> None:
    """After a step. Raises `StopRequested` once it is safe to."""
    was_saved_in_the_middle = journal is not None and journal.is_saved
    if saver.is_due(saver.position.step) or was_saved_in_the_middle or run.stop.requested:
        saver.save()
        if journal:
            journal.end_step()
    if run.stop.requested:
        raise StopRequested


def _run_step(run: Run, loaded: Loaded, stepper: Stepper, step: int) -> None:
    specification, meter = run.specification, loaded.meter
    started, moved_before = time.perf_counter(), meter.moved
    with loaded.tracker:
        loaded.tracker.reset_peak()
        result = stepper.run(step)
    phases = meter.phases.take()  # the device is done when it comes back
    seconds = time.perf_counter() - started
    moved = meter.moved - moved_before
    tokens = specification.window_tokens * specification.training.gradient_accumulation_steps
    completed = trainer_pb2.StepCompleted(
        step=step + 1,
        total_steps=specification.training.steps,
        loss=result.loss,
        gradient_norm=result.gradient_norm,
        learning_rate=result.learning_rate,
        step_seconds=seconds,
        tokens_per_second=tokens / seconds,
        measured_peak_bytes=loaded.tracker.peak_bytes,
        predicted_peak_bytes=_predicted_tensor_bytes(specification),
        host_peak_bytes=host_peak_bytes(),
        phases=trainer_pb2.StepPhases(**{f"{name}_seconds": s for name, s in phases.items()}),
        **asdict(moved),
    )
    run.events.emit(step_completed=completed)


def _predicted_tensor_bytes(specification: Specification) -> int:
    """The plan's device total without the runtime's own share, which no tracker counts."""
    memory = specification.plan.gpu_memory
    runtime = sum(line.bytes for line in memory.lines if line.name == "runtime")
    return int(memory.total_bytes - runtime)


def _evaluate(run: Run, loaded: Loaded, dataset: Dataset, *, step: int) -> None:
    windows = dataset.held_out.spread(run.specification.training.evaluation_windows)
    if not windows:
        return
    run.events.phase("evaluate")
    loss = evaluate(loaded.executor, windows, _HOST)
    evaluated = trainer_pb2.Evaluated(
        before_training=step == 0, loss=loss, window_count=len(windows), step=step
    )
    run.events.emit(evaluated=evaluated)


def _save_adapter(run: Run, loaded: Loaded, location: str) -> None:
    folder = run.run_directory / "adapter"
    heads = run.specification.plan.execution.key_value_head_count

    def write(to: Path) -> None:
        """The adapter's files."""
        write_adapter(loaded.model, location, to, key_value_head_count=heads)

    size_bytes = replace_folder(folder, write, run.fence.held)
    run.events.emit(adapter_saved=trainer_pb2.AdapterSaved(path=str(folder), bytes=size_bytes))
