"""`python -m services.trainer.engine.gguf_conversion FILE.gguf FOLDER`: unpacks GGUF weights.

A process of its own, because unpacking takes several times the memory that training the model
does, and the memory goes with the process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from services.trainer.engine.failures import BAD_MODEL, EngineError

_MODULE = "services.trainer.engine.gguf_conversion"


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes weights (bfloat16 safetensors) and tokenizer of a GGUF file in Hugging Face format.

    Raises `EngineError` (BAD_MODEL) when the file cannot be read.
    """
    command = [sys.executable, "-m", _MODULE, str(gguf), str(folder)]
    ended = subprocess.run(command, stdout=sys.stderr, check=False)
    if ended.returncode:
        problem = f"{gguf} cannot be converted (exit status {ended.returncode}, see above)"
        raise EngineError(BAD_MODEL, problem, "install its package again")


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, trust_remote_code=False
    )
    # A model loaded from GGUF refuses to be saved, hence a second one of the same configuration.
    config = packed.config
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
