"""How far a run has come: the counters that are neither weights nor optimizer state."""

from dataclasses import dataclass

from gptmini.config import TrainConfig


@dataclass
class Progress:
    """What training/state.json keeps of a run, under the same names."""

    step: int = 0  # optimizer steps taken
    tokens: int = 0  # trained on in these steps, each with the batch size of its time
    val_loss: float | None = None  # of the weights as they are now; None: not evaluated
    best_val_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0

    def next_step(self, tokens: int) -> None:
        """Count a step on so many tokens, which changes the weights and so outdates their loss."""
        self.step += 1
        self.tokens += tokens
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
