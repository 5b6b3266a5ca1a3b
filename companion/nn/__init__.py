# Tangled from vocabulary: edit there, `make tangle`. sha256:01672dc09238
"""PyTorch's nn: layers, and functions as modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from companion.dtype import float32
from companion.layers import Module, parameter
from companion.tensor import Tensor
from companion.tensor.creation import full
from companion.vocabulary import at, found


class Applied(Module):
    """A function as a module; its settings are attributes.

    `inplace` is a wish about memory: the values are the same.
    """

    function: Callable[..., Any]
    settings: inspect.Signature

    def __init__(self, *settings: Any, **named: Any):
        if "dim" in named:
            named["axis"] = named.pop("dim")
        try:
            given = self.settings.bind(*settings, **named).arguments
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}{self.settings}: "
                            f"{error}") from None
        given.pop("inplace", None)
        vars(self).update(given)

    def forward(self, *inputs: Any) -> Any:
        own = {name: value for name, value in vars(self).items()
               if name in self.settings.parameters}
        return self.function(*inputs, **own)


OPERANDS = "x", "y", "target", "self"  # which forward brings


def settings_of(function: Callable[..., Any]) -> inspect.Signature:
    """What a module is told when it is made; at last, as there, inplace."""
    own = [p for p in inspect.signature(function).parameters.values()
           if p.name not in OPERANDS]
    return inspect.Signature([*own, inspect.Parameter(
        "inplace", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False)])


def modular(name: str, function: Callable[..., Any]) -> type[Applied]:
    """The class of modules that apply `function`."""
    return type(name, (Applied,), {
        "settings": settings_of(function),
        "function": staticmethod(function), "__doc__": function.__doc__,
        "__module__": "companion.nn"})


FUNCTIONAL = "companion.nn.functional"
APPLIED = {
    **at("companion.activations", ReLU="relu", GELU="gelu", SiLU="silu"),
    **at("companion.vocabulary", Sigmoid="sigmoid", Tanh="tanh",
         Softmax="softmax", LogSoftmax="log_softmax",
         Unflatten="unflatten"),
    **at("companion.losses", MSELoss="mse_loss",
         BCEWithLogitsLoss="bce_with_logits"),
    **at(FUNCTIONAL, LeakyReLU="leaky_rectifier", ReLU6="relu6", ELU="elu",
         CELU="celu", SELU="selu", Mish="mish", Hardswish="hardswish",
         Hardsigmoid="hardsigmoid", Hardtanh="hardtanh", GLU="glu",
         Softplus="softplus", Softsign="softsign", Softmin="softmin",
         LogSigmoid="logsigmoid", Tanhshrink="tanhshrink",
         Softshrink="softshrink", Hardshrink="hardshrink",
         Threshold="threshold", Upsample="interpolate",
         Unfold="unfold"),
    **at(FUNCTIONAL, CrossEntropyLoss="second_axis_cross_entropy",
         NLLLoss="nll_loss", L1Loss="l1_loss", HuberLoss="huber_loss",
         SmoothL1Loss="smooth_l1_loss", BCELoss="binary_cross_entropy",
         KLDivLoss="kl_div", CosineSimilarity="cosine_similarity"),
}
LAYERS = {
    **at("companion.layers", "Module Linear Sequential Dropout LayerNorm "
         "RMSNorm"),
    **at("companion.convolution", "Conv1d Conv2d ConvTranspose2d MaxPool2d "
         "AvgPool2d AdaptiveAvgPool2d BatchNorm1d BatchNorm2d Flatten "
         "Dropout2d"),
    **at("companion.embedding", "Embedding"),
    **at("companion.sequence", "RNN RNNCell GRU GRUCell"),
}


def __getattr__(name: str) -> Any:
    """A layer of an earlier chapter, or a function made one."""
    if name in ("functional", "init", "utils"):
        return import_module(f"companion.nn.{name}")
    if name not in APPLIED:
        return found("nn", LAYERS, name)
    # Kept: a class is made once, or its objects would not be of it.
    made = modular(name, found("nn", APPLIED, name))
    return globals().setdefault(name, made)


class Identity(Module):
    """What comes in goes out; settings that other layers take are ignored."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def forward(self, x: Any) -> Any:
        return x


class PReLU(Module):
    """leaky_relu with a slope that is learned."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25):
        self.weight = parameter(full(num_parameters, init, float32))

    def forward(self, x: Tensor) -> Tensor:
        return prelu(x, self.weight)


def Parameter(data: Tensor, requires_grad: bool = True) -> Tensor:
    """A tensor, marked as one that training may change."""
    return data.detach().requires_grad_(requires_grad)


# A module finds its parts in lists and dictionaries, by their places.
ModuleList, ModuleDict = list, dict
ParameterList, ParameterDict = list, dict


# The rooms import what stands above: they are read last.
from companion.nn.functional import prelu
