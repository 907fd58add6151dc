"""train.micro_batch_size: auto. Halve it until a step fits into memory; what is trained stays the same."""

import gc

import torch

from gptmini.config import Config, load_config
from gptmini.errors import OutOfMemoryError, UserError
from gptmini.memory import explain_shortage
from gptmini.training.estimate import LOWER_MODEL, fitting_micro_batch_size, halves
from gptmini.training.loss import next_token_loss
from gptmini.training.trainer import Trainer


def fit_micro_batch_size(trainer: Trainer, *, resume: bool = False) -> Config:
    """Resolve `auto` in the trainer's config, which is returned; a resumed run keeps the size that it has.

    The ranks agree on one size. Raises OutOfMemoryError where not even one sequence fits.
    """
    config, distributed = trainer.config, trainer.distributed
    if config.train.micro_batch_size != "auto":
        return config
    if distributed.sharded:  # a rank out of memory would leave the others waiting for its shard
        raise UserError(
            "train.micro_batch_size = auto does not go with runtime.parallel = fsdp; give a number"
        )

    # The same size gives the same bits, so a resume does not measure again.
    share, file = trainer.micro_batch_size, trainer.store.run_folder / "config.yaml"
    saved = load_config(file).train.micro_batch_size if resume and file.is_file() else None
    size = int(distributed.broadcast_text(str(saved or 0)))
    if size and share % size == 0:  # a larger or smaller share may have another
        return _set(trainer, size)

    # On a CPU the estimate comes first: Linux grants memory that is not there, and kills who uses it.
    ranks = distributed.world_size, distributed.local_world_size
    most = share
    if trainer.runtime.device.type == "cpu":
        most = fitting_micro_batch_size(config, trainer.model.config, trainer.runtime.precision, *ranks)
    for size in halves(share):
        fits = size <= most and _try_step(trainer, size)
        if not distributed.all_reduce_max(int(not fits)):  # on every rank
            return _set(trainer, size)
    raise OutOfMemoryError(f"out of memory with one sequence per forward pass: {LOWER_MODEL}")


def _set(trainer: Trainer, size: int) -> Config:
    train = trainer.config.train.model_copy(update={"micro_batch_size": size})
    trainer.micro_batch_size, trainer.config = size, trainer.config.model_copy(update={"train": train})
    return trainer.config


def _try_step(trainer: Trainer, size: int) -> bool:
    """Whether the memory suffices for two micro batches and an update, which changes nothing."""
    length, device = trainer.config.model.context_length, trainer.runtime.device
    logits, fits = None, True
    try:
        with explain_shortage(""):
            tokens = torch.zeros(size, length, dtype=torch.int64, device=device)
            for _ in range(2):  # the second one's forward pass begins beside the first one's logits
                with trainer.runtime.autocast():
                    logits = trainer.model.forward(tokens)  # not compiled, and without other ranks
                next_token_loss(logits, tokens).backward()  # type: ignore[no-untyped-call]  # torch has no types here
            for optimizer in trainer.optimizers:
                optimizer.step(skip=torch.ones((), dtype=torch.bool, device=device))
    except OutOfMemoryError:
        fits = False
    logits = None
    trainer.model.zero_grad()
    for optimizer in trainer.optimizers:
        optimizer.state.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return fits
