"""Operations of a step, as MFU is reckoned from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import gpu_plans, speed
from bench.gpu_plans import operations
from bench.gpu_settings import FAST_MODEL
from services.planner.ladder import Tier
from services.planner.options import Place, Policy


def test_operations_are_those_counted_by_hand() -> None:
    shape, tier = speed.Subject.of(FAST_MODEL).shape, Tier(1, 256, 64, 4)
    tokens, layers, width, keys, inside, vocabulary = tier.tokens, 2, 64, 32, 128, 256
    weights = layers * (2 * width * width + 2 * width * keys + 3 * width * inside)
    linear = 2 * weights * tokens
    attention, head = 2 * layers * width * tokens**2, 4 * width * vocabulary * tier.target_tokens
    chosen = gpu_plans.streaming_set(shape, gpu_plans.fast_machine("cpu", 2**30, "sdpa_flash"))
    found = operations(shape, tier, chosen)
    # Of the embeddings no gradient is made.
    keys_and_queries = 2 * tokens * (width * width + 2 * width * keys)
    assert found.model == pytest.approx(2 * linear - keys_and_queries + 3 * attention + head)
    # The last layer has one forward, and makes its keys before, which the first layer's gradients
    # make up for. The recompute of the other leaves out the MLP's last product.
    spared = 2 * width * inside * tokens
    products = 2.5 * linear - spared
    assert found.hardware == pytest.approx(products + 3.5 * attention + head)
    assert found.utilisation(2.0, found.model)["model_flops_utilisation"] == 0.5
    chosen = replace(chosen, policy=Policy.EVERY_LAYER, attention_outputs=Place.NOWHERE)
    again = operations(shape, tier, replace(chosen, kept_keys=Place.NOWHERE))
    assert again.model == found.model
    made_again = attention / 2 + keys_and_queries
    assert again.hardware == pytest.approx(found.hardware + made_again)
