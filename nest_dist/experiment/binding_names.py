"""Names of bindings: those like a given one, and those of earlier versions."""

import difflib

from nest_dist.config import listing, shipped


def bindings_like(name: str) -> list[str]:
    """At most three bindings whose field has this name, or one that is similar or contains it.

    Those of what `gin/run.gin` takes come first.
    """
    taken = (shipped.folder() / "run.gin").read_text(encoding="utf-8")
    fields = {
        f"{each.name}.{parameter.name}": parameter.name
        for each in sorted(listing.configurables(), key=lambda it: f"@{it.name}()" not in taken)
        for parameter in each.parameters
    }
    same = [binding for binding, field in fields.items() if field == name]
    within = [binding for binding, field in fields.items() if name in field]
    near = difflib.get_close_matches(name, fields.values(), cutoff=0.75)
    similar = [binding for binding, field in fields.items() if field in near]
    return (same or within or similar)[:3]


# Names of earlier versions, each with its successor; "" if it has none.
RENAMED = {
    "Run.training_data": "Run.data",
    "Run.evaluation_data": "Evaluation.data",
    "Run.evaluate_every_epochs": "Evaluation.every_epochs",
    "Run.pixels": "Inputs.normalize",
    "Run.color_jitter": "Inputs.color_jitter",
    "Run.random_erasing": "Inputs.random_erasing",
    "Run.mixing": "Inputs.mixing",
    "Run.label_smoothing": "Classification.label_smoothing",
    "Run.optimizer": "Step.optimizer",
    "Run.microbatches": "Step.microbatches",
    "Run.reproducible_reduction": "Step.reproducible_reduction",
    "Run.reduction_shards": "Step.reduction_shards",
    "Run.ema_decay": "Step.ema_decay",
    "Run.not_finite": "Step.nonfinite",
    "Run.save_every_epochs": "Cadence.save_every_epochs",
    "Run.log_every_steps": "Cadence.log_every_steps",
    "Run.histograms_every_steps": "Cadence.histograms_every_steps",
    "Run.profile_first_step": "Cadence.profile_first_step",
    "Run.profile_num_steps": "Cadence.profile_num_steps",
    "Run.stuck_seconds": "Watch.stuck_seconds",
    "Run.keep": "Run.checkpoints",
    "AdamW.warmup_epochs": "Cosine.warmup_epochs",
    "AdamW.final_learning_rate": "Cosine.final_learning_rate",
    "Pixels": "Normalize",
    "Pixels.standard_deviation": "Normalize.std",
    "Keep": "Retention",
    "NotFinite": "NonFinite",
    "TrainingData.unreadable_share": "TrainingData.max_corrupt_fraction",
    "EvaluationData.unreadable_share": "EvaluationData.max_corrupt_fraction",
    "Rules.layers": "",
    "HuggingFace": "Parquet",
    "Parquet.dataset": "Parquet.files",
    "Parquet.subset": "Parquet.files",
    "Parquet.revision": "Parquet.files",
    "Parquet.block": "Parquet.window",
}

# Likewise, files and modules.
MOVED = {
    "data/huggingface.gin": "data/parquet.gin",
    "nest_dist.data.sources.huggingface": "nest_dist.data.sources.parquet",
}

ALL = RENAMED | MOVED
