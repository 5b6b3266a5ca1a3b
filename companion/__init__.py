# Tangled from tangle, tensors, indexing, native, activations, layers, losses, autograd, optimizers, training, data, gpu, convolution, pictures, tokenization, embeddings, sequences, attention, transformers, graphs, capture, memoization, quantization, compression, acceleration, scaling, serving, vocabulary: edit there, `make tangle`. sha256:a54fbcab478b  # noqa: E501
"""Tensors, Tangled: a deep learning framework you can read."""

from __future__ import annotations

import builtins
import difflib
from importlib import import_module

from companion.literate.origin import install

__version__ = "0.1.0"


def __getattr__(name: str):
    """Import a public name when it is first asked for."""
    if name == "__all__":
        return [word for word in EXPORTS if not hasattr(builtins, word)]
    if name not in EXPORTS:
        near = difflib.get_close_matches(name, EXPORTS, 3) or ["Tensor"]
        raise AttributeError(f"companion has no {name}; its nearest words: "
                             f"{', '.join(near)}")
    value = module = import_module(EXPORTS[name])
    if module.__name__ != f"companion.{name}":  # a name in it, not itself
        value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *EXPORTS])


install()

EXPORTS: dict[str, str] = {
    **dict.fromkeys(("Tensor", "from_numpy"), "companion.tensor"),
    "where": "companion.tensor.operands",
    **dict.fromkeys((
        "bool_", "uint8", "int8", "int32", "int64", "float16", "bfloat16",
        "float32", "float64"), "companion.dtype"),
    **dict.fromkeys((
        "arange", "eye", "full", "full_like", "linspace", "one_hot", "ones",
        "ones_like", "zeros", "zeros_like"), "companion.tensor.creation"),
    **dict.fromkeys((
        "Generator", "manual_seed", "rand", "randint", "randn"),
        "companion.tensor.random"),
    **dict.fromkeys((
        "allclose", "cat", "stack"), "companion.tensor.indexing"),
    "set_threads": "companion.native",
    "gelu": "companion.activations",
    "leaky_relu": "companion.activations",
    "relu": "companion.activations",
    "silu": "companion.activations",
    **dict.fromkeys((
        "Dropout", "LayerNorm", "Linear", "Module", "RMSNorm", "Sequential",
        "he", "parameter", "xavier"), "companion.layers"),
    **dict.fromkeys((
        "bce_with_logits", "cross_entropy", "mse_loss"), "companion.losses"),
    "grad": "companion.tensor.gradients",
    "gradcheck": "companion.tensor.gradients",
    "no_grad": "companion.autograd",
    **dict.fromkeys((
        "Adam", "AdamW", "RMSprop", "SGD", "decay_groups"), "companion.optim"),
    **dict.fromkeys((
        "Batches", "EarlyStopping", "LossPlot", "Observer", "ProgressBar",
        "Trainer", "accuracy", "clip_grad_norm_", "evaluate", "one_cycle",
        "warmup_cosine"), "companion.training"),
    **dict.fromkeys((
        "Arrays", "Compose", "DataLoader", "Dataset", "Normalize",
        "RandomFlip", "RandomShift", "cifar10", "collate", "mnist", "names",
        "shakespeare"), "companion.data"),
    "randperm": "companion.tensor.random",
    "set_float32_matmul_precision": "companion.cuda",
    "prefetch": "companion.gpu",
    "OutOfMemory": "companion.gpu",
    **dict.fromkeys((
        "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm1d", "BatchNorm2d",
        "Conv1d", "Conv2d", "ConvTranspose2d", "Dropout2d", "Flatten",
        "MaxPool2d", "adaptive_avg_pool2d", "avg_pool2d", "conv1d", "conv2d",
        "conv_transpose2d", "max_pool2d"), "companion.convolution"),
    "Cutout": "companion.data",
    **dict.fromkeys(
        ("CharTokenizer", "Tokenizer"), "companion.tokenizer"),
    **dict.fromkeys(
        ("Embedding", "rotary", "sinusoidal"), "companion.embedding"),
    **dict.fromkeys(
        ("GRU", "GRUCell", "RNN", "RNNCell", "sample", "unbind"),
        "companion.sequence"),
    **dict.fromkeys((
        "MultiHeadAttention", "attention_weights", "causal_mask",
        "scaled_dot_product_attention"), "companion.attention"),
    **dict.fromkeys((
        "GPT", "GPTConfig", "next_token_loss", "spoken", "windows"),
        "companion.transformer"),
    "realize": "companion.compiler.lazy",
    "jit": "companion.compiler.capture",
    **dict.fromkeys((
        "load_program", "save_program"), "companion.compiler.saved"),
    **dict.fromkeys((
        "CachedGPT", "KVCache", "PagedCache", "Request", "Server"),
        "companion.cache"),
    **dict.fromkeys((
        "HalfWeight", "IntegerWeight", "QuantizedWeight", "RoundedWeight",
        "Scheme", "calibrate", "load_quantized", "quantized"),
        "companion.quantize"),
    **dict.fromkeys((
        "CSR", "Masks", "SparseLinear", "distilled", "layerwise", "low_rank",
        "magnitude", "pareto_front", "prunable", "shrunk", "strongest", "svd",
        "two_of_four", "unit_masks"), "companion.compress"),
    **dict.fromkeys((
        "GradScaler", "accumulate", "checkpoint", "computing_in", "tune"),
        "companion.accelerate"),
    **dict.fromkeys((
        "ColumnParallel", "DataParallel", "RowParallel", "Sharded", "spawn",
        "world"), "companion.distributed"),
    **dict.fromkeys(("Engine", "Host", "Stream"), "companion.serve"),
}

EXPORTS |= dict.fromkeys((
    "abs absolute acos acosh add all amax amin any arccos arcsin arctan "
    "argmax argmin argsort asin asinh atan atan2 atanh bitwise_and "
    "bitwise_not bitwise_or bitwise_xor bmm ceil chunk clamp clip clone "
    "copysign cos cosh count_nonzero cummax cummin cumprod cumsum detach "
    "diag diagonal diff div divide dot eq equal erf exp exp2 expm1 fix "
    "flatten flip floor floor_divide fmod frac gather ge gt hypot index_add "
    "index_select isclose isfinite isinf isnan kthvalue le lerp log log10 "
    "log1p log2 log_softmax logaddexp logcumsumexp logical_and logical_not "
    "logical_or logical_xor logsumexp lt masked_fill masked_select matmul "
    "max maximum mean min minimum mm moveaxis movedim mul multiply "
    "nan_to_num narrow ne neg negative nonzero norm numel outer permute pow "
    "prod ravel reciprocal remainder repeat_interleave reshape roll round "
    "rsqrt scatter scatter_add select sigmoid sign sin sinh softmax sort "
    "split sqrt square squeeze std std_mean sub subtract sum swapaxes t "
    "take_along_axis take_along_dim tan tanh topk trace transpose tril triu "
    "true_divide trunc unflatten unique unsqueeze var var_mean"
    ).split(), "companion.vocabulary")

EXPORTS["einsum"] = "companion.tensor.contraction"
EXPORTS |= dict.fromkeys((
    "multinomial", "rand_like", "randn_like", "bernoulli"),
    "companion.tensor.random")
EXPORTS |= dict.fromkeys(("empty", "meshgrid"), "companion.tensor.creation")
EXPORTS |= {"TensorDataset": "companion.data", "nn": "companion.nn"}
EXPORTS |= dict.fromkeys(("Subset", "random_split"), "companion.data")
EXPORTS |= dict.fromkeys((
    "enable_grad", "inference_mode", "is_grad_enabled", "set_grad_enabled"),
    "companion.autograd")
EXPORTS |= dict.fromkeys((
    "cuda", "device", "is_tensor", "load", "median", "optim", "save",
    "tensor"), "companion.vocabulary")

EXPORTS["utils"] = "companion.utils"
