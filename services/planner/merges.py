"""What it takes to put blocks of attention together, in fp32."""

from __future__ import annotations

from services.planner.arithmetic import Number, minimum, value_of
from services.planner.terms import ModelTerms, SetTerms

_FLOAT32 = 4
# What a GPU's backward reads and writes for a query's channel before and after its products: 38 and
# 31 microseconds for 8 192 queries of 1 536 channels on an H100.
_PREPARED_BYTES = 16


def merge_traffic(
    model: ModelTerms, chosen: SetTerms, chunks: Number, *, forwards: Number, window: Number,
    key_chunks: int,
) -> Number:  # fmt: skip
    """Bytes read and written for a token, in all layers.

    Forward, a block's output is read and the running one scaled and added to; with all keys on the
    device there are two blocks, else one for every earlier chunk. Backward, a block's gradients are
    added to the queries' and the keys' so far; of blocks shorter than the measured ones there are
    more, and each prepares its queries.

    chunks: of the window. forwards: that attend. window: of layers that have one, in chunks.
    key_chunks: of keys in a block of backward, keys on the device.
    """
    scaled, added = 4 * _FLOAT32 + model.element, 2 * _FLOAT32 + model.element
    in_middle = (chunks - 1) / 2
    in_pages = 1 - chosen.keys_on_device  # a column of 0 and 1
    traffic: Number = 0
    for layers, earlier in (
        (model.layers - model.windowed_layers, in_middle),
        (model.windowed_layers, minimum(window, in_middle)),
    ):
        if not value_of(layers):
            continue
        measured = earlier / key_chunks
        outputs = minimum(1, earlier) * (1 - in_pages) + earlier * in_pages + 1
        prepared = in_pages * (earlier - measured) * (added + _PREPARED_BYTES)
        queries = forwards * outputs * scaled + (measured + 1) * added + prepared
        keys = 2 * model.key_value * added * (earlier + 1)
        traffic = traffic + layers * (model.query * queries + keys)
    return traffic
