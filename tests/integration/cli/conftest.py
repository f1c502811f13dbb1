"""The command line, a real stack, a tiny model and a small corpus."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.command_line import Elite, Stack, start_stack


@pytest.fixture
def elite(tmp_path: Path) -> Elite:
    """The command line on a state directory of this test's own."""
    return Elite(tmp_path / "state")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests of a module."""
    started = start_stack(Elite(tmp_path_factory.mktemp("stack") / "state"))
    yield started
    started.stop(signal.SIGINT)
    assert started.living() == []


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two small layers with random weights and a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192,
        tie_word_embeddings=True, eos_token_id=len(alphabet),
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files of made-up source code, some 400 KB."""
    folder = tmp_path_factory.mktemp("data") / "corpus"
    folder.mkdir()
    random_numbers = random.Random(0)
    for number in range(40):
        lines = [f"value_{i} = function({random_numbers.random()})\n" for i in range(250)]
        (folder / f"module_{number}.py").write_text("".join(lines))
    return folder
