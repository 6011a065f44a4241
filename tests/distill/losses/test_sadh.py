"""SADH's label network and constraint against loops over pictures, pairs and label sets."""

import math

import numpy as np
import pytest
import torch

from distill.losses import sadh
from distill.losses.base import LossContext
from distill.losses.sadh import LabelNetwork, SADHLoss
from tests.distill.losses.factories import learns, seen, sharing, task

WIDTH = 24.0


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def slow_term(x: np.ndarray, to: np.ndarray, own: np.ndarray, of: np.ndarray, alike: list[list[bool]]) -> float:
    """A(x, to): `own` and `of` are what the dictionary has for the rows of either."""
    terms = []
    for i in range(len(x)):
        for j in range(len(to)):
            margin = max(0.0, cosine(own[i], of[j]))
            gap = margin - cosine(x[i], to[j])
            terms.append(max(0.0, gap if alike[i][j] else -gap))
    return sum(terms) / len(terms)


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(float)


@pytest.mark.parametrize("several", [False, True])
def test_the_loss_by_loops(several: bool) -> None:
    of, rows = task(several), [0, 3, 4, 5, 9]
    objective, batch = (
        SADHLoss(of, code_weight=0.9, feature_weight=0.8, quantization_weight=0.7, class_weight=0.6, width=WIDTH),
        seen(task(several), rows),
    )
    sets, labels = objective.sets.numpy(), of.positive.numpy()[rows]
    own = [next(s for s, row in enumerate(sets) if (row == label).all()) for label in labels]
    f = numpy(batch.features) @ numpy(objective.embedding.weight).T + numpy(objective.embedding.bias)
    u, z = np.tanh(numpy(batch.logits)), f @ numpy(objective.classifier.weight).T + numpy(objective.classifier.bias)
    to_sets = [[sharing(a, b) for b in sets] for a in labels]
    to_batch = [[sharing(a, b) for b in labels] for a in labels]
    slow = 0.0
    for weight, x, entries in ((0.9, u, numpy(objective.semantic_codes)), (0.8, f, numpy(objective.semantic_features))):
        mine = entries[own]
        slow += weight * (slow_term(x, entries, mine, entries, to_sets) + slow_term(x, x, mine, mine, to_batch))
    slow += 0.7 * sum((x - (1 if x > 0 else -1)) ** 2 for x in u.ravel()) / u.size
    likelihood = [math.log(1 + math.exp(-s if y else s)) for s, y in zip(z.ravel(), labels.ravel(), strict=True)]
    slow += 0.6 * sum(likelihood) / len(likelihood)
    assert objective(batch).item() == pytest.approx(slow, rel=1e-5)


def test_the_label_networks_loss_by_loops() -> None:
    of = task(several=True)
    labels = of.positive[:5].float()
    net = LabelNetwork(4, 16, 24, of.generator())
    for layer in net.layers.values():
        layer.weight.data.mul_(40)  # no cosine is near the others
    f, u, found = (numpy(tensor) for tensor in net(labels))
    hidden = np.maximum(labels.numpy() @ numpy(net.layers["hidden"].weight).T + numpy(net.layers["hidden"].bias), 0)
    assert f == pytest.approx(hidden @ numpy(net.layers["feature"].weight).T + numpy(net.layers["feature"].bias), 1e-4)
    assert u == pytest.approx(np.tanh(f @ numpy(net.layers["hash"].weight).T + numpy(net.layers["hash"].bias)), 1e-4)
    slow = 0.1 * sum((x - (1 if x > 0 else -1)) ** 2 for x in u.ravel()) / u.size
    slow += 2 / 4 * float(((labels.numpy() - found) ** 2).sum())
    for x in (f, u):
        for i in range(5):
            for j in range(5):
                c = cosine(x[i], x[j])
                near = sharing(labels[i].numpy() > 0, labels[j].numpy() > 0)
                slow += (max(0.0, 0.2 - c) if near else max(0.0, c)) / 25
    assert net.loss(labels).item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_the_dictionaries_tell_sets_apart_that_share_no_class(several: bool) -> None:
    of = task(several, pictures=240, classes=8, bits=32)
    objective = SADHLoss(of, width=64.0)
    sets = objective.sets
    assert len(sets) == len({tuple(row) for row in of.positive.tolist()})
    assert torch.equal(sets[objective.own], of.positive)
    codes = torch.where(objective.semantic_codes > 0, 1.0, -1.0)
    distance = (32 - codes @ codes.T) / 2
    near = torch.tensor([[sharing(a, b) for b in sets.numpy()] for a in sets.numpy()])
    assert distance[~near].min() > 4
    assert distance[~near].mean() > distance[near].mean() + 6
    assert sadh.cosines(objective.semantic_features, objective.semantic_features)[~near].max() < 0.3


@pytest.mark.parametrize("several", [False, True])
def test_it_learns(several: bool) -> None:
    of = task(several)
    before, after = learns(SADHLoss(of, width=WIDTH), of)
    assert after > before + 0.2


def test_what_it_begins_with_is_the_tasks_alone() -> None:
    of = task(several=True)
    torch.manual_seed(1)
    one = SADHLoss(of, width=WIDTH)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = SADHLoss(of, width=WIDTH)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not torch.equal(one.semantic_codes, SADHLoss(task(several=True, seed=1), width=WIDTH).semantic_codes)


def test_a_resumed_run_reads_its_dictionaries_back() -> None:
    of = task()
    whole, resumed = SADHLoss(of, width=WIDTH), SADHLoss(LossContext(**{**vars(of), "seed": 9}), width=WIDTH)
    learns(whole, of, steps=3)
    batch = seen(of, [1, 2, 3])
    assert not torch.equal(whole(batch), resumed(batch))
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(whole(batch), resumed(batch))


def test_the_label_network_stays_as_it_is() -> None:
    objective = SADHLoss(task(), width=WIDTH)
    assert {name.partition(".")[0] for name, _ in objective.named_parameters()} == {"embedding", "classifier"}
    assert not objective.semantic_codes.requires_grad
    batch = seen(objective.task, [0, 5])
    objective(batch).backward()
    assert batch.logits.grad is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


def test_extremes_stay_finite() -> None:
    positive = task(several=True).positive.clone()
    positive[0] = False  # a picture without a label is like none
    of = task(several=True, positive=positive)
    for scale in (0.0, 1e15):
        batch = seen(of, [0, 1, 2])
        extreme = batch._replace(logits=(scale * batch.logits.detach()).requires_grad_())
        loss = SADHLoss(of, width=WIDTH)(extreme)
        loss.backward()
        assert loss.isfinite()
        assert extreme.logits.grad is not None
        assert extreme.logits.grad.isfinite().all()
