"""An engine that trains nothing: it speaks the event protocol and ends in the way it is told.

What to do stands in `spec.display_name`, as words: "succeed", "steps=5 pause=0.1", "crash",
"save_every=5", "engine_failed=BAD_DATA", "exit=75", "hang", "stubborn", "sigkill", "sigsegv",
"garbage", "grandchild", "early_close", "confused" (fails when asked to stop), "most_bytes=N" (out
of memory under a larger plan). It writes its process id to `RUN_DIRECTORY/engine.pid` and a line
for each start to `RUN_DIRECTORY/starts`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

EXIT_DRAINED = 75


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--plan", "--spec", "--run-directory"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--fencing-token", type=int, required=True)
    parser.add_argument("--told-steps", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--events-fd", type=int, required=True)
    FakeEngine(parser.parse_args()).run()


class FakeEngine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.directory: Path = options.run_directory
        self.resume: bool = options.resume
        self.events = os.fdopen(options.events_fd, "w")
        plan, spec = (json.loads(path.read_text()) for path in (options.plan, options.spec))
        self.plan = plan
        words = spec.get("displayName", "").split()
        self.orders = dict(word.partition("=")[::2] for word in words)
        self.steps = int(spec["training"]["steps"])
        self.stop = False

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._asked_to_stop)
        (self.directory / "engine.pid").write_text(str(os.getpid()))
        with (self.directory / "starts").open("a") as starts:
            starts.write(f"resume={self.resume}\n")
        print("fake engine: what it says on stderr", file=sys.stderr, flush=True)
        self.emit("modelLoaded", deviceName="fake device", attentionKernel="sdpa_math")
        self._misbehave()
        self.emit("evaluated", beforeTraining=True, loss=3.0, windowCount="4")
        self._train()
        adapter = self.directory / "adapter"
        adapter.mkdir(exist_ok=True)
        self.emit("evaluated", loss=1.5, windowCount="4", step=str(self.steps))
        self.emit("adapterSaved", path=str(adapter), bytes="1")

    def _train(self) -> None:
        first = 1 + max((int(path.name[5:]) for path in self._checkpoints()), default=0)
        pause = float(self.orders.get("pause", 0.01))
        for step in range(first, self.steps + 1):
            self.emit(
                "stepCompleted",
                step=str(step),
                totalSteps=str(self.steps),
                loss=3.0 - step / self.steps,
                stepSeconds=pause,
                tokensPerSecond=100.0,
                measuredPeakBytes="1000",
                predictedPeakBytes="1100",
                hostPeakBytes="5000",
            )
            if step % int(self.orders.get("save_every", self.steps)) == 0 and step < self.steps:
                self._save_checkpoint(step)
            time.sleep(pause)
            if self.stop:
                if "confused" in self.orders:
                    self._fail("INTERNAL", "an import failed as told")
                self._save_checkpoint(step)
                sys.exit(EXIT_DRAINED)

    def _checkpoints(self) -> list[Path]:
        return list((self.directory / "checkpoints").glob("step-*")) if self.resume else []

    def _save_checkpoint(self, step: int) -> None:
        path = self.directory / "checkpoints" / f"step-{step:08d}"
        path.mkdir(parents=True, exist_ok=True)
        self.emit("checkpointSaved", step=str(step), path=str(path), bytes="1")

    def _misbehave(self) -> None:
        if "crash" in self.orders:
            raise RuntimeError("the fake engine crashed as told")
        if "engine_failed" in self.orders:
            self._fail(self.orders["engine_failed"], "failed as told")
        planned_bytes = int(self.plan["gpuMemory"]["totalBytes"])
        if planned_bytes > int(self.orders.get("most_bytes", planned_bytes)):
            self._fail("DEVICE_OUT_OF_MEMORY", "out of memory as told")
        if "exit" in self.orders:
            sys.exit(int(self.orders["exit"]))
        if "hang" in self.orders or "stubborn" in self.orders:
            if "stubborn" in self.orders:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._hang()
        if "sigkill" in self.orders:
            os.kill(os.getpid(), signal.SIGKILL)
        if "sigsegv" in self.orders:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "garbage" in self.orders:
            self.events.write("this is not JSON\n\xff\n" + "x" * (2 << 20) + "\n{}\n")
        if "grandchild" in self.orders:
            child = subprocess.Popen(
                ["sleep", "600"], pass_fds=(self.events.fileno(),), close_fds=True
            )
            (self.directory / "grandchild.pid").write_text(str(child.pid))
        if "early_close" in self.orders:
            os.close(os.dup2(os.open(os.devnull, os.O_WRONLY), self.events.fileno()))

    def _fail(self, cause: str, message: str) -> NoReturn:
        self.emit("engineFailed", cause=f"FAILURE_CAUSE_{cause}", message=message)
        sys.exit(1)

    def _hang(self) -> None:
        while not self.stop:
            time.sleep(0.05)
        sys.exit(EXIT_DRAINED)

    def _asked_to_stop(self, *_: object) -> None:
        self.stop = True

    def emit(self, event: str, **fields: object) -> None:
        self.events.write(json.dumps({event: fields}) + "\n")
        self.events.flush()


if __name__ == "__main__":
    main()
