"""SADH's label network and constraint against loops over images, pairs and label sets."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.losses import sadh
from distill.losses.base import LossContext
from distill.losses.sadh import LabelNetwork, SADHLoss
from tests.distill.losses.factories import learns, make_batch, make_context, sharing

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


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_loss_by_loops(multilabel: bool) -> None:
    context, rows = make_context(multilabel), [0, 3, 4, 5, 9]
    loss_fn, batch = (
        SADHLoss(context, code_weight=0.9, feature_weight=0.8, quantization_weight=0.7, class_weight=0.6, width=WIDTH),
        make_batch(make_context(multilabel), rows),
    )
    sets, labels = loss_fn.sets.numpy(), context.positive.numpy()[rows]
    own = [next(s for s, row in enumerate(sets) if (row == label).all()) for label in labels]
    f = numpy(batch.features) @ numpy(loss_fn.embedding.weight).T + numpy(loss_fn.embedding.bias)
    u, z = np.tanh(numpy(batch.logits)), f @ numpy(loss_fn.classifier.weight).T + numpy(loss_fn.classifier.bias)
    to_sets = [[sharing(a, b) for b in sets] for a in labels]
    to_batch = [[sharing(a, b) for b in labels] for a in labels]
    slow = 0.0
    for weight, x, entries in ((0.9, u, numpy(loss_fn.semantic_codes)), (0.8, f, numpy(loss_fn.semantic_features))):
        mine = entries[own]
        slow += weight * (slow_term(x, entries, mine, entries, to_sets) + slow_term(x, x, mine, mine, to_batch))
    slow += 0.7 * sum((x - (1 if x > 0 else -1)) ** 2 for x in u.ravel()) / u.size
    likelihood = [math.log(1 + math.exp(-s if y else s)) for s, y in zip(z.ravel(), labels.ravel(), strict=True)]
    slow += 0.6 * sum(likelihood) / len(likelihood)
    assert loss_fn(batch).item() == pytest.approx(slow, rel=1e-5)


def test_the_label_networks_loss_by_loops() -> None:
    context = make_context(multilabel=True)
    labels = context.positive[:5].float()
    net = LabelNetwork(4, 16, 24, context.generator())
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


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_dictionaries_tell_sets_apart_that_share_no_class(multilabel: bool) -> None:
    context = make_context(multilabel, images=240, classes=8, bits=32)
    loss_fn = SADHLoss(context, width=64.0)
    sets = loss_fn.sets
    assert len(sets) == len({tuple(row) for row in context.positive.tolist()})
    assert torch.equal(sets[loss_fn.own], context.positive)
    codes = torch.where(loss_fn.semantic_codes > 0, 1.0, -1.0)
    distance = (32 - codes @ codes.T) / 2
    near = torch.tensor([[sharing(a, b) for b in sets.numpy()] for a in sets.numpy()])
    assert distance[~near].min() > 4
    assert distance[~near].mean() > distance[near].mean() + 6
    assert sadh.cosines(loss_fn.semantic_features, loss_fn.semantic_features)[~near].max() < 0.3


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns(multilabel: bool) -> None:
    context = make_context(multilabel)
    before, after = learns(SADHLoss(context, width=WIDTH), context)
    assert after > before + 0.2


def test_what_it_begins_with_is_the_tasks_alone() -> None:
    context = make_context(multilabel=True)
    torch.manual_seed(1)
    one = SADHLoss(context, width=WIDTH)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = SADHLoss(context, width=WIDTH)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not torch.equal(
        one.semantic_codes, SADHLoss(make_context(multilabel=True, seed=1), width=WIDTH).semantic_codes
    )


def test_a_resumed_run_reads_its_dictionaries_back() -> None:
    context = make_context()
    whole, resumed = SADHLoss(context, width=WIDTH), SADHLoss(LossContext(**{**vars(context), "seed": 9}), width=WIDTH)
    learns(whole, context, steps=3)
    batch = make_batch(context, [1, 2, 3])
    assert not torch.equal(whole(batch), resumed(batch))
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(whole(batch), resumed(batch))


def test_the_label_network_stays_as_it_is() -> None:
    loss_fn = SADHLoss(make_context(), width=WIDTH)
    assert {name.partition(".")[0] for name, _ in loss_fn.named_parameters()} == {"embedding", "classifier"}
    assert not loss_fn.semantic_codes.requires_grad
    batch = make_batch(loss_fn.context, [0, 5])
    loss_fn(batch).backward()
    assert batch.logits.grad is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss_fn.parameters())


def test_extremes_stay_finite() -> None:
    positive = make_context(multilabel=True).positive.clone()
    positive[0] = False  # an image without a label is like none
    context = make_context(multilabel=True, positive=positive)
    for scale in (0.0, 1e15):
        batch = make_batch(context, [0, 1, 2])
        extreme = replace(batch, logits=(scale * batch.logits.detach()).requires_grad_())
        loss = SADHLoss(context, width=WIDTH)(extreme)
        loss.backward()
        assert loss.isfinite()
        assert extreme.logits.grad is not None
        assert extreme.logits.grad.isfinite().all()
