"""The configuration of a run: structured defaults -> YAML files -> command line -> one checked object."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eval.config import EvalConfig, OnlineConfig
from harness.backends.base import BackendConfig
from harness.bounds import number_problems
from harness.convergence import StoppingConfig
from harness.corpus import CorpusConfig
from harness.errors import UsageError
from harness.model import ModelConfig
from harness.optimizer import OptimizerConfig
from harness.schedule import TrainConfig
from harness.sparsity.prune import PruneConfig
from harness.sparsity.rules import RuleConfig
from harness.tokenizer import TokenizerConfig

MAX_INCLUDE_DEPTH = 8
T = TypeVar("T")
# Keys, or sections with their dot, that decide no bit of what training computes: they may change in its middle.
FREE_KEYS = (
    "name",
    "runs_dir",
    "data_dir",
    "dry_run",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "backend.timeout_seconds",
    # The device itself is part of a run's identity.
    "backend.device",
    "eval.",
    "online.segment_steps",
)


@dataclass(kw_only=True)
class RunConfig:
    """Everything that determines a run; each section lives beside the code that it configures."""

    name: str = "run"
    """Name of the run: its directory is `runs_dir`/`name`."""
    runs_dir: str = "runs"
    """Directory of all runs."""
    data_dir: str = "data"
    """Directory of prepared shards and tokenizers."""
    seed: int = 0
    """Seed of weights and order."""
    dry_run: bool = False
    """Print the derived numbers, try one step, and stop without a run directory."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    rule: RuleConfig = field(default_factory=RuleConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)

    @property
    def run_dir(self) -> Path:
        """Where everything about this run lies."""
        return Path(self.runs_dir) / self.name

    def problems(self) -> list[str]:
        """Every bad value of every section, a line each."""
        found = []
        if not self.name or Path(self.name).name != self.name:
            found.append(f"name={self.name}: must be a plain directory name")
        sections = (self.corpus, self.tokenizer, self.model, self.train, self.optimizer, self.rule, self.prune)
        for section in (*sections, self.stopping, self.backend, self.eval, self.online):
            found.extend(section.problems())
        if self.backend.zero_stage and self.optimizer.kind == "muon" and self.optimizer.clip_norm is not None:
            found.append(
                f"optimizer.clip_norm={self.optimizer.clip_norm}: with Muon, ZeRO would clip the orthogonalised "
                "update; use optimizer.clip_norm=null or optimizer.kind=adamw"
            )
        if self.train.compile and self.backend.name != "ddp":
            found.append(f"train.compile=true: backend.name={self.backend.name} runs uncompiled; use backend.name=ddp")
        if self.backend.bf16_weights and self.train.precision == "fp32":
            found.append("backend.bf16_weights=true: contradicts train.precision=fp32; use bf16 or auto")
        if self.prune.prunings > 1 and self.train.finetune_epochs == 0:
            found.append(
                f"prune.rounds={self.prune.rounds}: fine-tuning is what alternates with pruning; use "
                "train.finetune_epochs > 0 or prune.rounds=1"
            )
        found.extend(self._online_problems())
        if self.model.context < 1 or self.eval.chunk_bytes > self.model.context:
            found.append(
                f"eval.chunk_bytes={self.eval.chunk_bytes}: must not exceed model.context ({self.model.context}), "
                "since a chunk of bytes can be as many tokens"
            )
        if self.rule.kind != "none" and self.rule.coupling == "adam" and self.optimizer.kind == "muon":
            found.append(
                "rule.coupling=adam: Muon orthogonalises whole matrices; use rule.coupling=decoupled or "
                "optimizer.kind=adamw"
            )
        acts = self.rule.kind != "none" or self.prune.kind != "none"
        if acts and self.model.architecture == "modern" and self.rule.tensors == ["vectors"]:
            found.append("rule.tensors=['vectors']: a modern model has none; name matrices, embedding or head")
        elif self.prune.kind == "layerwise" and not {"matrices", "head"} & set(self.rule.tensors):
            found.append(
                f"rule.tensors={self.rule.tensors}: prune.kind=layerwise prunes linear layers; add matrices or head"
            )
        return found

    def _online_problems(self) -> list[str]:
        found = []
        if "ngram" in self.online.experts and self.tokenizer.kind != "bytes":
            found.append(f"online.experts=ngram: predicts bytes; use tokenizer.kind=bytes, not {self.tokenizer.kind}")
        if self.online.models and self.backend.name != "ddp":
            found.append(f"online.models={self.online.models}: needs backend.name=ddp")
        if self.online.models and not self.online.problems():
            for shape, model in zip(self.online.models, self.expert_models()[1:], strict=True):
                found.extend(f"online.models={shape}: {problem}" for problem in model.problems())
        return found

    def expert_models(self) -> list[ModelConfig]:
        """Shapes of all transformers that predict, the one that is trained for itself first."""
        shapes = [[int(number) for number in shape.split("x")] for shape in self.online.models]
        others = [replace(self.model, width=width, layers=layers, heads=heads) for width, layers, heads in shapes]
        return [self.model, *others]


def load_config(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file and `key=value` overrides.

    A top-level `include:` lists other files, relative to the file, that are read before it.

    Raises UsageError with one line per problem: unknown keys, wrong types and bad values of all sections together.
    """
    return load_settings(RunConfig, path, overrides)


def load_settings(kind: type[T], path: Path | str | None, overrides: list[str] | tuple[str, ...]) -> T:
    """`load_config` for any dataclass with `problems()`; without a file its defaults count."""
    problems: list[str] = []
    layers = [*(_read_layers(Path(path)) if path else []), *(_parse_override(text, problems) for text in overrides)]
    return _resolve([leaf for layer in layers for leaf in leaves(layer)], problems, kind)


def config_from(settings: dict[str, object]) -> RunConfig:
    """Inverse of `settings_of`.

    Raises UsageError with one line per problem.
    """
    return _resolve(list(settings.items()), [], RunConfig)


def settings_of(config: RunConfig) -> dict[str, object]:
    """Dotted keys and values of all that differs from the defaults."""
    default = dict(_leaves_of(RunConfig()))
    return {key: value for key, value in _leaves_of(config) if value != default[key]}


def _resolve(settings: list[tuple[str, object]], problems: list[str], kind: type[T]) -> T:
    """Defaults with `settings` one after another; `problems` are those found before."""
    merged = OmegaConf.structured(kind)
    for dotted, value in settings:
        try:
            OmegaConf.update(merged, dotted, value)
        except (OmegaConfBaseException, TypeError, OverflowError) as error:
            problems.append(f"{dotted}={value}: {_reason(error, dotted, kind)}")
    config = OmegaConf.to_object(merged)
    own = config.problems()
    problems.extend(own)
    # Sections bound what has a reason of its own; all other numbers are bounded here.
    named = {problem.partition("=")[0] for problem in own}
    problems.extend(text for text in number_problems(config) if text.partition("=")[0] not in named)
    if problems:
        raise UsageError("\n".join(problems))
    return config


def dump_config(config: object) -> str:
    """The resolved configuration as YAML: what `load_config` reads back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def config_sha256(config: RunConfig) -> str:
    """Digest of the resolved configuration."""
    return hashlib.sha256(dump_config(config).encode()).hexdigest()


def training_sha256(config: RunConfig) -> str:
    """Digest of what decides the bits of training."""
    return hashlib.sha256(json.dumps(_deciding(config)).encode()).hexdigest()


def decides_training(key: str) -> bool:
    """Whether a dotted key decides bits of what training computes."""
    return not any(key == free or (key.startswith(free) and free[-1] == ".") for free in FREE_KEYS)


def changed_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines `key: old -> new` for every leaf that differs and decides the bits of training."""
    before, after = _deciding(old), _deciding(new)
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def _deciding(config: RunConfig) -> dict[str, object]:
    return {key: value for key, value in _leaves_of(config) if decides_training(key)}


def _leaves_of(config: RunConfig) -> list[tuple[str, object]]:
    return leaves(OmegaConf.to_container(OmegaConf.structured(config)))


def read_yaml(path: Path, what: str, content_words: str, remedy: str) -> dict:
    """The mapping in a YAML file; `what` the file is and `content_words` what it holds go into the errors.

    Raises UsageError where it is missing, not YAML or not a mapping.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such {what}; {remedy}") from None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:160]})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must be a YAML mapping of {content_words}; {remedy}")
    return content


def _read_layers(path: Path, depth: int = 0) -> list[dict]:
    if depth > MAX_INCLUDE_DEPTH:
        raise UsageError(f"{path}: includes are nested deeper than {MAX_INCLUDE_DEPTH}; does a file include itself?")
    content = read_yaml(path, "configuration file", "sections", "see configs/ for examples")
    includes = content.pop("include", [])
    includes = [includes] if isinstance(includes, str) else includes
    return [layer for name in includes for layer in _read_layers(path.parent / name, depth + 1)] + [content]


def _parse_override(text: str, problems: list[str]) -> dict:
    key, equals, _ = text.partition("=")
    if not equals or not key:
        problems.append(f"{text}: an override must look like key=value, for example train.epochs=2")
        return {}
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        problems.append(f"{text}: not readable ({' '.join(str(error).split())[:120]})")
        return {}


def leaves(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    """Dotted keys of a tree of mappings with what is not a mapping itself."""
    found = []
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        found.extend(leaves(value, f"{dotted}.") if isinstance(value, dict) else [(dotted, value)])
    return found


def _reason(error: Exception, dotted: str, kind: type) -> str:
    text = str(error).splitlines()[0]
    if "not in" in text:
        known = OmegaConf.structured(kind)
        for part in dotted.split(".")[:-1]:
            if part not in known or not OmegaConf.is_dict(known[part]):
                break
            known = known[part]
        return f"unknown key; known here: {', '.join(known)}"
    return text
