import itertools
import math
import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.augment import Augmentation
from pipeline.data.batches import Batches, fetch_pixels, seed_for
from pipeline.models.body import build_body
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.layer_groups import FixedStatistics, freeze, layer_groups, training_mode
from pipeline.models.network import Network
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.errors import UserError
from pipeline.training.fit import Phase, TrainingProgress, fit, validate
from pipeline.training.optim import build_optimizer
from pipeline.training.records import EpochRecord
from pipeline.training.schedule import rate_factor

CPU = torch.device("cpu")
TRAIN, VALID = np.arange(64), np.arange(64, 96)
TARGETS = np.arange(96) % 2
# Two clouds, one for each class, far enough apart that a line divides them.
POINTS = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32) + np.where(TARGETS, 2, -2)[:, None].astype(
    np.float32
)


def rows_of(points: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(points[rows])


def toy_batches(batch_size: int = 16, seed: int = 0, train: npt.NDArray[np.int64] = TRAIN) -> tuple[Batches, Batches]:
    def fetch(rows: npt.NDArray[np.int64]) -> Tensor:
        return rows_of(POINTS, rows)

    return Batches(fetch, train, TARGETS, batch_size, CPU, seed), Batches(fetch, VALID, TARGETS, 20, CPU)


def toy_network(dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(8) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 8), middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def toy_optimizer(network: nn.Module, head: float = 0.02, early: float = 0.01) -> Optimizer:
    names = [name for name, _ in network.named_parameters()]
    groups = {"early": names[:-2], "head": names[-2:]}
    return build_optimizer(network, groups, {"early": early, "head": head}, 0.01)


def train_toy(
    cycle_epochs: list[int], *, seed: int = 0, label_smoothing: float = 0.0, **more: int
) -> tuple[nn.Module, list[EpochRecord]]:
    network = toy_network(dropout=0.5, norm=True)
    phase = Phase(network, toy_optimizer(network), *toy_batches(seed=seed), cycle_epochs, label_smoothing)
    records = list(fit(phase, **more))
    return network, records


def same_state(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def results(records: list[EpochRecord]) -> list[EpochRecord]:
    """The records without times."""
    return [replace(record, seconds=0.0, images_per_second=0.0) for record in records]


def test_a_problem_that_a_line_divides_is_learned() -> None:
    network = toy_network()
    records = list(fit(Phase(network, toy_optimizer(network), *toy_batches(), [1, 2, 4])))
    assert records[-1].valid_accuracy == 1.0
    assert records[-1].valid_loss < records[0].valid_loss < math.log(2)
    assert records[-1].train_loss < records[0].train_loss / 2


def test_there_is_a_record_for_every_epoch_of_every_cycle() -> None:
    _, records = train_toy([1, 2, 4])
    assert [record.epoch for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert [record.cycle for record in records] == [1, 2, 2, 3, 3, 3, 3]
    assert [record.step for record in records] == [4, 8, 12, 16, 20, 24, 28]


def test_steps_are_counted_from_one_without_a_gap() -> None:
    _, records = train_toy([1, 2])
    assert [one.step for record in records for one in record.steps] == list(range(1, 13))


def test_records_count_on_from_what_earlier_stages_did() -> None:
    _, records = train_toy([1, 1], epochs_before=5, steps_before=100)
    assert [record.epoch for record in records] == [6, 7]
    assert [record.step for record in records] == [104, 108]
    assert [one.step for record in records for one in record.steps] == list(range(101, 109))
    assert [record.cycle for record in records] == [1, 2]


def test_the_same_seed_gives_the_same_weights_bit_for_bit_dropout_and_all() -> None:
    first, first_records = train_toy([1, 2])
    torch.rand(1000)
    np.random.rand(1000)  # noqa: NPY002
    second, second_records = train_toy([1, 2])
    assert same_state(first, second)
    assert results(first_records) == results(second_records)


def test_the_random_state_that_training_starts_from_does_not_matter() -> None:
    trained = []
    for noise in (1, 2):
        network = toy_network(dropout=0.5, norm=True)
        optimizer = toy_optimizer(network)
        torch.manual_seed(noise)
        list(fit(Phase(network, optimizer, *toy_batches(), [2])))
        trained.append(network)
    assert same_state(*trained)


def test_another_seed_gives_other_weights() -> None:
    assert not same_state(train_toy([1])[0], train_toy([1], seed=1)[0])


def test_training_in_two_parts_is_training_in_one() -> None:
    whole, records = train_toy([1, 1, 1, 1])
    network = toy_network(dropout=0.5, norm=True)
    optimizer = toy_optimizer(network)
    first = list(fit(Phase(network, optimizer, *toy_batches(), [1, 1])))
    torch.rand(10)
    second = list(fit(Phase(network, optimizer, *toy_batches(), [1, 1]), epochs_before=2, steps_before=first[-1].step))
    assert same_state(network, whole)
    numbered = [replace(record, cycle=0) for record in results(records)]
    assert [replace(record, cycle=0) for record in results(first + second)] == numbered


def test_pictures_come_in_another_order_after_epochs_of_an_earlier_stage() -> None:
    assert not same_state(train_toy([1])[0], train_toy([1], epochs_before=1)[0])


def test_the_overfit_gap_is_how_far_validation_lies_above_training() -> None:
    record = EpochRecord(1, 4, 1, 0.25, 1.0, 0.5, 0.5, 1.0, 64.0, [])
    assert record.overfit_gap == 0.75


def test_memorised_noise_shows_as_a_gap() -> None:
    targets = np.random.default_rng(0).integers(0, 2, 96)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    train, valid = (replace(batches, targets=targets) for batches in toy_batches())
    records = list(fit(Phase(network, toy_optimizer(network, 0.05, 0.05), train, valid, [60])))
    assert records[-1].overfit_gap > 0.5
    assert records[-1].overfit_gap > records[0].overfit_gap


@pytest.mark.parametrize("cycle_epochs", [[3], [1, 2], [1, 1, 1]])
def test_the_recorded_rates_follow_the_cosine_group_by_group(cycle_epochs: list[int]) -> None:
    network = toy_network()
    optimizer = toy_optimizer(network, head=0.02, early=0.01)
    used = []
    optimizer.register_step_pre_hook(
        lambda *_: used.append({g["layer_group"]: g["lr"] for g in optimizer.param_groups})
    )
    records = list(fit(Phase(network, optimizer, *toy_batches(), cycle_epochs)))
    factors = [rate_factor(step, cycle_epochs, 4) for step in range(12)]
    recorded = [one.rates for record in records for one in record.steps]
    assert recorded == used == [{"early": 0.01 * factor, "head": 0.02 * factor} for factor in factors]


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_rates() -> None:
    train, valid = toy_batches()
    calls = itertools.count(1)

    def fetch(rows: npt.NDArray[np.int64]) -> Tensor:
        return train.fetch(rows) * (math.nan if next(calls) == 6 else 1)

    network = toy_network()
    epochs = fit(Phase(network, toy_optimizer(network), replace(train, fetch=fetch), valid, [3]), steps_before=100)
    next(epochs)
    rate = 0.02 * rate_factor(5, [3], 4)
    with pytest.raises(UserError, match=f"loss is nan at step 106 with rates early .*, head {rate:.3g}; lower"):
        next(epochs)


def test_a_rate_far_too_high_ends_in_one_sentence() -> None:
    network = toy_network()
    optimizer = toy_optimizer(network, head=1e30, early=1e30)
    with pytest.raises(UserError, match=r"The loss is (nan|inf) at step \d+ with rates early \d"):
        list(fit(Phase(network, optimizer, *toy_batches(), [5])))


def test_label_smoothing_does_not_enter_the_recorded_training_loss() -> None:
    recorded = []
    for smoothing in (0.0, 0.3):
        network = toy_network()
        optimizer = toy_optimizer(network, head=0.0, early=0.0)
        (record,) = fit(Phase(network, optimizer, *toy_batches(), [1], label_smoothing=smoothing))
        recorded.append(record.train_loss)
    plain = validate(toy_network(), replace(toy_batches()[1], rows=TRAIN)).loss
    assert recorded == pytest.approx([plain, plain], rel=1e-5)


def test_label_smoothing_does_enter_what_is_learned() -> None:
    assert not same_state(train_toy([1])[0], train_toy([1], label_smoothing=0.3)[0])


def test_the_training_loss_is_the_mean_over_the_steps() -> None:
    _, (record,) = train_toy([1])
    assert record.train_loss == pytest.approx(np.mean([one.loss for one in record.steps]))


def test_validation_is_in_eval_mode_over_every_row() -> None:
    network = toy_network(dropout=0.9, norm=True)
    list(fit(Phase(network, toy_optimizer(network), *toy_batches(), [1])))
    (record,) = fit(Phase(network, toy_optimizer(network, 0.0, 0.0), *toy_batches(), [1]))
    with torch.no_grad():
        logits = network.eval()(rows_of(POINTS, VALID))
    targets = torch.from_numpy(TARGETS[VALID])
    assert record.valid_loss == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)
    assert record.valid_accuracy == float((logits.argmax(1) == targets).float().mean())
    assert record.valid_macro_f1 == pytest.approx(f1_score(targets, logits.argmax(1), average="macro"))


@pytest.mark.parametrize(("precision", "of_logits"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_validation_is_in_what_the_network_is_trained_in(precision: str, of_logits: torch.dtype) -> None:
    network = build_network(Checkpoint("test_efficientnet", ["a", "b"], 8, 0.0, 32, "crop", grey=False))
    images = torch.rand(4, 3, 32, 32)
    train = Batches(lambda rows: images[rows], np.arange(4), TARGETS, 4, CPU, 0)
    kinds: dict[bool, torch.dtype] = {}
    network.head.register_forward_hook(lambda head, _, logits: kinds.update({head.training: logits.dtype}))
    options = TrainingOptions(precision=precision)  # type: ignore[arg-type]
    list(fit(Phase(network, toy_optimizer(network), train, replace(train, seed=None), [1], options=options)))
    assert kinds == {True: of_logits, False: of_logits}


@pytest.mark.parametrize(("bias", "classes"), [([0.0, 0.0, 0.0], 3), ([99.0, 0.0, 0.0], 3), ([0.0, 0.0, -99.0], 3)])
def test_macro_f1_is_that_of_scikit_learn_where_classes_are_missing_too(bias: list[float], classes: int) -> None:
    network = nn.Linear(POINTS.shape[1], classes)
    with torch.no_grad():
        network.bias.copy_(torch.tensor(bias))
    valid = toy_batches()[1]
    predicted = network(rows_of(POINTS, VALID)).argmax(1)
    expected = f1_score(TARGETS[VALID], predicted, average="macro", zero_division=0)
    assert validate(network, valid).macro_f1 == pytest.approx(expected)


def test_validation_changes_nothing_in_the_network() -> None:
    network = toy_network(dropout=0.5, norm=True).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    validate(network, toy_batches()[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_training_goes_back_to_train_mode_after_each_validation() -> None:
    network = toy_network(dropout=0.5, norm=True)
    list(fit(Phase(network, toy_optimizer(network), *toy_batches(), [3])))
    assert int(network[1].num_batches_tracked) == 12


@pytest.mark.parametrize(("rows", "steps", "trained_on"), [(64, 4, 64), (63, 3, 48), (17, 1, 16), (9, 1, 9)])
def test_the_last_batch_is_dropped_where_it_is_not_full(rows: int, steps: int, trained_on: int) -> None:
    network = toy_network(norm=True)
    (record,) = fit(Phase(network, toy_optimizer(network), *toy_batches(train=TRAIN[:rows]), [1]))
    assert len(record.steps) == record.step == steps
    assert record.images_per_second * record.seconds == pytest.approx(trained_on)


def test_an_epoch_is_trained_only_when_it_is_asked_for() -> None:
    network = toy_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    epochs = fit(Phase(network, toy_optimizer(network), *toy_batches(), [2]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    next(epochs)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_training_batches_have_to_be_shuffled() -> None:
    _, valid = toy_batches()
    network = toy_network()
    with pytest.raises(AssertionError, match="shuffled"):
        next(fit(Phase(network, toy_optimizer(network), valid, valid, [1])))


def test_weights_count_in_training_and_neither_in_the_loss_that_is_reported_nor_in_validation() -> None:
    weights = np.where(TARGETS, 20, 1).astype(np.float32)
    reported = []
    for rate in (0.0, 0.02):
        records = []
        for given in (None, weights):
            network, (train, valid) = toy_network(), toy_batches()
            optimizer = toy_optimizer(network, rate, rate)
            records.append(next(iter(fit(Phase(network, optimizer, replace(train, weights=given), valid, [1])))))
        reported.append(records)
    still, moving = reported
    assert results(still[:1]) == results(still[1:])  # type: ignore[arg-type]
    assert moving[0].train_loss != moving[1].train_loss  # type: ignore[union-attr]
    assert moving[0].valid_loss != moving[1].valid_loss  # type: ignore[union-attr]


def test_a_picture_of_little_weight_is_not_learned() -> None:
    """Half of each class is labelled as the other; which half is believed, the weights decide."""
    wrong = np.arange(96) % 4 < 2
    targets = np.where(wrong, 1 - TARGETS, TARGETS)
    accuracies = []
    for believed in (wrong, ~wrong):
        network, (train, valid) = toy_network(), toy_batches()
        weights = np.where(believed, 1.0, 1e-3).astype(np.float32)
        *_, last = fit(
            Phase(network, toy_optimizer(network), replace(train, targets=targets, weights=weights), valid, [8])
        )
        accuracies.append(last.valid_accuracy)  # type: ignore[union-attr]
    assert accuracies[0] < 0.1
    assert accuracies[1] > 0.9


def picture_training(
    frozen: str, epochs: int = 1, fixed_statistics: FixedStatistics = "none"
) -> tuple[dict[str, Tensor], Network]:
    """The state before, and the network after, some epochs on small pictures."""
    torch.manual_seed(0)
    network = Network(build_body("test_resnet", 32), 2, 8, 0.5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.7, 1.3)
    freeze(network, frozen)  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    fetch = fetch_pixels(pixels, CPU)
    how = Augmentation(flip="all", rotate_degrees=10, zoom=1.1, crop=0.8, lighting=0.2, probability=0.75)
    train = Batches(fetch, np.arange(16), TARGETS, 8, CPU, 0, how)
    valid = Batches(fetch, np.arange(16, 24), TARGETS, 8, CPU)
    rates = {"early": 1e-3, "late": 1e-3, "head": 1e-2}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = build_optimizer(network, layer_groups(network), rates, 0.01)
    list(fit(Phase(network, optimizer, train, valid, [epochs], fixed_statistics=fixed_statistics)))
    return before, network


def test_a_frozen_body_comes_out_bit_for_bit_as_it_went_in_weights_and_buffers() -> None:
    before, network = picture_training("body", epochs=2)
    after = network.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items() if not name.startswith("head."))
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert "head.6.weight" in changed
    assert "head.0.running_mean" in changed
    assert all(parameter.grad is None for parameter in network.body.parameters())


def test_a_thawed_body_learns_weights_and_buffers() -> None:
    before, network = picture_training("none", epochs=2)
    still = {name for name, tensor in network.state_dict().items() if torch.equal(tensor, before[name])}
    assert still == {"mean", "std"}


def test_real_training_on_augmented_pictures_repeats_bit_for_bit() -> None:
    _, first = picture_training("none")
    torch.rand(7)
    _, second = picture_training("none")
    assert same_state(first, second)


def test_with_fixed_statistics_a_thawed_body_learns_weights_and_keeps_its_running_statistics() -> None:
    before, network = picture_training("none", epochs=2, fixed_statistics="body")
    still = {name for name, tensor in network.state_dict().items() if torch.equal(tensor, before[name])}
    buffers = {name for name, _ in network.named_buffers() if not name.startswith("head.")}
    assert still == buffers
    assert any(name.endswith("running_var") for name in still)


def toy_pixels(mixup: float = 0.0, cutmix: float = 0.0) -> tuple[Batches, Batches]:
    """Noise of two brightnesses as images, the training batches augmented with all that can vary."""
    images = np.random.default_rng(0).integers(0, 200, (96, 8, 8, 3)).astype(np.uint8) + (TARGETS * 50)[
        :, None, None, None
    ].astype(np.uint8)
    how = Augmentation("all", 20.0, 1.3, 0.8, 0.3, 0.75, mixup, cutmix)
    fetch = fetch_pixels(images, CPU)
    return Batches(fetch, TRAIN, TARGETS, 16, CPU, 0, how), Batches(fetch, VALID, TARGETS, 20, CPU)


def pixel_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


def test_the_training_loss_of_mixed_pictures_is_a_plain_cross_entropy_with_the_shares_as_target() -> None:
    train, valid = toy_pixels(mixup=0.4)
    network = pixel_network()
    training_mode(network)
    torch.manual_seed(seed_for(1, 0))
    images, shares = next(train.epoch(0))
    with torch.no_grad():
        expected = -(network(images).log_softmax(1) * shares).sum(1).mean()
    network = pixel_network()
    record = next(iter(fit(Phase(network, toy_optimizer(network), train, valid, [1], label_smoothing=0.3))))
    assert isinstance(record, EpochRecord)
    assert record.steps[0].loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("mixed", [(0.0, 0.0), (0.4, 1.0)], ids=["plain", "mixed"])
@pytest.mark.parametrize("after_steps", range(1, 13))
def test_training_stopped_after_any_step_resumes_as_if_it_had_not_been(
    after_steps: int, mixed: tuple[float, float]
) -> None:
    whole = pixel_network()
    expected = list(fit(Phase(whole, toy_optimizer(whole), *toy_pixels(*mixed), [1, 2], label_smoothing=0.1)))

    network = pixel_network()
    optimizer = toy_optimizer(network)
    steps = itertools.count(1)
    records: list[EpochRecord] = []
    for moment in fit(Phase(network, optimizer, *toy_pixels(*mixed), [1, 2], label_smoothing=0.1), pauses=lambda: True):
        if isinstance(moment, EpochRecord):
            records.append(moment)
        elif next(steps) == after_steps:
            break
    torch.rand(17)  # what happens in between must not matter
    start = moment
    assert isinstance(start, TrainingProgress)
    rest = list(fit(Phase(network, optimizer, *toy_pixels(*mixed), [1, 2], label_smoothing=0.1), start=start))
    assert same_state(network, whole)
    assert results([*records, *rest]) == results(expected)


def test_training_pauses_only_when_asked_to() -> None:
    _, records = train_toy([1, 1])
    assert all(isinstance(record, EpochRecord) for record in records)
    asked = iter([False, True, False, False, False, False, True, False])
    network = toy_network()
    moments = list(fit(Phase(network, toy_optimizer(network), *toy_batches(), [1, 1]), pauses=lambda: next(asked)))
    positions = [(one.epochs, len(one.losses)) for one in moments if isinstance(one, TrainingProgress)]
    assert positions == [(0, 2), (1, 3)]


def test_training_that_starts_at_its_end_has_nothing_left_to_do() -> None:
    network = toy_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert not list(fit(Phase(network, toy_optimizer(network), *toy_batches(), [1, 1]), start=TrainingProgress(2)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_time_spent_in_a_pause_is_not_time_spent_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses = time.perf_counter, list[None]()
    monkeypatch.setattr("pipeline.training.fit.time.perf_counter", lambda: clock() + 1e6 * len(pauses))
    network = toy_network()
    for moment in fit(Phase(network, toy_optimizer(network), *toy_batches(), [1]), pauses=lambda: True):
        if isinstance(moment, TrainingProgress):
            pauses.append(None)  # each takes a million seconds
        else:
            assert moment.seconds < 1e6
    assert pauses
