from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

pytest.importorskip("lightning")

from lightning.pytorch.utilities.exceptions import SIGTERMException

from meinst.training.callbacks import BestCheckpoint, LastCheckpoint, Patience, make_ema


def test_decay_of_the_average_grows_to_its_limit() -> None:
    average = make_ema(0.5)._kwargs["multi_avg_fn"]
    model = nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=False)
    expected = 0.0
    for count, value in enumerate([8.0, 4.0, 2.0]):
        nn.init.constant_(model.weight, value)
        averaged.update_parameters(model)
        # The first update copies; then min(0.5, (1 + n) / (10 + n)): 2/11, 3/12.
        kept = (1 + count) / (10 + count)
        expected = value if count == 0 else kept * expected + (1 - kept) * value
        assert averaged.module.weight.item() == pytest.approx(expected)
    late = [torch.tensor([1.0])]
    average(late, [torch.tensor([3.0])], torch.tensor(1000))
    assert late[0].item() == 2.0  # 0.5 * 1 + 0.5 * 3


def test_best_score_is_kept_when_the_folder_is_moved(tmp_path: Path) -> None:
    before, after = (BestCheckpoint(tmp_path / name, "val/segm_AP") for name in ("old", "new"))
    score, path = torch.tensor(0.5), str(tmp_path / "old" / "best.ckpt")
    before.best_k_models, before.best_model_score = {path: score}, score
    before.kth_best_model_path = before.best_model_path = path
    after.load_state_dict(before.state_dict())
    assert after.best_model_path == str(tmp_path / "new" / "best.ckpt")
    assert after.best_model_score == 0.5
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))
    assert not after.check_monitor_top_k(trainer, torch.tensor(0.49))
    assert after.check_monitor_top_k(trainer, torch.tensor(0.51))


def test_latest_of_equal_scores_is_the_best_and_no_score_never_is(tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path, "val/segm_AP")
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))

    def is_best(score: float) -> bool:
        chosen = best.check_monitor_top_k(trainer, torch.tensor(score))
        if chosen:
            best.best_k_models = {"best.ckpt": torch.tensor(score)}
            best.kth_best_model_path = "best.ckpt"
        return chosen

    nan = float("nan")
    scores = [nan, 0.0, 0.0, nan, 0.3, 0.2, 0.3, nan]
    assert [is_best(s) for s in scores] == [False, True, True, False, True, False, True, False]
    assert not best.check_monitor_top_k(trainer, None)


def test_checkpoints_contain_only_complete_updates(tmp_path: Path) -> None:
    """Updates of three batches, saved at every second and validated at every fourth."""
    saved: list[int] = []
    trainer = SimpleNamespace(
        global_step=2,
        should_stop=False,
        accumulate_grad_batches=3,
        save_checkpoint=lambda _: saved.append(trainer.global_step),
    )
    saving = LastCheckpoint(tmp_path / "last.ckpt", every=2, validate_every=4)
    for batch in range(6, 21):
        trainer.global_step = (batch + 1) // 3
        saving.on_train_batch_end(trainer, None, None, None, batch)  # type: ignore[arg-type]
        before = len(saved)
        saving.on_exception(trainer, None, SIGTERMException())  # type: ignore[arg-type]
        complete = batch % 3 == 2 and trainer.global_step % 4 != 0
        assert len(saved) - before == complete
    # 6 regularly; 3, 5, 6 and 7 on SIGTERM; 4 is saved after its validation.
    assert saved == [3, 5, 6, 6, 7]


def test_last_update_is_saved_after_its_validation(tmp_path: Path) -> None:
    saved: list[int] = []
    trainer = SimpleNamespace(
        global_step=6,
        should_stop=True,
        accumulate_grad_batches=1,
        save_checkpoint=lambda _: saved.append(6),
    )
    saving = LastCheckpoint(tmp_path / "last.ckpt", every=2, validate_every=4)
    saving.on_train_batch_end(trainer, None, None, None, 5)  # type: ignore[arg-type]
    assert saved == []
    saving.on_validation_end(trainer)  # type: ignore[arg-type]
    assert saved == [6]


def test_patience_counts_validations_without_a_higher_score() -> None:
    patience = Patience("val/segm_AP", 2)

    def stops(score: float) -> bool:
        return patience._evaluate_stopping_criteria(torch.tensor(score))[0]

    nan = float("nan")
    scores = [nan, 0.1, 0.1, 0.2, 0.1, 0.3, nan, 0.3]
    assert [stops(score) for score in scores] == [False] * 7 + [True]


def test_resumed_run_takes_the_patience_of_the_command() -> None:
    stopped = Patience("val/segm_AP", 2)
    for score in (0.3, 0.2, 0.1):
        stopped._evaluate_stopping_criteria(torch.tensor(score))
    for patience, stops in ((2, True), (3, False)):
        resumed = Patience("val/segm_AP", patience)
        resumed.load_state_dict(stopped.state_dict())
        trainer = SimpleNamespace(should_stop=False)
        resumed.on_train_start(trainer, None)  # type: ignore[arg-type]
        assert trainer.should_stop == stops
        assert resumed.patience == patience
