"""Words of the generated pages that no code has: what a caller does about an error, and such."""

from __future__ import annotations

UNDESCRIBED = {
    "max_message_bytes": "largest request and answer",
    "max_concurrent_requests": "calls at once, of all clients; more get RESOURCE_EXHAUSTED",
    "shutdown_grace_seconds": "how long open calls may go on after SIGTERM",
    "log_format": "json: one object a line",
    "log_level": "the least that is logged",
    "redis_connect_timeout_seconds": "longest wait for a connection to Redis",
}
CLIENT_VARIABLES = {
    "TLS_CA": "PEM file of the authority that signed the servers' certificates, or `system`; "
    "with it connections are encrypted",
    "TLS_CERTIFICATE": "PEM file of the client's own certificate, for mutual TLS",
    "TLS_KEY": "PEM file of its key",
    "TLS_NAME": "the name in the server's certificate, where it is not that of the address",
    "TOKEN": "the token itself",
    "TOKEN_FILE": "file with the token; goes before `ELITE_CLIENT_TOKEN`",
    "PLAINTEXT_TOKEN": "`1`: send the token unencrypted to another machine, where something else "
    "encrypts; otherwise that is refused",
}
OTHER_VARIABLES = {
    "ELITE_DATA": "Compose: folder of this machine that containers see as `/data`",
    "ELITE_MODELS": "Compose: folder of this machine that containers see as `/models`",
    "ELITE_PROFILER_PORT": "Compose: port on loopback for the profiler",
    "ELITE_PLANNER_PORT": "Compose: port on loopback for the planner",
    "ELITE_TRAINER_PORT": "Compose: port on loopback for the trainer's API",
    "ELITE_PROMETHEUS_PORT": "Compose: port on loopback for Prometheus",
    "ELITE_GRAFANA_PORT": "Compose: port on loopback for Grafana",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "where traces go; without it there are none. Needs the extra "
    "`tracing`",
    "HF_HOME": "where models of the hub are kept; read by transformers",
}
REASONS = {
    "INVALID_REQUEST": "Change the fields that `BadRequest` names; the same call fails again.",
    "NOT_FOUND": "Check the id: a run from ListRuns, a tier, model or card from its list.",
    "CONFLICT": "The request_id was used for another run: send the same spec, or choose a new id.",
    "PRECONDITION_FAILED": "The request is good, the state is not: the message says what has to "
    "change first.",
    "MISSING_MEASUREMENT": "Run the stress test (`elite profile --stress`), and ask again.",
    "BUSY": "Something that runs once at a time is running: try again later.",
    "RATE_LIMITED": "Wait `retry_after_seconds` of the metadata where it is given; else end some "
    "of your open calls.",
    "UNAUTHENTICATED": "Send a token that the service knows: `ELITE_CLIENT_TOKEN_FILE`.",
    "PERMISSION_DENIED": "Ask an admin for a token with the role that the message names, or let "
    "the run's owner do it.",
    "STORE_UNAVAILABLE": "Redis is away: try again; the same request_id makes that safe.",
    "DEVICE_ERROR": "The device did not answer or gave an error: see the profiler's log.",
    "SERVER_STOPPING": "The server stops and ends your watch: watch again from the last cursor.",
    "UNIMPLEMENTED": "The server is of another version than the protos you have: update it.",
    "INTERNAL": "A bug. The service's log has the details under the request id of the message.",
}
BY_GRPC = {
    '`UNIMPLEMENTED`, "Method not found!"': "a method or service that the server does not have",
    '`RESOURCE_EXHAUSTED`, "SERVER: Received message larger than max"': "a request larger than "
    "`MAX_MESSAGE_BYTES`",
    '`RESOURCE_EXHAUSTED`, "Concurrent RPC limit exceeded!"': "more than twice "
    "`MAX_CONCURRENT_REQUESTS` at the same time, probes too",
    "`NOT_FOUND`, without a message": "a health check of a service that the server does not have",
}
CAUSES = {
    "DEVICE_OUT_OF_MEMORY": "Plans are replaced by smaller ones by themselves, if the run has "
    "`planned_by`. Else plan with `--gpu-ram`, or a lower tier.",
    "HOST_OUT_OF_MEMORY": "As above, with `--host-ram`; or give the worker more memory.",
    "DISK_FULL": "Make room on the disk of the runs, then resume.",
    "BAD_DATA": "Change the data or the globs, and create a new run.",
    "BAD_MODEL": "Give a model that the plan was made for; the message says what differs.",
    "KILLED": "Look who kills: the kernel's log, the cluster's events. Then resume.",
    "INTERNAL": "A bug, or a broken installation: `stderr_tail` has the engine's last lines.",
    "DIVERGED": "The loss is no number. Lower the learning rate, and create a new run.",
    "DISK_CORRUPT": "A page came back different: check the disk before anything else.",
    "SUPERSEDED": "A newer attempt has the run. Nothing to do; look at that one.",
    "STALLED": "The engine's log has the stacks of its threads. Then resume.",
    "DEADLINE_EXCEEDED": "It was saved. Resume gives it as much time again.",
}
