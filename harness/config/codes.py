"""What the offline evaluator and the online code do, and how."""

import math
import re
from dataclasses import dataclass, field

from harness.bounds import bound_problems, bounded

MAX_LANES = 4096
PREDICTORS = ("float", "portable")
DEVICES = ("auto", "cpu", "cuda")
# Tables of its positions are made by exact arithmetic, one after another.
MAX_PORTABLE_CHUNK = 1 << 16
EXPERTS = ("uniform", "frequencies", "ngram", "network")
MAX_MODELS = 16

_SHAPE = re.compile(r"[1-9]\d{0,5}x[1-9]\d{0,3}x[1-9]\d{0,3}")
_CLASSIFIER = re.compile(r"softmax|lenet5|vgg8|resnet18|mlp-[1-9]\d{0,4}(x[1-9]\d{0,4}){0,15}")


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Settings of the offline (two-part) code."""

    split: str = "heldout"
    """The text to code: `heldout`, `train`, or the path of any file."""
    chunk_bytes: int = bounded(512, least=1)
    """Bytes per chunk; chunks share no context. At most model.context."""
    lanes: int = bounded(64, least=1, most=MAX_LANES)
    """Chunks that one fixed-shape predictor block codes side by side."""
    max_cache_bytes: int = bounded(2_000_000_000, above=0)
    """Memory for keys and values; bounds the number of blocks that step together."""
    predictor: str = bounded("float", choices=PREDICTORS)
    """`float`: the archive decodes on processors that sum as this one does. `portable`: in integers, on every one."""
    device: str = bounded("auto", choices=DEVICES)
    """Who predicts: `cpu`, `cuda` (all GPUs), or `auto`: GPUs where there are some, and 20 M parameters or more."""
    ideal: bool = False
    """Write no file: weights are coded, the text counts as the sum of its ideal code lengths. For sweeps."""
    feedback_sequences: int = bounded(0, least=0)
    """Training sequences by whose inputs of layers weights are rounded with error feedback; 0: each to the nearest."""
    feedback_damping: float = bounded(0.01, above=0)
    """What feedback adds to the second moments of the inputs, in mean squares of an input."""
    feedback_order: str = bounded("natural", choices=("natural", "largest"))
    """Order in which feedback rounds the columns of a layer: `natural`, or those of the `largest` inputs first."""
    adaptive: bool = False
    """Also code the text in its order, with the same weights and an adaptive mixture: `offline/adaptive.cl`."""
    online: bool = False
    """Also write the online code of the training corpus as a file, and receive it; takes longer than training."""

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = bound_problems(self, "eval.")
        if self.predictor == "portable" and self.chunk_bytes > MAX_PORTABLE_CHUNK:
            limit = f"must be at most {MAX_PORTABLE_CHUNK} with eval.predictor=portable"
            problems.append(f"eval.chunk_bytes={self.chunk_bytes}: {limit}")
        return problems


@dataclass(kw_only=True, slots=True)
class OnlineConfig:
    """Settings of the online (prequential) code: who predicts, and the file."""

    experts: list[str] = field(default_factory=list)
    """Who predicts beside the transformer: `uniform`, `frequencies`, `ngram` and `network`, which mixes all of them.

    With any of them the code is a Bayesian mixture over all, which may switch from one to another at every symbol.
    """
    models: list[str] = field(default_factory=list)
    """More models that learn and predict: transformers as WIDTHxLAYERSxHEADS; classifiers by name, mlp-256x256 too."""
    ngram_order: int = bounded(6, least=1, most=6)
    """Longest context of `ngram`, in bytes; words and matches come with it."""
    ema: float = bounded(0.0, least=0, most=math.nextafter(1, 0), words="must be in [0, 1)")
    """Decay of the running mean of the weights, by step, that predicts in place of the weights; 0 is none."""
    calibrate: bool = False
    """Scale logits by a temperature that is learnt from new batches after they are coded."""
    checkpoints: int = bounded(1, least=1, most=256)
    """Self-switch: batches are coded with the best of so many states of the weights, the current one among them."""
    checkpoint_steps: int = bounded(16, least=1)
    """Steps between such states."""
    start: str = ""
    """Path of an archive whose weights both ends start from, not from random ones; the code holds and charges them."""
    start_rate_factor: float = bounded(0.1, least=0)
    """Factor on all learning rates of what starts from an archive."""
    segment_steps: int = bounded(64, least=1)
    """Optimizer steps between two digests of the weights. A stopped job goes on from one; each costs about 30 bytes."""

    @property
    def trains_plainly(self) -> bool:
        """Whether the code is the sum of the training losses: the weights predict, and nothing else."""
        return not (self.experts or self.models or self.ema or self.calibrate or self.checkpoints > 1)

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = bound_problems(self, "online.")
        for name in self.experts:
            if name not in EXPERTS:
                problems.append(f"online.experts={name}: unknown; use some of {', '.join(EXPERTS)}")
        if len(set(self.experts)) < len(self.experts):
            problems.append(f"online.experts={self.experts}: each can be named once")
        if "network" in self.experts and not (self.models or "ngram" in self.experts):
            problems.append("online.experts=network: has nothing to mix; name ngram too, or online.models")
        if len(self.models) > MAX_MODELS:
            problems.append(f"online.models: names {len(self.models)}; must be at most {MAX_MODELS}")
        for shape in self.models[:MAX_MODELS]:
            if not (_SHAPE.fullmatch(shape) or _CLASSIFIER.fullmatch(shape)):
                problems.append(
                    f"online.models={shape}: must look like 64x2x1 (WIDTHxLAYERSxHEADS), or like mlp-256x256"
                )
        return problems
