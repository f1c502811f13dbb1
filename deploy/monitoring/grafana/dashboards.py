"""The four dashboards, and the command that writes them: `dashboards/*.json` beside this file.

`python -m deploy.monitoring.grafana.dashboards` writes; with `--check` it fails when what is there
is not what this file says.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from deploy.monitoring.grafana.panels import (
    Dashboard,
    Panel,
    Query,
    Row,
    Variable,
    dashboard_json,
)

FOLDER = Path(__file__).with_name("dashboards")

_CARD = "{{instance}} {{name}} #{{index}}"


def _of_run(metric: str) -> str:
    """The metric of the worker that has the chosen run, while it has it."""
    return f'{metric} * on (instance) group_left (run_id) elite_trainer_run_info{{run_id="$run"}}'


def _moved(path: str) -> str:
    """Bytes a second of the chosen run."""
    return _of_run(f"rate(elite_trainer_{path}_bytes_total[$__rate_interval])")


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


FLEET = Dashboard(
    uid="elite-fleet",
    title="ELITE / Fleet",
    rows=(
        Row("Who is there", (
            Panel("Targets", (Query("up", "{{job}} {{instance}}"),), kind="stat",
                  text="1: answers Prometheus."),
            Panel("Workers", (
                Query("elite_trainer_workers", "{{device_class}}"),
                Query("elite_trainer_idle_workers", "{{device_class}}, idle"),
            ), kind="stat", text="Heard of within the presence time, by device class."),
            Panel("Runs", (Query("elite_trainer_running_runs", "{{device_class}}"),), kind="stat",
                  text="That a worker has, by device class."),
        )),
        Row("Cards", (
            Panel("Device memory taken", (Query(
                "elite_profiler_device_memory_bytes - elite_profiler_device_memory_free_bytes",
                _CARD,
            ),), "bytes"),
            Panel("Device memory free", (
                Query("elite_profiler_device_memory_free_bytes", _CARD),
            ), "bytes"),
            Panel("Safe to allocate", (
                Query("elite_profiler_device_safe_allocatable_bytes", _CARD),
            ), "bytes", "bargauge", "Measured by the stress test."),
            Panel("Matrix products, 16 bit", (
                Query("elite_profiler_device_matmul_16bit_flops_per_second", _CARD),
            ), "flops", "bargauge", "Measured by the stress test."),
            Panel("Attention", (
                Query("elite_profiler_device_attention_flops_per_second",
                      "{{name}} #{{index}}, {{kernel}}, {{sequence_tokens}} tokens, "
                      "head {{head_size}}"),
            ), "flops", "bargauge", "Causal, forward and backward; measured by the stress test."),
            Panel("Device memory bandwidth", (
                Query("elite_profiler_device_memory_bandwidth_bytes_per_second", _CARD),
            ), "Bps", "bargauge", "Measured by the stress test."),
            Panel("Between host and device, pinned", (
                Query("elite_profiler_device_host_to_device_pinned_bytes_per_second",
                      f"{_CARD}, to"),
                Query("elite_profiler_device_device_to_host_pinned_bytes_per_second",
                      f"{_CARD}, from"),
            ), "Bps", "bargauge", "Measured by the stress test."),
            Panel("GPU utilisation", (Query("DCGM_FI_DEV_GPU_UTIL", "{{instance}} GPU {{gpu}}"),),
                  "percent", text="From NVIDIA's DCGM exporter, where there is one."),
            Panel("GPU errors (XID)", (
                Query("DCGM_FI_DEV_XID_ERRORS", "{{instance}} GPU {{gpu}}"),
            ), kind="stat", text="The last one, 0: none. From NVIDIA's DCGM exporter."),
        )),
        Row("Nodes", (
            Panel("Host memory", (
                Query("elite_profiler_host_memory_bytes", "{{instance}}, all"),
                Query("elite_profiler_host_memory_available_bytes", "{{instance}}, available"),
            ), "bytes", text="Under the caps of the profiler's control group."),
            Panel("Scratch disk free", (
                Query("elite_profiler_scratch_disk_free_bytes", "{{instance}}"),
                Query("elite_profiler_scratch_disk_total_bytes", "{{instance}}, all"),
            ), "bytes"),
            Panel("Scratch disk rates", (
                Query("elite_profiler_scratch_disk_read_bytes_per_second", "{{instance}}, read"),
                Query("elite_profiler_scratch_disk_write_bytes_per_second", "{{instance}}, write"),
            ), "Bps", "bargauge", "Measured by the stress test."),
            Panel("Processors busy", (Query(
                '1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}'
                "[$__rate_interval]))", "{{instance}}",
            ),), "percentunit"),
            Panel("File systems, free", (Query(
                'node_filesystem_avail_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs", '
                'mountpoint!~"/etc/.*"} / node_filesystem_size_bytes',
                "{{instance}} {{mountpoint}}",
            ),), "percentunit"),
        )),
    ),
)  # fmt: skip

PLANNER = Dashboard(
    uid="elite-planner",
    title="ELITE / Planner",
    rows=(
        Row("Plans", (
            Panel("Plans by tier", (
                Query(_rate("elite_planner_plans_total", "tier"), "tier {{tier}}"),
            ), "reqps", text='"none": no tier fits.'),
            Panel("Plans by tier, of the time shown", (Query(
                "sum by (tier) (increase(elite_planner_plans_total[$__range]))", "tier {{tier}}",
            ),), kind="bargauge"),
            Panel("Refused tiers by resource", (Query(
                _rate("elite_planner_refused_tiers_total", "resource"), "{{resource}}",
            ),), text="The resource that binds, for every tier that a plan refused."),
        )),
        Row("Calls", (
            Panel("Latency of Plan", (
                Query("elite:plan_latency_seconds:p50_5m", "half are faster"),
                Query("elite:plan_latency_seconds:p99_5m", "99 % are faster"),
            ), "s", text="Within the server. The objective: 99 % within 0.25 s."),
            Panel("Error budget of Plan", (
                Query("elite:plan_latency_errors:ratio5m", "5 minutes"),
                Query("elite:plan_latency_errors:ratio30m", "30 minutes"),
                Query("elite:plan_latency_errors:ratio1h", "1 hour"),
                Query("elite:plan_latency_errors:ratio6h", "6 hours"),
            ), "percentunit", text="Share that failed or was slow. The objective allows 1 %."),
            Panel("Calls", (
                Query("elite:plan_requests:rate5m", "Plan, all"),
                Query(_rate("elite_planner_rpc_requests_total", "method, code"),
                      "{{method}} {{code}}"),
            ), "reqps"),
        )),
        Row("Predictions of the runs reported, over measurements, less one", (
            Panel("Half are below", (Query(
                "histogram_quantile(0.5, sum by (le, resource) "
                "(increase(elite_planner_prediction_error_ratio_bucket[$__range])))",
                "{{resource}}",
            ),), "percentunit", text="Of the time shown."),
            Panel("Off by more than 5 %", (
                Query("elite:predictions_off:ratio1d", "{{resource}}"),
            ), "percentunit", text="Share of a day's runs."),
            Panel("Runs reported", (Query(
                "sum by (resource) (increase(elite_planner_prediction_error_ratio_count"
                "[$__range]))", "{{resource}}",
            ),), kind="stat"),
        )),
    ),
)  # fmt: skip

RUNS = Dashboard(
    uid="elite-runs",
    title="ELITE / Runs",
    variables=(Variable("run", "Run", "elite_trainer_run_info", "run_id"),),
    rows=(
        Row("$run", (
            Panel("Where it is", (Query(
                'elite_trainer_run_info{run_id="$run"}',
                "{{model}}, tier {{tier}}, on {{instance}}",
            ),), kind="state-timeline", text="While a worker has it.", width=12, height=6),
            Panel("Phase", (Query(_of_run("elite_trainer_run_phase"), "{{phase}}"),),
                  kind="state-timeline", text="1: the engine is in it.", width=12, height=6),
            Panel("Steps", (
                Query(_of_run("elite_trainer_completed_steps"), "done"),
                Query(_of_run("elite_trainer_planned_steps"), "wanted"),
            )),
            Panel("Context stage", (
                Query(_of_run("elite_trainer_context_tokens"), "context"),
                Query(_of_run("elite_trainer_target_tokens"), "target"),
            ), text="Tokens of a window. It changes when the run's plan does."),
            Panel("Attempts", (
                Query(_of_run("elite_trainer_run_attempts"), "taken up"),
                Query(_of_run("elite_trainer_run_replans"), "planned again"),
            )),
        )),
        Row("Training", (
            Panel("Loss", (Query(_of_run("elite_trainer_loss"), "training"),)),
            Panel("Gradient norm", (Query(_of_run("elite_trainer_gradient_norm"), "norm"),)),
            Panel("Learning rate", (Query(_of_run("elite_trainer_learning_rate"), "rate"),)),
        )),
        Row("Speed", (
            Panel("Tokens per second", (
                Query(_of_run("elite_trainer_tokens_per_second"), "last step"),
            )),
            Panel("Step", (
                Query(_of_run("elite_trainer_last_step_seconds"), "measured"),
                Query(_of_run("elite_trainer_predicted_step_seconds"), "predicted"),
            ), "s"),
            Panel("Phases of a step", (
                Query(_of_run("elite_trainer_last_step_phase_seconds"), "{{phase}}"),
            ), "s", text="Of the last one, on the device where there is one. What lies between "
                         "(reading data, saving) is in none."),
            Panel("Transfers over the bus", (
                Query(_moved("host_to_device"), "to the device"),
                Query(_moved("device_to_host"), "to the host"),
            ), "Bps", text="Weights and activations of the steps that ended."),
            Panel("Transfers to page files", (
                Query(_moved("disk_read"), "read"),
                Query(_moved("disk_written"), "written"),
            ), "Bps", text="Of the steps that ended."),
        )),
        Row("Memory", (
            Panel("Device memory", (
                Query(_of_run("elite_trainer_measured_peak_bytes"), "measured peak"),
                Query(_of_run("elite_trainer_predicted_peak_bytes"), "predicted peak"),
            ), "bytes"),
            Panel("Host memory", (
                Query(_of_run("elite_trainer_measured_host_peak_bytes"), "measured peak"),
                Query(_of_run("elite_trainer_predicted_host_peak_bytes"), "predicted peak"),
            ), "bytes", text="Measured: the engine's largest resident set once loaded. On a CPU "
                             "the device's memory is in it, too."),
            Panel("Predicted over measured, less one", (
                Query('elite:run_memory_error:ratio{run_id="$run"}', "device memory"),
                Query('elite:run_step_time_error:ratio{run_id="$run"}', "step time"),
            ), "percentunit"),
        )),
    ),
)  # fmt: skip

QUEUE = Dashboard(
    uid="elite-queue",
    title="ELITE / Queue",
    rows=(
        Row("Now", (
            Panel("Waiting", (Query("elite_trainer_waiting_runs", "{{device_class}}"),)),
            Panel("Running", (
                Query("elite_trainer_running_runs", "{{device_class}}"),
                Query("elite_trainer_runs_without_lease", "without a worker"),
            )),
            Panel("Workers", (
                Query("elite_trainer_workers", "{{device_class}}"),
                Query("elite_trainer_idle_workers", "{{device_class}}, idle"),
                Query("elite_trainer_workers_connected", "all"),
            ), text="One that takes several device classes counts in each."),
            Panel("Runs on record", (Query("elite_trainer_runs", "{{state}}"),)),
            Panel("Messages in the queue", (Query("elite_trainer_queue_depth", "{{instance}}"),)),
            Panel("Redis", (Query("elite_trainer_store_up", "answers the API"),), kind="stat"),
        )),
        Row("Start and end", (
            Panel("Time to start", (
                Query("histogram_quantile(0.5, sum by (le) "
                      "(increase(elite_trainer_submit_to_start_seconds_bucket[$__range])))",
                      "half are faster"),
                Query("histogram_quantile(0.95, sum by (le) "
                      "(increase(elite_trainer_submit_to_start_seconds_bucket[$__range])))",
                      "95 % are faster"),
            ), "s", text="From being submitted to the first start. The objective: 95 % within "
                         "five minutes."),
            Panel("Error budget of the time to start", (
                Query("elite:submit_to_start_errors:ratio1h", "1 hour"),
                Query("elite:submit_to_start_errors:ratio6h", "6 hours"),
                Query("elite:submit_to_start_errors:ratio3d", "3 days"),
            ), "percentunit", text="Share that started late. The objective allows 5 %."),
            Panel("Ends", (Query(
                "sum by (state) (increase(elite_trainer_runs_finished_total[$__range]))",
                "{{state}}",
            ),), kind="bargauge"),
        )),
        Row("Retries", (
            Panel("Queue messages", (
                Query(_rate("elite_trainer_deliveries_total", "outcome"), "{{outcome}}"),
            ), text="What came of them: a run's first start, a later one, or nothing to do."),
            Panel("Engines asked to stop", (Query(
                "sum by (reason) (increase(elite_trainer_engine_stops_total[$__range]))",
                "{{reason}}",
            ),), kind="bargauge"),
            Panel("Lost workers and new plans", (
                Query("sum(increase(elite_trainer_lease_expirations_total[$__range]))",
                      "leases expired"),
                Query("sum by (cause) (increase(elite_trainer_replans_total[$__range]))",
                      "planned again: {{cause}}"),
            ), kind="bargauge"),
        )),
        Row("Store", (
            Panel("Memory of Redis", (Query("redis_memory_used_bytes", "{{instance}}"),), "bytes"),
            Panel("Clients of Redis", (Query("redis_connected_clients", "{{instance}}"),)),
            Panel("Calls of the trainer", (Query(
                _rate("elite_trainer_rpc_requests_total", "method, code"), "{{method}} {{code}}",
            ),), "reqps"),
        )),
    ),
)  # fmt: skip

DASHBOARDS = (FLEET, PLANNER, RUNS, QUEUE)


def path_of(dashboard: Dashboard) -> Path:
    """Where its JSON lies."""
    return FOLDER / f"{dashboard.uid}.json"


def text_of(dashboard: Dashboard) -> str:
    """Its JSON, as it lies there."""
    return json.dumps(dashboard_json(dashboard), indent=2, ensure_ascii=False) + "\n"


def stale() -> list[Path]:
    """Files that are not what this module says, or that it says nothing of."""
    wanted = {path_of(dashboard): text_of(dashboard) for dashboard in DASHBOARDS}
    there = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    return sorted(path for path in {*wanted, *there} if wanted.get(path) != there.get(path))


def main() -> int:
    """Writes, or checks: then 1 when something is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    outdated = stale()
    if parser.parse_args().check:
        for path in outdated:
            print(f"stale: {path.name}; run python -m deploy.monitoring.grafana.dashboards")
        return 1 if outdated else 0
    FOLDER.mkdir(exist_ok=True)
    for path in outdated:
        path.unlink(missing_ok=True)
    for dashboard in DASHBOARDS:
        path_of(dashboard).write_text(text_of(dashboard), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
