"""How far a run has come: the counters that are neither weights nor optimizer state."""

from dataclasses import dataclass
from pathlib import Path

from gptmini.config import TrainConfig


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. Losses are of the validation split, in nats per token; None if never evaluated."""

    run_dir: Path
    best_step: int | None
    best_val_loss: float | None
    val_loss: float | None  # of the last step
    step: int  # optimizer steps taken, those before a resume included

    def __str__(self) -> str:
        loss = "none yet"
        if self.best_val_loss is not None:
            loss = f"{self.best_val_loss:.4f} at step {self.best_step}"
        return f"finished after step {self.step}; best validation loss {loss}; saved in {self.run_dir}"


@dataclass
class Progress:
    """What training/state.json keeps of a run, under the same names."""

    step: int = 0  # optimizer steps taken
    val_loss: float | None = None  # of the weights as they are now; None: not evaluated
    best_val_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0

    def next_step(self) -> None:
        """Count a step, which changes the weights and so outdates their loss."""
        self.step += 1
        self.val_loss = None

    def record_evaluation(self, val_loss: float) -> bool:
        """Take the loss of this step's weights into account; returns whether it is the best so far."""
        self.val_loss = val_loss
        is_best = self.best_val_loss is None or val_loss < self.best_val_loss
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        if is_best:
            self.best_val_loss, self.best_step = val_loss, self.step
        return is_best

    def is_finished(self, config: TrainConfig) -> bool:
        """Whether all steps are taken, or too many evaluations have brought no new best."""
        patience = config.early_stop_patience
        out_of_patience = patience is not None and self.evaluations_since_best >= patience
        return out_of_patience or self.step >= config.max_steps

    def result(self, run_dir: Path) -> TrainResult:
        """What `train` returns for a run that ends like this."""
        return TrainResult(run_dir, self.best_step, self.best_val_loss, self.val_loss, self.step)
