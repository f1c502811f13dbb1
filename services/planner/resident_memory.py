"""Device memory of the resident executor, phase by phase: whole windows, stock autograd.

Formula ids: layer-activations, keys-and-values, working-buffers and those of static_memory.
"""

from __future__ import annotations

from services.planner.arithmetic import (
    Number,
    floor_divide,
    maximum,
    minimum,
    power_of_two_from,
    power_of_two_to,
    total,
    value_of,
    where,
)
from services.planner.static_memory import Static
from services.planner.terms import ModelTerms, SetTerms, TierTerms

Lines = dict[str, Number]

_FLOAT32 = 4
TOKEN_BYTES = 16  # token ids and positions, int64
LARGEST_TILE_ROWS = 1024
SMALLEST_TILE_ROWS = 64


class ResidentMemory:
    """One model under one executor and dtype; tiers and sets may be columns."""

    def __init__(
        self, model: ModelTerms, tier: TierTerms, chosen: SetTerms, static: Static
    ) -> None:
        self._model, self._tier, self._chosen, self._static = model, tier, chosen, static
        self._trained = {
            "base_model": static.base_model, "lora": static.lora, "optimizer": static.optimizer,
        }  # fmt: skip
        self._one_kept = tier.tokens * model.layer.kept.at(tier.rank)
        self._boundary = tier.tokens * model.layer.boundary
        self._kept_output = where(chosen.selective, output_width(model), 0)
        self._attention_outputs = model.layers * tier.tokens * self._kept_output
        self._working = self._backward_working()
        self.tile_rows = self._loss_tile_rows()
        # The streaming executor works in chunks; this one takes the window as it is.
        self.chunk_tokens = tier.tokens

    def phases(self) -> dict[str, Lines]:
        """Lines of every phase, without the CUDA context: the budget is net of it."""
        static = self._static
        update = {
            "gradients": static.lora,
            "buffers": static.update,
        }
        return {
            # Weights come from a mapped file; NF4 holds one in the compute dtype as it packs it.
            "load": {
                "base_model": static.base_model, "lora": static.lora,
                "buffers": static.dequantised,
            },
            "forward": self._trained | self._forward(),
            "loss": self._trained | self._loss(self.tile_rows),
            "backward": self._trained | self._backward(),
            "optimizer": self._trained | update,
        }  # fmt: skip

    def host_stores(self) -> Lines:
        """Layer inputs in pinned memory: torch rounds each allocation up to a power of two."""
        pinned = self._model.layers * power_of_two_from(self._boundary)
        return {"activations": where(self._chosen.inputs_on_host, pinned, 0)}

    def disk_stores(self) -> Lines:
        """Nothing."""
        return {}

    def journal_bytes(self) -> Number:
        """Nothing: its steps are not saved in the middle."""
        return 0

    def _loss_tile_rows(self) -> Number:
        """Largest power of two for which the loss takes no more than backward does."""
        rows = self._tier.targets
        without, with_one = (total(self._loss(count).values()) for count in (0, 1))
        room = total(self._backward().values()) - without
        fitting = power_of_two_to(
            maximum(floor_divide(room, with_one - without), SMALLEST_TILE_ROWS)
        )
        largest = minimum(LARGEST_TILE_ROWS, power_of_two_to(rows))
        return where(self._chosen.tiled_loss, minimum(fitting, largest), rows)

    def _kept(self) -> Number:
        """What all layers keep for backward, on the device."""
        layers = where(self._chosen.inputs_on_device, self._model.layers, 1)
        inputs = layers * self._boundary + self._attention_outputs
        everything = self._model.layers * self._one_kept
        # The embeddings need no gradient: their norm keeps nothing.
        everything = everything - self._tier.tokens * self._model.layer.first_norm
        return where(self._chosen.keeps_all, everything, inputs)

    def _forward(self) -> Lines:
        # A layer that keeps everything has most of its working set among what it keeps.
        last = self._model.layer.forward_over_kept(self._tier.rank)
        working = where(self._chosen.keeps_all, last, self._model.layer.forward)
        return self._with_keys(self._kept() + self._tier.tokens * working, self._kept_layers())

    def _loss(self, tile_rows: Number) -> Lines:
        model, tier = self._model, self._tier
        hidden = model.element * model.hidden
        last_hidden = tier.tokens * (model.final_norm_output + hidden)
        rows = hidden * (tier.targets + 3 * tile_rows)
        layers = where(self._chosen.keeps_all, model.layers, 0)
        lines = self._with_keys(self._kept() + last_hidden + rows, layers)
        return lines | {"buffers": lines["buffers"] + logit_bytes(model) * tile_rows}

    def _backward_working(self) -> Number:
        layer, rank = self._model.layer, self._tier.rank
        keeps_all = self._chosen.keeps_all
        checkpointed = layer.backward(rank, self._kept_output)
        working = where(keeps_all, layer.backward_over_kept(rank), checkpointed)
        return self._tier.tokens * maximum(working, layer.final_norm + self._kept_output)

    def _backward(self) -> Lines:
        """The later of two moments: the last layer's, or the first's with all gradients made."""
        model, chosen, lora = self._model, self._chosen, self._static.lora
        one_output = self._tier.tokens * self._kept_output
        checkpointed = self._boundary + one_output
        one_layer = where(chosen.keeps_all, self._one_kept, checkpointed)
        freed = where(chosen.inputs_on_device, (model.layers - 1) * one_layer, 0)
        one_gradient = floor_divide(lora, model.layers)
        at_first_layer = lora - one_gradient > freed
        gradients = where(at_first_layer, lora, one_gradient)
        # The recompute takes the kept output as its own, or has not yet come to it.
        kept = self._kept() - where(at_first_layer, freed, 0) - one_output
        lines = self._with_keys(kept + self._working, self._kept_layers())
        # A whole weight in the compute dtype, before one of the MLP's gradients is made.
        one_tensor = self._tier.tokens * model.element * model.intermediate
        buffers = lines["buffers"] + maximum(0, self._static.dequantised - one_tensor)
        return lines | {"gradients": gradients, "buffers": buffers}

    def _kept_layers(self) -> Number:
        return where(self._chosen.keeps_all, self._model.layers, 1)

    def _with_keys(self, activations: Number, layers: Number) -> Lines:
        """Splits the keys and values of `layers` layers off the activations."""
        model, tokens = self._model, self._tier.tokens
        keys = layers * tokens * 2 * model.element * model.key_value
        return {
            "activations": activations - keys,
            "kv": keys,
            "buffers": tokens * (TOKEN_BYTES + model.rotary),
        }


def logit_bytes(model: ModelTerms) -> Number:
    """One row of logits: in 16 bit beside their fp32 copy, which the loss works on in place."""
    return where(value_of(model.element) == 2, 6, 4) * model.vocabulary


def output_width(model: ModelTerms) -> Number:
    """Bytes per token of one layer's attention output and log-sum-exp."""
    return model.element * model.query + _FLOAT32 * model.query_heads
