"""Options that a range test has no use for: it sets the rate, lasts some hundred steps and keeps nothing."""

IDLE = frozenset({
    "epochs", "max_steps", "lr", "head_lr", "schedule", "warmup", "unfreeze", "average", "ema_decay", "swa_start",
    "average_every", "metric", "patience", "select_best", "evals_per_epoch", "evaluate_test", "checkpoint_minutes",
    "checkpoint_steps", "measure_precision",
})  # fmt: skip
