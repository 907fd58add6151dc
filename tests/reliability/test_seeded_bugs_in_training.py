"""Deliberate mistakes in training/, each put into its source, and each caught by a check."""

from functools import partial

import pytest
import runs
from seeded import assert_caught, to_run

from gptmini.data import batching
from gptmini.training import log_files, loss, nonfinite, optim, progress, resume, runtime, signals, trainer

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
signal_at_each_line = partial(runs.check_signal_at_every_line, stride=1)
power_loss = partial(runs.check_power_loss_of_runs, stride=1)

SLOW = [signal_at_each_line, power_loss, runs.check_intervals]

BUGS = [
    (
        "the batches are counted from the start of the process",
        resumes,
        trainer,
        "self.windows.starts(step - 1, ",
        'self.windows.starts(step - self.__dict__.setdefault("began", step), ',
    ),
    (
        "the batch is that of the next step",
        runs.check_divergence,
        trainer,
        "self.windows.starts(step - 1, ",
        "self.windows.starts(step, ",
    ),
    (
        "a resumed run takes its last step again",
        resumes,
        resume,
        "    difference = check_resumable(",
        '    saved = saved.model_copy(update={"step": saved.step - 1})\n    difference = check_resumable(',
    ),
    (
        "the order of the data is another one in each process",
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
        "    with eval_mode(model.modules()):\n",
        "    model.eval()\n    if True:\n",
    ),
    (
        "sampling leaves a gradient behind",
        runs.check_intervals,
        trainer,
        "        metrics.log_sample(step, text)\n",
        "        for parameter in self.model.parameters():\n"
        "            parameter.grad = torch.ones_like(parameter)\n"
        "        metrics.log_sample(step, text)\n",
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
        "load_optimizer_tensors(state.model, state.optimizers, checkpoint.optimizer)",
        "pass",
    ),
    (
        "the optimizer's step counts are dropped at a resume",
        resumes,
        optim,
        "copy_full_(initial, value)",
        'copy_full_(initial, value * (0 if quantity == "step" else 1))',
    ),
    (
        "the learning rate warms up again at a resume",
        resumes,
        trainer,
        "learning_rate_factor(self.config.optim, progress.step, ",
        "learning_rate_factor(self.config.optim, "
        'progress.step - self.__dict__.setdefault("before", progress.step - 1), ',
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
        resume,
        "for name in asdict(state.progress):",
        'for name in ("step", "val_loss", "evaluations_since_best"):',
    ),
    (
        "a resume starts the patience anew",
        resumes_past_the_best,
        resume,
        "for name in asdict(state.progress):",
        'for name in ("step", "val_loss", "best_val_loss", "best_step"):',
    ),
    (
        "the validation loss of an earlier step is saved",
        resumes,
        progress,
        "        self.val_loss = None\n",
        "",
    ),
    (
        "lines of metrics past the resumed step are kept",
        resumes,
        log_files,
        """ and values["step"] <= last_step""",
        "",
    ),
    (
        "the line of the resumed step is dropped",
        resumes,
        log_files,
        """values["step"] <= last_step""",
        """values["step"] < last_step""",
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
        "        skip = self.latch.check_step(step, loss, grad_norm)\n",
        "        skip = torch.tensor(False)\n",
    ),
    (
        "only the loss is looked at, not the gradient",
        runs.check_divergence,
        nonfinite,
        "finite = loss.isfinite() & (grad_norm.isfinite() | overflow_is_normal)",
        "finite = loss.isfinite()",
    ),
    (
        "weights that are not finite are saved",
        runs.check_divergence,
        trainer,
        "        self.latch.check_before_save(self.progress.step, self.model)\n",
        "",
    ),
    (
        "a signal is ignored",
        signal_at_each_line,
        signals,
        "        self.received = max(number, self.received)\n",
        "",
    ),
    ("nothing is saved at a signal", signal_at_each_line, trainer, "is_best or stopping or", "is_best or"),
    (
        "a signal during the save ends the run before the next",
        signal_at_each_line,
        trainer,
        "            if stopping and not finished:",
        "            if stop.received and not finished:",
    ),
    (
        "a second signal waits too",
        signal_at_each_line,
        signals,
        "            os._exit(128 + number)\n",
        "            pass\n",
    ),
    (
        "the run folder is locked only to look into it",
        runs.check_locked_run,
        resume,
        "    with store.lock():\n        _refuse_another_run",
        "    with store.lock():\n        pass\n    if True:\n        _refuse_another_run",
    ),
    (
        "another text is resumed with",
        runs.check_changes,
        resume,
        "    require_same_text(data.digest,",
        "    str.format(data.digest,",
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
