"""What a run of labels must and must not be set to."""

from typing import Any


def label_problems(config: Any) -> list[str]:
    """What is wrong with a run's configuration `config` that speaks of labels or of a classifier, a line each."""
    model, problems = config.model, []
    # A receiver is not told the corpus.
    if not (model.is_classifier and config.tokenizer.kind == "labels"):
        problems.append(
            f"corpus.kind={config.corpus.kind}, tokenizer.kind={config.tokenizer.kind}, model.architecture="
            f"{model.architecture}: use labels and a classifier together"
        )
    if config.backend.name != "ddp" or config.train.compile or config.train.activation_checkpointing:
        problems.append(
            "model.architecture: classifiers are trained by backend.name=ddp, without train.compile and "
            "train.activation_checkpointing"
        )
    if config.online.start:
        problems.append(f"online.start={config.online.start}: is for transformers; leave it out")
    if config.prune.is_by_layer:
        problems.append(f"prune.kind={config.prune.kind}: is for transformers; use prune.kind=tamade")
    if "ngram" in config.online.experts:
        problems.append("online.experts=ngram: predicts text from what is before it; leave it out for labels")
    for shape in [] if config.online.problems() else config.online.models:
        if shape[0].isdigit() == model.is_classifier:
            problems.append(f"online.models={shape}: no other model of the same kind as model.architecture")
    return problems
