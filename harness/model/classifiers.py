"""Models that predict a label from its input: the classifiers of "The description length of deep learning models".

Inputs are bytes, read as fractions of 255, or floats as they are. There is no batch norm, with which a prediction would
depend on the other rows of its batch, but group norm (Wu and He 2018).
"""

import itertools
import re
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from harness.model.transformer import ModelConfig

LARGEST_BYTE = 255.0
# Rows and columns that an architecture needs, for its poolings.
_LEAST_PIXELS = {"lenet5": 16, "vgg8": 8, "resnet18": 8}
_NORM_GROUPS = 8
_VGG_WIDTHS, _VGG_UNITS = (32, 64, 128), 256
_RESNET_WIDTHS = (64, 128, 256, 512)


class Classifier(nn.Module):
    """A label's logits given its input; the last layer starts at zero, so that the first predictions are uniform."""

    def __init__(self, config: "ModelConfig", vocab_size: int):
        """`vocab_size` counts the classes."""
        super().__init__()
        self.config, self.vocab_size, self.begin = config, vocab_size, vocab_size
        self.checkpoint_activations = False
        self.layers = _LAYERS[config.architecture](config)
        self._flops = 0
        with torch.no_grad():
            features = self._counted(torch.zeros(1, *config.input_shape))
        self.head = nn.Linear(features.shape[1], vocab_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._flops += self.head.weight.numel()

    @property
    def num_parameters(self) -> int:
        """Number of trained scalars."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> float:
        """Floating-point operations of one forward and backward pass, per label: two each for weight and place."""
        return 6.0 * self._flops

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (batch, 1, classes) for `inputs` (batch, channels, rows, columns), uint8 or floats."""
        x = inputs.to(self.head.weight.dtype)
        if inputs.dtype == torch.uint8:
            x = x / LARGEST_BYTE
        return self.head(self.layers(x))[:, None]

    def _counted(self, x: Tensor) -> Tensor:
        """Features (1, n) of one input; counts products of weights and places."""

        def count(layer: nn.Module, _: object, y: Tensor) -> None:
            assert isinstance(layer.weight, Tensor)
            self._flops += layer.weight.numel() * y[0, 0].numel()

        counted = [layer for layer in self.layers.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        handles = [layer.register_forward_hook(count) for layer in counted]
        try:
            return self.layers(x)
        finally:
            for handle in handles:
                handle.remove()


class Residual(nn.Module):
    """Two 3 x 3 convolutions with group norm, added to what they read (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first, self.second = _convolution(inputs, outputs, stride), _convolution(outputs, outputs)
        self.first_norm, self.second_norm = (nn.GroupNorm(_NORM_GROUPS, outputs) for _ in range(2))
        is_same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of `x` (batch, inputs, rows, columns)."""
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def make_classifier(config: "ModelConfig", num_classes: int, seed: int) -> nn.Module:
    """Make a classifier, in a subspace that follows from `seed` where the configuration says so."""
    model = Classifier(config, num_classes)
    if not config.subspace:
        return model
    from harness.model.subspace import Subspace

    return Subspace(model, config.subspace, seed)


def classifier_problems(config: "ModelConfig") -> list[str]:
    """What is wrong with the settings of a classifier, a line each."""
    problems = []
    for key, count, example in (("inputs", 3, "1x28x28"), ("hidden", None, "300x100")):
        text, size = getattr(config, key), r"[1-9]\d{0,4}"
        if not re.fullmatch(rf"{size}(x{size}){{{count - 1 if count else '0,15'}}}", text):
            problems.append(f"model.{key}={text}: must look like {example}")
    if config.context != 1:
        problems.append(f"model.context={config.context}: a label is a sequence of one token; use 1")
    for key in ("smear", "overlap"):
        if number := getattr(config, key):
            problems.append(f"model.{key}={number}: is for transformers; use 0")
    least = _LEAST_PIXELS.get(config.architecture, 1)
    if not problems and min(config.input_shape[1:]) < least:
        problems.append(
            f"model.architecture={config.architecture}: needs inputs of {least}x{least} pixels or more, not "
            f"model.inputs={config.inputs}; use mlp or softmax"
        )
    return problems


def receiver_numbers(config: "ModelConfig", num_classes: int) -> tuple[int, int]:
    """Weights of a classifier, and a bound of the bytes that a label's input takes in all layers."""
    with torch.device("meta"):
        made = Classifier(config, num_classes)
    # Each layer has several weights an output, so that outputs are far fewer than products.
    return made.num_parameters, 4 * int(made.flops_per_token() / 6)


def made_up_inputs(rows: int, shape: tuple[int, ...]) -> Tensor:
    """Inputs (rows, channels, rows, columns), uint8, that are the same everywhere; fewer rows are the first of more."""
    size = shape[0] * shape[1] * shape[2]
    row, place = torch.arange(rows)[:, None], torch.arange(size)[None]
    return ((row * 29 + place * 37 + place * place // 5) % 256).to(torch.uint8).view(rows, *shape)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _softmax(_: "ModelConfig") -> nn.Sequential:
    return nn.Sequential(nn.Flatten())


def _mlp(config: "ModelConfig") -> nn.Sequential:
    channels, rows, columns = config.input_shape
    sizes = [channels * rows * columns, *config.hidden_units]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _lenet5(config: "ModelConfig") -> nn.Sequential:
    """LeNet-5 as in Caffe, with ReLU after convolutions too: 431,080 weights for 28 x 28 and ten classes."""
    channels, rows, columns = config.input_shape
    places = ((rows - 4) // 2 - 4) // 2 * (((columns - 4) // 2 - 4) // 2)
    return nn.Sequential(
        *(nn.Conv2d(channels, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(50 * places, 500), nn.ReLU()),
    )


def _vgg8(config: "ModelConfig") -> nn.Sequential:
    """Six 3 x 3 convolutions in three pairs, each pair followed by a pooling, and two linear layers."""
    layers: list[nn.Module] = []
    channels, rows, columns = config.input_shape
    for width in _VGG_WIDTHS:
        for inputs in (channels, width):
            layers += [_convolution(inputs, width), nn.GroupNorm(_NORM_GROUPS, width), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels, rows, columns = width, rows // 2, columns // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * rows * columns, _VGG_UNITS), nn.ReLU())


def _resnet18(config: "ModelConfig") -> nn.Sequential:
    """ResNet-18 for small images: no pooling before the blocks."""
    channels = _RESNET_WIDTHS[0]
    layers: list[nn.Module] = [_convolution(config.input_shape[0], channels), nn.GroupNorm(_NORM_GROUPS, channels)]
    layers.append(nn.ReLU())
    for index, width in enumerate(_RESNET_WIDTHS):
        layers += [Residual(channels, width, 2 if index else 1), Residual(width, width, 1)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


_LAYERS = {"softmax": _softmax, "mlp": _mlp, "lenet5": _lenet5, "vgg8": _vgg8, "resnet18": _resnet18}
