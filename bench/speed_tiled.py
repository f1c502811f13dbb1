"""Stock training with DeepSpeed's tiled MLP and tiled loss on top of checkpointing.

`TiledMLP` and `TiledFusedLogitsLoss` of "Arctic Long Sequence Training" (Bekman et al. 2025,
https://arxiv.org/abs/2506.13996), as DeepSpeed's own examples put them into a model: MLPs run in
tiles of as many tokens as the model is wide, and so does the head with the loss. DeepSpeed is no
dependency of this project; where it is not installed, nobody measures it.

Shapes: B batch (1), S tokens of the window, R rows of a tile, E hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss, TiledMLP

from bench.speed_steps import IGNORED, Stock
from elite.planner.v1 import planner_pb2
from services.trainer.engine.decoder import decoder_layers, last_hidden_states


class Tiled(Stock):
    """`Stock` with both."""

    def __init__(
        self, config: Mapping[str, Any], plan: planner_pb2.Plan, device: torch.device
    ) -> None:
        super().__init__(config, plan, device)
        self._tile_tokens = int(config["hidden_size"])
        for layer in decoder_layers(self.model):
            layer.mlp.forward = self._tiled(layer.mlp)

    def _tiled(self, mlp: torch.nn.Module) -> Any:
        whole = mlp.forward

        def forward(hidden_bse: torch.Tensor) -> torch.Tensor:
            # The module is what `whole` is bound to; the list is of weights that ZeRO watches.
            tiles = self._tiles(hidden_bse)
            result: torch.Tensor = TiledMLP.apply(
                lambda _, tile_bre: whole(tile_bre), mlp, hidden_bse, tiles, []
            )
            return result

        return forward

    def _tiles(self, hidden_bse: torch.Tensor) -> int:
        return math.ceil(hidden_bse.shape[1] / self._tile_tokens)

    def step(self, window_bs: torch.Tensor) -> float:
        """Loss of the window's targets; leaves its gradient in the adapters' `.grad`."""
        token_ids_bs = window_bs.to(self.device)
        labels_bs = torch.full_like(token_ids_bs, IGNORED)
        labels_bs[:, -self._target_tokens - 1 : -1] = token_ids_bs[:, -self._target_tokens :]
        model = self.model.get_base_model()  # without PEFT around it
        hidden_bse = last_hidden_states(model, token_ids_bs)
        total = TiledFusedLogitsLoss.apply(
            _summed_loss, model.get_output_embeddings(), hidden_bse, labels_bs, None,
            self._tiles(hidden_bse), [], "sum",
        )  # fmt: skip
        loss = total / self._target_tokens
        loss.backward()
        return float(loss.detach())


def _summed_loss(
    head: torch.nn.Module, hidden_re: torch.Tensor, labels_r: torch.Tensor
) -> torch.Tensor:
    """Sum of the losses of a tile's targets."""
    logits_rv = head(hidden_re).float()
    return torch.nn.functional.cross_entropy(
        logits_rv, labels_r, ignore_index=IGNORED, reduction="sum"
    )
