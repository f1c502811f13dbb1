"""The operations decoder layers are made of, with what each saves and allocates.

Each mirrors one ATen operation and its derivative formula (PyTorch's `derivatives.yaml`). Weights
are frozen, so an operation with a weight saves no activation for it.
"""

from __future__ import annotations

from services.planner.liveness.shadow import Tensor


def add(left: Tensor, right: Tensor) -> Tensor:
    """left + right; both get the gradient itself."""
    return left.like().record(lambda gradient: (gradient, gradient), left, right)


def scale(tensor: Tensor, by_weight: bool = False) -> Tensor:
    """tensor * constant: a number, or a frozen weight (which is saved, at no cost)."""
    if by_weight:
        tensor.meter.save()
    return tensor.like().record(lambda gradient: (gradient.like(),), tensor)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """left * right; saves both. A narrower factor is broadcast and its gradient summed."""

    def backward(gradient: Tensor) -> tuple[Tensor, Tensor]:
        of_left = gradient.like(max(left.width, right.width))
        of_right = gradient.like(max(left.width, right.width))
        if left.width < right.width:
            of_left = of_left.like(left.width)
        if right.width < left.width:
            of_right = of_right.like(right.width)
        return of_left, of_right

    left.meter.save()
    wide = left if left.width >= right.width else right
    return wide.like().record(backward, left, right)


def cast(tensor: Tensor, element_bytes: int) -> Tensor:
    """To another dtype; the same tensor when it has it already."""
    if tensor.element_bytes == element_bytes:
        return tensor
    before = tensor.element_bytes
    return tensor.like(element_bytes=element_bytes).record(
        lambda gradient: (gradient.like(element_bytes=before),), tensor
    )


def add_constant(tensor: Tensor) -> Tensor:
    """tensor + number."""
    return tensor.like().record(lambda gradient: (gradient,), tensor)


def subtract(left: Tensor, right: Tensor) -> Tensor:
    """left - right, right broadcast; its gradient is negated and summed."""
    width = right.width

    def backward(gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.like().like(width)

    return left.like().record(backward, left, right)


def negate(tensor: Tensor) -> Tensor:
    """-tensor."""
    return tensor.like().record(lambda gradient: (gradient.like(),), tensor)


def power(tensor: Tensor) -> Tensor:
    """tensor ** n; saves tensor. Backward: gradient * (n * tensor ** (n - 1))."""

    def backward(gradient: Tensor) -> tuple[Tensor]:
        base = tensor.like()
        scaled = base.like()
        return (_combined(gradient, base, scaled),)

    tensor.meter.save()
    return tensor.like().record(backward, tensor)


def _combined(gradient: Tensor, *temporaries: Tensor) -> Tensor:
    del temporaries
    return gradient.like()


def mean(tensor: Tensor, rows: float) -> Tensor:
    """Mean over features: one number per row."""
    width = tensor.width
    return tensor.like(rows).record(lambda gradient: (gradient.like(width),), tensor)


def reciprocal_root(tensor: Tensor) -> Tensor:
    """rsqrt; saves its result. Backward: -0.5 * gradient * result ** 3."""
    result = tensor.like()
    saved = result.view()

    def backward(gradient: Tensor) -> tuple[Tensor]:
        cubed = saved.like()
        scaled = gradient.like()
        return (_combined(gradient, cubed, scaled),)

    return result.record(backward, tensor)


def linear(tensor: Tensor, out_width: float, line: str | None = None) -> Tensor:
    """tensor @ frozen weight."""
    in_width = tensor.width
    tensor.meter.save()
    result = tensor.like(out_width, line=line)
    return result.record(lambda gradient: (gradient.like(in_width),), tensor)


def adapter_linear(tensor: Tensor, out_width: float) -> Tensor:
    """tensor @ trained weight; saves tensor for the weight's gradient."""
    in_width = tensor.width

    def backward(gradient: Tensor) -> tuple[Tensor]:
        assert tensor.width
        return (gradient.like(in_width),)

    tensor.meter.save()
    return tensor.like(out_width).record(backward, tensor)


def lora_linear(tensor: Tensor, out_width: float, rank: int, line: str | None = None) -> Tensor:
    """A frozen linear with its adapter: W x + scaling * B A x."""
    base = linear(tensor, out_width, line)
    update = scale(adapter_linear(adapter_linear(tensor, rank), out_width))
    return add(base, update)


def activation(tensor: Tensor) -> Tensor:
    """A native activation (silu, gelu): saves its input, allocates its output."""

    def backward(gradient: Tensor) -> tuple[Tensor]:
        assert tensor.width
        return (gradient.like(),)

    tensor.meter.save()
    return tensor.like().record(backward, tensor)


def hyperbolic_tangent(tensor: Tensor) -> Tensor:
    """tanh; saves its result."""
    result = tensor.like()
    saved = result.view()

    def backward(gradient: Tensor) -> tuple[Tensor]:
        assert saved.width
        return (gradient.like(),)

    return result.record(backward, tensor)


def slice_of(tensor: Tensor, width: float) -> Tensor:
    """A view of some features; its backward is a zero-padded copy."""
    whole = tensor.width
    return tensor.view(width).record(lambda gradient: (gradient.like(whole),), tensor)


def split(tensor: Tensor, *widths: float) -> tuple[Tensor, ...]:
    """Views of neighbouring features (chunk, split); their gradients are joined by one cat."""
    whole = tensor.width
    pieces: list[Tensor] = []

    def join(_: Tensor) -> tuple[Tensor]:
        joined = pieces[0].like(whole)
        pieces.clear()
        return (joined,)

    def collect(gradient: Tensor) -> tuple[Tensor]:
        pieces.append(gradient)
        return (gradient.like(0),)

    joint = tensor.view().record(join, tensor)
    return tuple(joint.view(width).record(collect, joint) for width in widths)


def concatenate(*tensors: Tensor) -> Tensor:
    """cat along features: one new tensor; gradients are views (narrow)."""
    widths = [tensor.width for tensor in tensors]

    def backward(gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.view(width) for width in widths)

    return tensors[0].like(sum(widths)).record(backward, *tensors)


def layer_norm(tensor: Tensor) -> Tensor:
    """native_layer_norm with frozen weights: saves its input, mean and reciprocal deviation."""
    tensor.meter.save()
    statistics = (tensor.like(1), tensor.like(1))

    def backward(gradient: Tensor) -> tuple[Tensor]:
        assert tensor.width
        assert statistics
        return (gradient.like(),)

    return tensor.like().record(backward, tensor)


def attention(query: Tensor, key: Tensor, value: Tensor, query_heads: int) -> Tensor:
    """Flash attention: saves q, k, v, its output and a log-sum-exp per head; no S x S tensor."""
    query.meter.save()
    output = query.like()
    log_sum_exp = output.like(query_heads, element_bytes=4)
    saved = output.view()

    def backward(_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert saved.width
        assert log_sum_exp.width
        return query.like(), key.like(), value.like()

    return output.record(backward, query, key, value)


def transposed(tensor: Tensor) -> Tensor:
    """A transposed view; its gradient is copied back to token order."""
    return tensor.view().record(lambda gradient: (gradient.like(),), tensor)


def copied(tensor: Tensor) -> Tensor:
    """A copy in token order; its gradient is a view."""
    return tensor.like().record(lambda gradient: (gradient,), tensor)
