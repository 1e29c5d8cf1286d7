"""Recording in a loop and in a Trainer, and trainings that are run again."""

import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from polca.core.checkpoints import Checkpoints
from polca.core.losses import parameters
from polca.core.recording import PolcaCallback, Recorder, Replay, log_steps, record_of
from polca.core.verification import verify_checkpoints


def refused(words):
    return pytest.raises(ValueError, match=re.escape(words))


# steps


@pytest.mark.parametrize("arguments, words", [((0,), "at least 1"), ((10, 3, 0), "one step long")])
def test_steps_that_are_refused(arguments, words):
    with refused(words):
        log_steps(*arguments)


def test_two_steps_are_the_first_and_the_last_and_one():
    assert log_steps(1000, 2) == [0, 1, 1000]


# in a loop


def train_net(steps=31):
    "A training from its seed that yields (step, model) before each update and at the end."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for step in range(steps):
        yield step, net
        loss = net(torch.ones(1, 3)).pow(2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    yield steps, net


def record_all(place, steps, dtype=None, changed=None, by=0.0, first=0):
    "Record the training, or one that is changed at a step or begun later."
    recorder = Recorder(place, steps, dtype)
    for step, net in train_net():
        if step < first:
            continue
        if step == changed:
            net[0].weight.data += by
        recorder(step, net)
    return recorder.store


@pytest.fixture(scope="module")
def net():
    *_, (_, last) = train_net()
    return last


def test_more_than_the_limit_is_refused_before_the_first_write(net, tmp_path):
    with refused("bfloat16"):
        Recorder(tmp_path / "other", range(1000), limit=10_000)(0, net)
    assert not list((tmp_path / "other").iterdir())


def test_half_precision_is_kept_and_close(tmp_path):
    whole = record_all(tmp_path / "whole", [31])
    half = record_all(tmp_path / "half", [0, 31], torch.bfloat16)
    assert half.load(31)["0.weight"].dtype == torch.bfloat16
    rounded = half.load(31, dtype=torch.float32)["0.weight"]
    assert torch.allclose(rounded, whole.load(31)["0.weight"], rtol=1e-2)


def test_a_part_that_is_called_module_is_no_wrapper(net):
    headed = nn.Module()
    headed.module = net
    headed.head = nn.Linear(2, 2)
    assert "module.0.weight" in record_of(headed, 0).params


def test_a_wrapper_is_left_out_of_the_names(net):
    assert list(record_of(nn.DataParallel(net), 0).params) == list(parameters(net))


def test_a_compiled_part_is_left_out_of_the_names(net, tmp_path):
    record = Recorder(tmp_path, [31])
    record(31, nn.Sequential(*net[:2], torch.compile(net[2])))
    assert list(record.store.load(31)) == list(parameters(net))


@pytest.mark.parametrize("steps, words", [([], "no steps"), ([-1], "whole number"), ([2.5], "whole number")])
def test_steps_to_record_that_are_refused(steps, words, tmp_path):
    with refused(words):
        Recorder(tmp_path, steps)


def test_buffers_are_recorded_and_compared(tmp_path):
    normed = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    record = Recorder(tmp_path, [0, 1])
    for step in (0, 1):
        record(step, nn.DataParallel(normed))
        normed(torch.randn(4, 3))  # in training mode: the statistics move, the weights do not
    first, second = (record.store.read(step).buffers for step in (0, 1))
    assert first["1.num_batches_tracked"] == 0 and second["1.num_batches_tracked"] == 1
    with refused("other weights or buffers"):
        record(1, normed)


def test_two_names_of_one_tensor_are_refused(net, tmp_path):
    with refused("two names"):
        Recorder(tmp_path, [0], torch.bfloat16)(0, {"a": net[0].weight, "b": net[0].weight})


STEPS = log_steps(31, 8)


@pytest.fixture
def recorded(tmp_path):
    "A recorded training, and what its files hold."
    store = record_all(tmp_path, STEPS)
    return store, {file: file.read_bytes() for file in store.path.iterdir()}


def test_a_training_that_is_resumed_goes_on_in_its_folder(recorded):
    store, before = recorded
    record_all(store.path, STEPS)  # the same again
    record_all(store.path, STEPS, first=2)  # resumed, before steps that are there
    record_all(store.path, [30], first=12)  # and behind them
    assert store.steps == sorted({30, *STEPS})
    store.file(30).unlink()
    assert {file: file.read_bytes() for file in store.path.iterdir()} == before


@pytest.mark.parametrize(
    "words, how",
    [
        ("other weights or buffers than the model at step 0", dict(steps=STEPS, changed=0)),
        ("at step 2", dict(steps=STEPS, changed=2)),  # another rate of learning, say
        ("at step 6", dict(steps=[31], changed=6, first=5)),
        ("at step 0", dict(steps=[9], changed=0)),  # steps of its own do not help
    ],
)
def test_another_training_is_refused_and_changes_no_file(words, how, recorded):
    store, before = recorded
    with refused(words):
        record_all(store.path, by=0.1, **how)
    assert {file: file.read_bytes() for file in store.path.iterdir()} == before


def test_another_precision_is_another_training(recorded):
    store, before = recorded
    with refused("at step 0"):
        Recorder(store.path, [0], torch.bfloat16)(0, next(train_net())[1])
    assert {file: file.read_bytes() for file in store.path.iterdir()} == before


# in a Trainer


def gpt2_trainer(place, seed, last):
    torch.manual_seed(seed)
    sizes = dict(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0))
    arguments = TrainingArguments(
        str(place / "trainer"),
        max_steps=last,
        save_steps=2,
        per_device_train_batch_size=4,
        report_to=[],
        lr_scheduler_type="constant",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    rows = torch.randint(50, (64, 12), generator=torch.Generator().manual_seed(1)).tolist()
    data = [{"input_ids": r, "labels": r} for r in rows]
    return Trainer(model, arguments, train_dataset=data, callbacks=[PolcaCallback(place / "recorded", range(9))])


def test_a_trainer_that_resumes_goes_on_being_recorded_and_another_one_is_refused(tmp_path):
    gpt2_trainer(tmp_path, 0, 4).train()
    # passes 3 and 4 again, and goes on
    gpt2_trainer(tmp_path, 7, 6).train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    store = Checkpoints(tmp_path / "recorded")
    assert store.steps == [*range(7)]
    assert verify_checkpoints(store, [2, 4, 6]) == verify_checkpoints(Checkpoints.open(tmp_path / "trainer"))
    with refused("at step 0"):
        gpt2_trainer(tmp_path, 7, 8).train()
    assert store.steps == [*range(7)]


# trained again


@pytest.mark.parametrize(
    "training, steps, step, words",
    [
        (train_net, [40], 40, "ends before step 40"),
        (lambda: ((s, n) for s, n in train_net() if s != 3), [3, 4], 3, "let it yield"),
        (lambda: None, [0], 0, "returns NoneType"),
        (train_net, [0, 31], 30, "nearest"),
    ],
)
def test_a_training_that_does_not_come_to_a_step_is_refused(training, steps, step, words, tmp_path):
    with refused(words):
        Replay(training, steps, tmp_path / "hashes.json").load(step)


def test_a_replay_stores_nothing(net, tmp_path):
    with refused("stores no weights"):
        Replay(train_net, [0], tmp_path / "hashes.json").save(1, net)


@pytest.mark.parametrize("text", ['["a"]', '{"0": ', '{"seed": "0"}'])
def test_a_file_that_holds_no_hashes_is_refused(text, tmp_path):
    (tmp_path / "hashes.json").write_text(text)
    with refused("delete it"):
        Replay(train_net, [0], tmp_path / "hashes.json")


@pytest.mark.parametrize("steps, words", [([], "no steps"), ([1.5], "whole number")])
def test_steps_to_train_up_to_that_are_refused(steps, words, tmp_path):
    with refused(words):
        Replay(train_net, steps, tmp_path / "hashes.json")


def noisy_training(last=6):
    "Draws from every generator at every step, and its seeds once."
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    net = nn.Linear(3, 3)
    for step in range(last + 1):
        yield step, net
        net(torch.randn(4, 3) + random.random() + np.random.rand()).pow(2).sum().backward()
        with torch.no_grad():
            net.weight -= 0.01 * net.weight.grad


@pytest.fixture
def noisy(tmp_path):
    return Replay(noisy_training, range(7), tmp_path / "noisy.json")


def seed_all():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_neither_the_training_nor_the_caller_disturbs_the_other(noisy):
    whole = verify_checkpoints(noisy)
    seed_all()
    expected = [draws() for _ in range(7)]
    seed_all()
    with torch.no_grad():
        for step in range(7):
            noisy.load(step)["weight"].zero_()
            assert draws() == expected[step]
    with torch.inference_mode():
        noisy.load(0)
        noisy.load(3)
    assert noisy.load(3)["weight"].all() and verify_checkpoints(noisy) == whole


def test_a_training_may_be_a_list(tmp_path):
    stored = Replay(lambda: [(step, nn.Linear(1, 1)) for step in range(3)], range(3), tmp_path / "list.json")
    assert verify_checkpoints(stored, [0, 2]) and stored.load(2)


def test_a_training_that_was_interrupted_starts_over(noisy):
    interrupted = []

    def breaks_once():
        for step, net in noisy_training():
            if step == 3 and not interrupted:
                interrupted.append(step)
                raise KeyboardInterrupt
            yield step, net

    again = Replay(breaks_once, range(7), noisy.path)
    with pytest.raises(KeyboardInterrupt):
        again.load(4)
    assert torch.equal(again.load(4)["weight"], noisy.load(4)["weight"])
