"""The configuration of a run: structured defaults -> YAML files -> command line -> one checked object."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from harness.backends.base import BackendConfig
from harness.config.codes import EvalConfig, OnlineConfig
from harness.config.pruning import PruneConfig
from harness.config.settings import leaves, name_problems, resolved
from harness.corpus.config import CorpusConfig
from harness.data.schedule import TrainConfig
from harness.data.tokenizer import TokenizerConfig
from harness.model.transformer import ModelConfig
from harness.optim.optimizer import OptimizerConfig
from harness.optim.stopping import StoppingConfig
from harness.rules.config import RuleConfig

# Keys, or sections with their dot, that decide no bit of what training computes: they may change in its middle.
FREE_KEYS = (
    "name",
    "runs_dir",
    "data_dir",
    "dry_run",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.on_damage",
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
        problems = []
        problems.extend(name_problems(self.name))
        problems.extend(
            f"{key}=: empty; name a directory" for key in ("runs_dir", "data_dir") if not getattr(self, key).strip()
        )
        sections = (self.corpus, self.tokenizer, self.model, self.train, self.optimizer, self.rule, self.prune)
        for section in (*sections, self.stopping, self.backend, self.eval, self.online):
            problems.extend(section.problems())
        if self.backend.zero_stage and self.optimizer.kind == "muon" and self.optimizer.clip_norm is not None:
            problems.append(
                f"optimizer.clip_norm={self.optimizer.clip_norm}: with Muon, ZeRO would clip the orthogonalised "
                "update; use optimizer.clip_norm=null or optimizer.kind=adamw"
            )
        if self.train.compile and self.backend.name != "ddp":
            problems.append(
                f"train.compile=true: backend.name={self.backend.name} runs uncompiled; use backend.name=ddp"
            )
        if self.backend.bf16_weights and self.train.precision == "fp32":
            problems.append("backend.bf16_weights=true: contradicts train.precision=fp32; use bf16 or auto")
        if self.prune.prunings > 1 and self.train.finetune_epochs == 0:
            problems.append(
                f"prune.rounds={self.prune.rounds}: fine-tuning is what alternates with pruning; use "
                "train.finetune_epochs > 0 or prune.rounds=1"
            )
        problems.extend(self._online_problems())
        problems.extend(self.train.sequence_problems(self.model.context, self.model.overlap))
        if self.train.reads_parts:
            from harness.data.parts import part_problems

            problems.extend(part_problems(self.train, self.corpus.part_names))
        if not self.model.is_classifier and (self.model.context < 1 or self.eval.chunk_bytes > self.model.context):
            problems.append(
                f"eval.chunk_bytes={self.eval.chunk_bytes}: must not exceed model.context ({self.model.context}), "
                "since a chunk of bytes can be as many tokens"
            )
        if self.model.subspace and not self.model.is_classifier:
            problems.extend(self._subspace_problems())
        if self.rule.kind == "variational":
            problems.extend(self._variational_problems())
        elif self.rule.kind != "none" and self.rule.coupling == "adam" and self.optimizer.kind == "muon":
            problems.append(
                "rule.coupling=adam: Muon orthogonalises whole matrices; use rule.coupling=decoupled or "
                "optimizer.kind=adamw"
            )
        acts = self.rule.kind != "none" or self.prune.kind != "none"
        if acts and self.model.architecture == "modern" and self.rule.tensors == ["vectors"]:
            problems.append("rule.tensors=['vectors']: a modern model has none; name matrices, embedding or head")
        elif self.prune.is_by_layer and not {"matrices", "head"} & set(self.rule.tensors):
            problems.append(
                f"rule.tensors={self.rule.tensors}: prune.kind={self.prune.kind} prunes linear layers; add matrices or "
                "head"
            )
        return problems

    def _subspace_problems(self) -> list[str]:
        """What a transformer in a subspace has no way for: its code is measured by `codelength labels` alone."""
        needed = {
            "backend.name": (self.backend.name, "ddp"),
            "prune.kind": (self.prune.kind, "none"),
            "train.finetune_epochs": (self.train.finetune_epochs, 0),
            "train.compile": (self.train.compile, False),
            "train.activation_checkpointing": (self.train.activation_checkpointing, False),
        }
        problems = [
            f"{key}={value}: not with model.subspace of a transformer; use {key}={str(wanted).lower()}"
            for key, (value, wanted) in needed.items()
            if value != wanted
        ]
        if not self.online.trains_plainly or self.online.start or self.train.retrain_at:
            problems.append(f"model.subspace={self.model.subspace}: trains a transformer plainly; leave out online.*")
        return problems

    def _variational_problems(self) -> list[str]:
        """What cannot stand beside a Gaussian over every weight."""
        needed = {
            "backend.name": (self.backend.name, "ddp"),
            "optimizer.kind": (self.optimizer.kind, "adamw"),
            "prune.kind": (self.prune.kind, "none"),
            "train.finetune_epochs": (self.train.finetune_epochs, 0),
            "optimizer.weight_decay": (self.optimizer.weight_decay, 0),
        }
        return [
            f"{key}={value}: rule.kind=variational trains a Gaussian over every weight by itself; use {key}={wanted}"
            for key, (value, wanted) in needed.items()
            if value != wanted
        ]

    def _online_problems(self) -> list[str]:
        problems = []
        if self.model.is_classifier or "labels" in (self.corpus.kind, self.tokenizer.kind):
            # Texts need none of it.
            from harness.labels.problems import label_problems

            problems.extend(label_problems(self))
        if "ngram" in self.online.experts and self.tokenizer.kind == "sentencepiece":
            problems.append(
                f"online.experts=ngram: predicts bytes; use tokenizer.kind=bytes, not {self.tokenizer.kind}"
            )
        if self.online.models and self.backend.name != "ddp":
            problems.append(f"online.models={self.online.models}: needs backend.name=ddp")
        if self.online.models and not self.online.problems():
            for shape, model in zip(self.online.models, self.expert_models()[1:], strict=True):
                problems.extend(f"online.models={shape}: {problem}" for problem in model.problems())
        return problems

    def expert_models(self) -> list[ModelConfig]:
        """Shapes of all models that predict, the one that is trained for itself first."""
        return [self.model, *(self._expert_model(shape) for shape in self.online.models)]

    def _expert_model(self, shape: str) -> ModelConfig:
        name, _, hidden = shape.partition("-")
        if not shape[0].isdigit():
            return replace(self.model, architecture=name, hidden=hidden or self.model.hidden, subspace=0)
        width, layers, heads = (int(number) for number in shape.split("x"))
        architecture = "modern" if self.model.is_classifier else self.model.architecture
        return replace(self.model, architecture=architecture, width=width, layers=layers, heads=heads)


def load_config(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file and `key=value` overrides; see `load_settings`.

    Raises UsageError with one line per problem.
    """
    from harness.config.written import load_settings

    return load_settings(RunConfig, path, overrides)


def config_from(settings: dict[str, object]) -> RunConfig:
    """Inverse of `settings_of`.

    Raises UsageError with one line per problem.
    """
    return resolved(list(settings.items()), [], RunConfig)


def settings_of(config: RunConfig) -> dict[str, object]:
    """Dotted keys and values of all that differs from the defaults."""
    default = dict(_leaves_of(RunConfig()))
    return {key: value for key, value in _leaves_of(config) if value != default[key]}


def dump_config(config: object) -> str:
    """The resolved configuration as YAML: what `load_settings` reads back to an equal object."""
    from omegaconf import OmegaConf

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
    return leaves(asdict(config))
