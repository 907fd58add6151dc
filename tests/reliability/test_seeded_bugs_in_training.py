"""Deliberate mistakes in the training room, each put into its source, and each caught by a check."""

from functools import partial

import pytest
import runs
from seeded import assert_caught, to_run

from gptmini.data import batching
from gptmini.training import loss, metrics, optim, resume, runtime, trainer

pytestmark = [
    pytest.mark.skipif("not hasattr(__import__('os'), 'pidfd_open')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

resumes = partial(runs.check_resume_from_every_step, steps=6)
resumes_past_the_best = partial(
    runs.check_resume_from_every_step,
    steps=6,
    sections={  # so high a rate that it gets worse
        "optim": {"optimizer": "adamw", "lr": 3.0, "warmup_steps": 0, "schedule": "constant"},
        "train": {"eval_interval": 1},
    },
)
signals = partial(runs.check_signal_at_every_line, stride=1)
power_loss = partial(runs.check_power_loss_of_runs, stride=1)

SLOW = [signals, power_loss, runs.check_intervals]

BUGS = [
    (
        "the batches are counted from the start of the process",
        resumes,
        trainer,
        "self.windows.starts(self.step - 1, ",
        'self.windows.starts(self.step - self.__dict__.setdefault("began", self.step), ',
    ),
    (
        "the batch is that of the next step",
        runs.check_divergence,
        trainer,
        "self.windows.starts(self.step - 1, ",
        "self.windows.starts(self.step, ",
    ),
    (
        "a resumed run takes its last step again",
        resumes,
        trainer,
        "self.step = state.step\n",
        "self.step = state.step - 1\n",
    ),
    (
        "the order of the data is drawn anew by each process",
        resumes,
        batching,
        "self.tokens, self.context_length, self.seed = tokens, context_length, seed",
        "self.tokens, self.context_length = tokens, context_length\n"
        '        self.seed = int.from_bytes(__import__("os").urandom(4), "little")',
    ),
    (
        "evaluation moves the training data on",
        runs.check_intervals,
        trainer,
        "        batches = validation_batches(",
        "        self.windows.seed += 1\n        batches = validation_batches(",
    ),
    (
        "evaluation leaves the model without dropout",
        runs.check_intervals,
        loss,
        "    model.train(training)\n",
        "",
    ),
    (
        "sampling leaves a gradient behind",
        runs.check_intervals,
        trainer,
        "        metrics.sample(self.step, text)\n",
        "        for parameter in self.model.parameters():\n"
        "            parameter.grad = torch.ones_like(parameter)\n"
        "        metrics.sample(self.step, text)\n",
    ),
    (
        "dropout is seeded once and not at each step",
        resumes,
        runtime,
        "    digest = hashlib.blake2b(repr(key)",
        "    if key[1:] != (1, 0):\n        return\n    digest = hashlib.blake2b(repr(key)",
    ),
    (
        "the optimizer's state is dropped at a resume",
        resumes,
        resume,
        "        load_optimizer_tensors(model, optimizers, checkpoint.optimizer)\n",
        "        pass\n",
    ),
    (
        "the optimizer's step counts are dropped at a resume",
        resumes,
        optim,
        "put_whole(initial, value)",
        'put_whole(initial, value * (0 if quantity == "step" else 1))',
    ),
    (
        "the learning rate warms up again at a resume",
        resumes,
        trainer,
        "learning_rate_factor(self.config.optim, self.step, ",
        "learning_rate_factor(self.config.optim, "
        'self.step - self.__dict__.setdefault("before", self.step - 1), ',
    ),
    (
        "the peak of the learning rate is taken from the rate of the moment",
        resumes,
        optim,
        'group["lr"] = factor * group["peak_lr"]',
        'group["lr"] = factor * group["lr"]',
    ),
    (
        "the best loss is forgotten at a resume",
        resumes,
        trainer,
        "        self.best_val_loss, self.best_step = state.best_val_loss, state.best_step\n",
        "",
    ),
    (
        "a resume starts the patience anew",
        resumes_past_the_best,
        trainer,
        "        self.evaluations_since_best = state.evaluations_since_best\n",
        "",
    ),
    (
        "the validation loss of an earlier step is saved",
        resumes,
        trainer,
        "            self.val_loss = None  # the step changes the weights\n",
        "",
    ),
    (
        "lines of metrics past the resumed step are kept",
        resumes,
        metrics,
        "_step_of(line) <= first_step",
        "True",
    ),
    (
        "the line of the resumed step is dropped",
        resumes,
        metrics,
        "_step_of(line) <= first_step",
        "_step_of(line) < first_step",
    ),
    (
        "lines of metrics are not synced before a checkpoint",
        power_loss,
        trainer,
        "        metrics.sync()\n",
        "",
    ),
    (
        "what is not finite is noticed after the update",
        runs.check_divergence,
        trainer,
        "            self.stop_if_diverged()\n"
        "        for optimizer in self.optimizers:\n"
        "            self.scaler.step(optimizer, failed)  # type: ignore[arg-type]  # it calls step only\n",
        "            pass\n"
        "        for optimizer in self.optimizers:\n"
        "            self.scaler.step(optimizer, failed)\n"
        "        self.stop_if_diverged()\n",
    ),
    (
        "only the loss is looked at, not the gradient",
        runs.check_divergence,
        trainer,
        "finite = loss.isfinite() & (norm.isfinite() | self.scaler.is_enabled())",
        "finite = loss.isfinite()",
    ),
    (
        "weights that are not finite are saved",
        runs.check_divergence,
        trainer,
        "        self.stop_if_weights_diverged()\n        metrics.sync()",
        "        metrics.sync()",
    ),
    ("a signal is ignored", signals, runtime, "        self.received = number\n", ""),
    ("nothing is saved at a signal", signals, trainer, "is_best or stopping or", "is_best or"),
    (
        "a signal during the save ends the run before the next",
        signals,
        trainer,
        "            if stopping and not self.finished():",
        "            if stop and not self.finished():",
    ),
    (
        "a second signal waits too",
        signals,
        runtime,
        "            os._exit(128 + number)\n",
        "            pass\n",
    ),
    (
        "the run folder is locked only to look into it",
        runs.check_locked_run,
        resume,
        "        return store.lock()\n",
        "        with store.lock():\n"
        "            from contextlib import nullcontext\n\n"
        "            return nullcontext()\n",
    ),
    (
        "another text is resumed with",
        runs.check_changes,
        resume,
        "    if data.digest != saved.data_digest:\n",
        "    if False:\n",
    ),
    (
        "another shape of the model is resumed with",
        runs.check_changes,
        resume,
        '    for key in [*fixed, "optim.optimizer"]:\n',
        '    for key in ["optim.optimizer"]:\n',
    ),
    (
        "a change of precision is passed over",
        runs.check_changes,
        resume,
        "        if before.get(key) != value\n",
        "        if False\n",
    ),
]


def pytest_generate_tests(metafunc):
    bugs = to_run(BUGS, SLOW, metafunc.config.getoption("--long"))
    metafunc.parametrize("bug", bugs, ids=[bug[0] for bug in bugs])


def test_the_checks_catch(bug, tmp_path):
    assert_caught(bug, tmp_path)
