"""Shapes without data: networks and tensors on torch's meta device, and what code that wants values is told there.

Operations on the meta device compute nothing, so that networks of any size run on any machine; they cost a fraction of torch's
fake tensors. Three things that ordinary code does are missing there, and are made up for: a choice of attention kernel, values
where the code asks for them, and operations between shapes and small real tensors. Must not count anything.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten

META = torch.device("meta")
MAX_ANSWERED = 4096
"""Elements of a tensor that is still given values when it is asked for on the CPU. Larger ones stay shapes there as well."""

MAX_SCALES = 8
"""Elements of a table of scales: a start and an end, or a factor, for each of four axes."""


@contextmanager
def shapes() -> Iterator[None]:
    """Inside, new tensors are shapes, and attention to shapes is one operation.

    torch itself would spell out the scores for them. The function is replaced by name, since no mode of torch for functions
    reaches what the backward pass computes again.
    """
    attend = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention  # type: ignore[assignment] # without enable_gqa
    try:
        with META:
            yield
    finally:
        functional.scaled_dot_product_attention = attend


@contextmanager
def linear_layers(*, partitioned: bool) -> Iterator[None]:
    """Inside, linear layers keep for the backward pass what torch's do, or with `partitioned` what DeepSpeed's do under ZeRO 3.

    DeepSpeed puts its own in torch's place for the rest of a process: it keeps its input even where the weight is frozen.
    """
    from deepspeed.runtime.zero.linear import zero3_linear_wrap  # noqa: PLC0415 - takes seconds, and reads the environment

    found = functional.linear
    functional.linear = zero3_linear_wrap if partitioned else torch._C._nn.linear
    try:
        yield
    finally:
        functional.linear = found


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attend with the CPU's flash kernel: what it keeps for the backward pass is what CUDA's does."""
    kernel = aten._scaled_dot_product_flash_attention_for_cpu
    attended: Tensor = kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return attended


def give_shapes(module: nn.Module) -> nn.Module:
    """Replace every real weight, buffer and constant of a module by its shape."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not parameter.is_meta:
                part._parameters[name] = nn.Parameter(parameter.detach().to(META), requires_grad=parameter.requires_grad)
        for tensors in (part._buffers, vars(part)):
            for name, value in tensors.items():
                if isinstance(value, Tensor | tuple | list):
                    tensors[name] = tree_map_only(Tensor, _shape_of, value)
    return module


def _shape_of(tensor: Tensor) -> Tensor:
    """Return a tensor's shape. What networks read as sizes, indices or scales (ONNX has them as tensors) stays as it is."""
    is_read = tensor.numel() <= (MAX_SCALES if tensor.dtype.is_floating_point or tensor.dtype.is_complex else MAX_ANSWERED)
    return tensor if is_read else tensor.detach().to(META)


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation, on real tensors or on shapes; real tensors beside shapes are shapes as well."""
    answer = _ANSWERS.get(func)
    if answer is not None and args[0].is_meta:
        return answer(func, *args, **kwargs)
    signature = _signature(func, args, kwargs)
    if signature is None:
        return _computed(func, args, kwargs)
    forms = _RESULTS.get(signature)
    if forms is None:
        result = _computed(func, args, kwargs)
        _remember(signature, args, kwargs, result)
        return result
    tensors = [torch.empty_strided(size, stride, dtype=dtype, device=META) for size, stride, dtype in forms.tensors]
    return tuple(tensors) if forms.is_tuple else tensors[0]


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """Let torch find out."""
    try:
        return func(*args, **kwargs)
    except RuntimeError:
        kinds = {tensor.is_meta for tensor in _tensors((args, kwargs))}
        if kinds != {True, False}:
            raise
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(META), (args, kwargs))
        return func(*args, **kwargs)


@dataclass(frozen=True)
class _Forms:
    """Sizes, strides and types of what an operation returns."""

    tensors: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
    is_tuple: bool


_RESULTS: dict[Any, _Forms | None] = {}
"""What operations return that only make new tensors, by their signatures: torch takes ten times as long to find out."""

MAX_REMEMBERED = 100_000


def _signature(func: Any, args: Any, kwargs: Any) -> Any:
    """Return all that the form of a result depends on; None where that is values, or where memory may be shared."""
    if not _makes_new_tensors(func):
        return None
    try:
        signature = (func, *map(_form, args), *((name, _form(value)) for name, value in kwargs.items()))
        return signature if _RESULTS.get(signature, True) else None
    except (TypeError, ValueError):  # a value that cannot be hashed, or a real tensor
        return None


def _form(value: Any) -> Any:
    """Return what a result's form depends on in an argument.

    Raises:
        ValueError: a real tensor: its values matter.
    """
    if isinstance(value, Tensor):
        if not value.is_meta and value.dim():
            raise ValueError("values matter")
        return value.shape, value.stride(), value.dtype, value.is_meta
    if isinstance(value, list | tuple):
        return tuple(map(_form, value))
    return type(value), value


@cache
def _makes_new_tensors(func: Any) -> bool:
    """Whether an operation changes nothing and returns no views, as far as it says."""
    schema = func._schema
    aliases = any(part.alias_info is not None for part in (*schema.arguments, *schema.returns))
    return not aliases and len(schema.returns) > 0 and all(isinstance(part.type, torch.TensorType) for part in schema.returns)


def _remember(signature: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Remember the form of a result that has memory of its own, all of it used; of others, that there is none."""
    results, given = _tensors(result), _tensors((args, kwargs))
    before = {tensor.untyped_storage()._cdata for tensor in given}
    forms = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in results)
    anew = [torch.empty_strided(size, stride, dtype=dtype, device=META) for size, stride, dtype in forms]
    is_new = (
        any(tensor.is_meta for tensor in given)
        and len(results) == (len(result) if isinstance(result, tuple) else 1)
        and all(tensor.is_meta and tensor.untyped_storage()._cdata not in before for tensor in results)
        and all(a.untyped_storage().nbytes() == b.untyped_storage().nbytes() for a, b in zip(anew, results, strict=True))
    )
    if len(_RESULTS) >= MAX_REMEMBERED:
        _RESULTS.clear()
    _RESULTS[signature] = _Forms(forms, isinstance(result, tuple)) if is_new else None


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _value(_func: Any, tensor: Tensor) -> bool | int | float:
    """Return the value of a tensor that has none."""
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1


def _nonzero(_func: Any, tensor: Tensor) -> Tensor:
    """Return the indices of all elements."""
    return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64)


def _copy(func: Any, tensor: Tensor, **kwargs: Any) -> Tensor:
    """Return a copy, on the CPU as well: what is small has values there."""
    device = kwargs.get("device")
    if device is None or torch.device(device) == META:
        copied: Tensor = func(tensor, **kwargs)
    elif tensor.numel() <= MAX_ANSWERED:
        copied = torch.ones(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype, device=device)
    else:
        copied = func(tensor, **{**kwargs, "device": META})
    return copied


_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _value,
    aten.nonzero.default: _nonzero,
    aten._to_copy.default: _copy,
}
"""What is asked of shapes that have no values: every element is 1, and true."""
