# Tangled from compression: edit there, `make tangle`. sha256:d2554d40f9dc
from __future__ import annotations

import math
from copy import deepcopy
from functools import partial

import numpy as np

from companion.activations import relu
from companion.autograd import no_grad
from companion.compiler.capture import jit
from companion.compress import (
    CSR, Masks, SparseLinear, distilled, layerwise, low_rank, magnitude,
    pareto_front, prunable, saved_bytes, shrunk, strongest, svd, two_of_four,
    unit_masks)
from companion.convolution import (
    AvgPool2d, BatchNorm1d, BatchNorm2d, Conv1d, Conv2d, Flatten, MaxPool2d)
from companion.data import Arrays, DataLoader
from companion.dtype import bool_
from companion.layers import Dropout, LayerNorm, Linear, Sequential
from companion.literate import message
from companion.losses import cross_entropy
from companion.milestones.mnist import loss_of
from companion.optim import SGD, AdamW
from companion.tensor import Tensor
from companion.tensor.creation import zeros
from companion.tensor.random import manual_seed, randn
from companion.training import Observer, Trainer
from companion.transformer import GPT, GPTConfig


def drawn_net(seed=0):
    """Three layers with a norm, and something to learn."""
    manual_seed(seed)
    return Sequential(Linear(6, 8), BatchNorm1d(8), relu, Linear(8, 5),
                      relu, Linear(5, 3))


def steps_of(net, optimizer, after, steps=4):
    """The net after some steps, `after` each of them called."""
    x, t = randn(32, 6), Tensor(np.arange(32) % 3)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net(x), t).backward()
        optimizer.step()
        after()
    return net


def stays(net, masks):
    return all((dict(net.named_parameters())[name].numpy()[~m.numpy()]
                == 0).all() for name, m in masks.items())


def test_masks_outlive_the_optimizer():
    for make in (partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
                 partial(AdamW, lr=0.1)):
        for rule in (magnitude, layerwise):
            for remembered in (True, False):
                net = drawn_net()
                optimizer = make(net.parameters())
                steps_of(net, optimizer, lambda: None)  # it has momentum
                masks = rule(prunable(net), 0.7)
                keeper = Masks(net, masks)
                assert stays(net, masks)
                steps_of(net, optimizer, keeper.apply if remembered
                         else lambda: None)
                assert stays(net, masks) == remembered


def test_smaller_says_what_silenced_says():
    for place, keep in ((0, 3), (0, 8), (3, 1), (3, 4)):
        net = drawn_net()
        steps_of(net, SGD(net.parameters(), lr=0.1), lambda: None)
        net.eval()
        kept = strongest(net[place], keep)
        small, silent = shrunk(net, place, kept), deepcopy(net)
        Masks(silent, unit_masks(net, place, kept))
        x = randn(7, 6)
        assert np.allclose(small(x).numpy(), silent(x).numpy(), atol=1e-5)
        # Smaller in shapes and in bytes: not a product with zeros.
        assert len(small[place].weight) == keep
        assert small.count() < net.count() or keep == 8
        assert saved_bytes(silent) == saved_bytes(net)
        assert saved_bytes(small) < saved_bytes(net) or keep == 8
        train_small = steps_of(small, SGD(small.parameters(), lr=0.1),
                               lambda: None)
        assert np.isfinite(train_small(x).numpy()).all()


def check_svd(a):
    u, s, vt = svd(a)
    k, size = min(a.shape), np.abs(a).max(initial=0)
    assert (u.shape, s.shape, vt.shape) == (
        (a.shape[0], k), (k,), (k, a.shape[1]))
    assert np.allclose(u * s @ vt, a, atol=1e-12 * size, rtol=0)
    assert np.allclose(u.T @ u, np.eye(k), atol=1e-11)
    assert np.allclose(vt @ vt.T, np.eye(k), atol=1e-11)
    assert (np.diff(s) <= 0).all() and (s >= 0).all()
    assert np.allclose(s, np.linalg.svd(a, compute_uv=False),
                       atol=1e-12 * size, rtol=0)


def test_svd_has_its_properties():
    draw = np.random.default_rng(0)
    for shape in ((5, 5), (9, 4), (4, 9), (1, 6), (6, 1), (1, 1), (12, 7),
                  (0, 3), (3, 0)):
        a = draw.standard_normal(shape)
        check_svd(a)
        check_svd(a * 0)  # nothing has a direction
        check_svd(a * 1e200)
        check_svd(a * 1e-200)
    q = np.linalg.qr(draw.standard_normal((6, 6)))[0]
    for s in ((1, 1, 1, 1, 1, 1), (3, 3, 2, 2, 0, 0), (1, 1e-3, 1e-6, 1e-9,
              1e-13, 0), (5, 1e-30, 1e-30, 0, 0, 0)):
        check_svd(q * s @ q.T)
        check_svd((q * s @ q.T)[:, :4])
        check_svd(np.diag(s).astype(float))
    check_svd(np.ones((4, 6)))
    for wrong in ([[math.nan]], [[1j]], [1.0]):
        assert "finite real numbers" in message(partial(svd, wrong))


def test_masks_have_the_share_that_is_asked_for():
    net = drawn_net()
    weights = prunable(net)
    assert list(weights) == ["layers.0.weight", "layers.3.weight",
                             "layers.5.weight"]
    total = sum(w.size for w in weights.values())
    for sparsity in (0, 0.25, 0.5, 0.9, 1):
        kept = sum(int(m.numpy().sum()) for m in magnitude(
            weights, sparsity).values())
        assert kept == total - round(sparsity * total)
        for name, m in layerwise(weights, sparsity).items():
            n = weights[name].size
            assert int(m.numpy().sum()) == n - round(sparsity * n)
    # All equal: exactly as many, the first ones.
    same = {"w": Tensor([[1.0, -1.0], [1.0, 1.0]])}
    assert magnitude(same, 0.5)["w"].tolist() == [[True, True],
                                                  [False, False]]
    assert "from 0 to 1" in message(lambda: magnitude(weights, 1.5))
    broken = {"w": Tensor([[math.nan, 1.0]])}
    assert "not finite" in message(lambda: magnitude(broken, 0.5))


def test_two_of_four_stay():
    w = Tensor(np.random.default_rng(0).standard_normal((3, 8)))
    mask = two_of_four({"w": w})["w"].numpy().reshape(-1, 4)
    assert (mask.sum(1) == 2).all()
    size = np.abs(w.numpy().reshape(-1, 4))
    assert (np.where(mask, size, np.inf).min(1)
            >= np.where(mask, 0, size).max(1)).all()
    assert two_of_four({"c": zeros(2, 4, 3, 3)})["c"].shape == (2, 4, 3, 3)
    assert "multiple of 4" in message(lambda: two_of_four({"w": w[:, :6]}))


def test_nothing_to_prune_and_more_than_there_is():
    assert magnitude({}, 0.5) == layerwise({}, 0.5) == {}
    assert two_of_four({"w": zeros(0, 4)})["w"].dtype is bool_
    for keep in (-1, 5):
        assert "keep 0 to 4" in message(partial(strongest, Linear(3, 4),
                                                keep))


def masked_run(net):
    x, t = randn(256, 6), Tensor(np.arange(256) % 3)
    return Trainer(net, SGD(net.parameters(), lr=0.1, momentum=0.9),
                   DataLoader(Arrays(x, t), 32, seed=0), loss_of)


def test_masks_are_saved_and_loaded():
    import tempfile
    from pathlib import Path
    net = drawn_net()
    run = masked_run(net)
    run.fit(3)
    masks = magnitude(prunable(net), 0.8)
    run.observers.append(Masks(net, masks))
    run.fit(6)
    assert stays(net, masks)
    with tempfile.TemporaryDirectory() as folder:
        run.save(Path(folder, "run"))
        other = drawn_net()
        manual_seed(0)
        drawn_net()
        again = masked_run(other)
        again.observers.append(Masks(other, {}))
        again.resume(Path(folder, "run"))
    again.fit(9)
    assert stays(other, masks)
    twin = deepcopy(again)  # a copy has masks of its own
    twin.fit(12)
    assert stays(twin.model, masks) and twin.observers[0].model is twin.model


def test_masks_hold_after_an_interrupted_run():
    class Impatient(Observer):
        def look(self, run, row):
            raise KeyboardInterrupt

    run = masked_run(drawn_net())
    run.fit(3)  # it has momentum
    masks = magnitude(prunable(run.model), 0.8)
    run.observers += [Impatient(), Masks(run.model, masks)]
    message(lambda: run.fit(4), KeyboardInterrupt)
    assert stays(run.model, masks)


def test_masks_hold_in_a_captured_step():
    net = drawn_net()
    net.to("lazy")
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    keeper = Masks(net, magnitude(prunable(net), 0.7))
    x, t = randn(32, 6), Tensor(np.arange(32) % 3)

    @jit
    def step(x, t):
        optimizer.zero_grad()
        loss_of(net, x, t).backward()
        optimizer.step()
        keeper.apply()

    for _ in range(5):
        step(x.to("lazy"), t.to("lazy"))
    assert len(step.programs) == 1 and stays(net, keeper.masks)
    net.to("cpu")  # moved, with masks that were made elsewhere
    net[0].weight.detach().assign(randn(8, 6))
    keeper.apply()
    assert stays(net, keeper.masks)
    small = shrunk(net.to("lazy"), 0, strongest(net[0], 3))
    assert str(small(x.to("lazy")).device) == "lazy"


def test_masks_fit_their_model():
    net = drawn_net()
    wrong = {"layers.9.weight": zeros(2) > 0}
    assert "not there" in message(lambda: Masks(net, wrong))
    wrong = {"layers.0.weight": zeros(2) > 0}
    assert "(8, 6)" in message(lambda: Masks(net, wrong))
    for mask in (zeros(8, 6), np.ones((8, 6), bool)):  # floats, no Tensor
        assert "Tensor of bools" in message(
            partial(Masks, net, {"layers.0.weight": mask}))
    assert Masks(net, {}).sparsity == 0
    # What is infinite is silenced like any other number.
    net[0].weight.detach().assign(zeros(8, 6) + math.inf)
    Masks(net, {"layers.0.weight": zeros(8, 6) > 0})
    assert not net[0].weight.numpy().any()


def test_a_shared_or_frozen_weight_has_one_mask():
    net = GPT(GPTConfig(4, 7, 1, 2, 8))
    masks = magnitude(prunable(net), 0.5)
    assert [*masks].count("wte.weight") == 1
    keeper = Masks(net, masks)
    net.wte.weight.requires_grad = False  # frozen later
    keeper.apply()
    assert "wte.weight" not in prunable(net)
    assert (net.wte.weight.numpy()[~masks["wte.weight"].numpy()] == 0).all()


def drawn_pictures_net():
    manual_seed(0)
    net = Sequential(
        Conv2d(2, 4, 3, padding=1), BatchNorm2d(4), relu, MaxPool2d(2),
        Dropout(0.2), Conv2d(4, 6, 3, padding=1, bias=False),
        BatchNorm2d(6), relu, AvgPool2d(2), Flatten(), Linear(24, 3))
    for _ in range(3):  # norms that have seen something
        net(randn(8, 2, 8, 8) * 2 + 1)
    for p in net.parameters():
        p.detach().assign(p.detach() + randn(*p.shape) * 0.3)
    return net.eval()


def test_channels_are_cut_with_their_norms():
    net, x = drawn_pictures_net(), randn(3, 2, 8, 8)
    small, silent = net, deepcopy(net)
    for place in (0, 5):
        kept = strongest(small[place], 2)
        Masks(silent, unit_masks(net, place, kept))
        small = shrunk(small, place, kept)
    assert np.allclose(small(x).numpy(), silent(x).numpy(), atol=1e-4)
    assert small[5].weight.shape == (2, 2, 3, 3)
    assert small[6].running_var.shape == (2,) and small[6].num_features == 2
    assert small[10].weight.shape == (3, 8) and small[10].in_features == 8
    assert net[5].weight.shape == (6, 4, 3, 3)  # as it was
    twin = deepcopy(small)
    twin.load_state_dict(small.state_dict())
    assert small.train()(x).shape == (3, 3)


def test_what_cannot_be_followed_is_refused():
    for layers, words in (
            ((Linear(2, 2), Tensor.sigmoid, Linear(2, 2)), "keep zero"),
            ((Linear(2, 2), LayerNorm(2), Linear(2, 2)), "layers.1"),
            ((Linear(2, 2), BatchNorm1d(2, affine=False), Linear(2, 2)),
             "keep zero"),
            ((Linear(2, 2), relu), "the answer"),
            ((relu, Linear(2, 2)), "layers.0"),
            ((Conv2d(2, 2, 1, groups=2), Conv2d(2, 2, 1)), "groups"),
            ((Conv2d(2, 2, 1), Conv2d(2, 2, 1, groups=2)), "groups")):
        assert words in message(
            partial(shrunk, Sequential(*layers), 0, [True, False])), words


def test_units_that_meet_or_lie_elsewhere_are_refused():
    for layers, words in (
            # Each keeps zeros, and says something else with fewer units.
            ((Linear(2, 2), lambda x: x.cumsum(-1), Linear(2, 2)), "alone"),
            ((Linear(2, 2), lambda x: x / (1 + x.sum(-1, keepdim=True)),
              Linear(2, 2)), "alone"),
            ((Linear(2, 2), lambda x: x.flip(-1), Linear(2, 2)), "alone"),
            ((Linear(2, 2), lambda x: x.reshape(-1, 2, 1, 1),
              Conv2d(2, 2, 1)), "layers.1"),
            # The units lie in another axis than the one that is read.
            ((Linear(2, 2), Flatten(), Linear(6, 2)), "layers.2"),
            ((Linear(2, 2), relu, Conv1d(2, 2, 1)), "layers.2"),
            ((Linear(2, 2), MaxPool2d(1), Linear(2, 2)), "layers.1"),
            ((Conv2d(2, 2, 1), relu, Linear(2, 2)), "layers.2"),
            ((Linear(2, 2), BatchNorm1d(4), Linear(2, 2)), "layers.1")):
        assert words in message(
            partial(shrunk, Sequential(*layers), 0, [True, False])), words


def test_units_are_told_by_bools():
    some, twice = np.array([True, False]), Linear(2, 2)
    assert "as well" in message(
        lambda: shrunk(Sequential(twice, relu, twice), 0, some))
    net = Sequential(Linear(2, 2), relu, Linear(2, 2))
    for wrong in (some[:1], some & False, np.array([0, 1])):
        for use in (shrunk, unit_masks):
            assert "a bool for each" in message(partial(use, net, 0, wrong))
    assert "no layer behind" in message(partial(shrunk, net, -3, some))
    modules = Sequential(Linear(2, 2), Sequential(relu), Linear(2, 2))
    assert len(shrunk(modules, 0, [True, False])[0].weight) == 1


def test_a_frozen_layer_stays_frozen():
    net = Sequential(Linear(2, 2), relu, Linear(2, 2))
    net[0].weight.requires_grad = False
    small = shrunk(net, 0, np.array([False, True]))
    assert not small[0].weight.requires_grad and small[2].weight.requires_grad
    thin = low_rank(net[0], 1)
    assert [p.requires_grad for p in (
        thin[0].weight, thin[1].weight, thin[1].bias)] == [False, False, True]


def test_sparse_products_are_the_dense_ones():
    draw = np.random.default_rng(0)
    for m, n in ((1, 1), (5, 7), (40, 33), (0, 3), (3, 0)):
        for density in (0, 0.2, 1):
            w = draw.standard_normal((m, n)).astype(np.float32)
            w *= draw.random((m, n)) < density
            csr = CSR(Tensor(w))
            assert csr.nbytes == 8 * np.count_nonzero(w) + 8 * (m + 1)
            assert np.array_equal(csr.dense().numpy(), w)
            for columns in ((), (0,), (1,), (31,), (32,), (70,)):
                x = draw.standard_normal((n, *columns)).astype(np.float32)
                assert np.allclose((csr @ Tensor(x)).numpy(), w @ x,
                                   atol=1e-5 * max(n, 1))


def test_a_sparse_layer_is_the_layer():
    for bias in (True, False):
        layer = Linear(6, 4, bias=bias)
        Masks(layer, magnitude(prunable(layer), 0.5))
        sparse = SparseLinear(layer)
        for shape in ((6,), (0, 6), (2, 0, 6), (5, 6), (2, 3, 6)):
            x = randn(*shape)
            assert np.allclose(sparse(x).numpy(), layer(x).numpy(),
                               atol=1e-5)
        twin = SparseLinear(layer)
        twin.load_state_dict(sparse.state_dict())
        assert np.allclose(twin(x).numpy(), layer(x).numpy(), atol=1e-5)
    for wrong in (zeros(2, 5), Tensor(1.0)):
        assert "expected (…, 6)" in message(partial(sparse, wrong))
    x.requires_grad = True
    assert "no gradient" in message(partial(sparse, x), TypeError)
    with no_grad():
        assert not sparse(x).requires_grad


def test_a_sparse_layer_is_a_copy_on_the_processor():
    layer = Linear(3, 2)
    sparse, x = SparseLinear(layer), randn(2, 3)
    before = sparse(x).numpy()
    for p in layer.parameters():
        p.detach().assign(p.detach() + 1)
    assert np.array_equal(sparse(x).numpy(), before)
    with no_grad():
        assert np.allclose(SparseLinear(layer.to("emulated"))(x).numpy(),
                           layer.to("cpu")(x).numpy(), atol=1e-5)


def test_without_a_compiler_sparse_products_are_dense():
    from unittest import mock
    csr = CSR(Tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]))
    with mock.patch.dict(CSR.forward.__globals__,
                         sparse_product=lambda: None):
        for x in (Tensor([1.0, 2.0, 3.0]), zeros(3, 0), randn(3, 5)):
            assert np.allclose((csr @ x).numpy(), csr.dense().numpy()
                               @ x.numpy(), atol=1e-5)
        csr.columns[1] = -1
        assert "damaged" in message(partial(csr, zeros(3)))


def test_a_damaged_matrix_is_refused():
    for name, value in (("columns", 3), ("columns", -1), ("starts", 9)):
        csr = CSR(Tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]))
        getattr(csr, name)[1] = value
        assert "damaged" in message(partial(csr, Tensor([1.0] * 3)))
        assert "damaged" in message(csr.dense)
    for name in ("values", "columns", "starts"):  # one of them too short
        csr = CSR(Tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]))
        setattr(csr, name, getattr(csr, name)[:2])
        assert "int64 (3,)" in message(partial(csr, Tensor([1.0] * 3)))
    assert "a matrix" in message(lambda: CSR(zeros(3)))
    csr = CSR(Tensor([[1.0, 0.0]]))
    for x in (Tensor([1.0]), Tensor([1, 2]), zeros(2, 2, 2)):
        assert "expected float32 (2, …)" in message(partial(csr, x))


def test_rank_by_rank_it_comes_nearer():
    manual_seed(0)
    layer, x = Linear(5, 7), randn(4, 5)
    layer.bias.detach().assign(randn(7))
    apart = [np.linalg.norm(low_rank(layer, r)(x).numpy()
                            - layer(x).numpy()) for r in range(1, 6)]
    assert apart[-1] < 1e-5 and apart[0] > 1e-2
    w = layer.weight.numpy()
    left = [np.linalg.norm(w - p[1].weight.numpy() @ p[0].weight.numpy())
            for p in (low_rank(layer, r) for r in range(1, 6))]
    s = np.linalg.svd(w, compute_uv=False)
    assert np.allclose(left, [np.linalg.norm(s[r:]) for r in range(1, 6)],
                       atol=1e-5)  # no matrix of that rank is nearer
    two = low_rank(layer, 2)
    assert two.count() == 2 * 12 + 7
    assert low_rank(Linear(3, 2, bias=False), 1)[1].bias is None
    for rank in (0, 6, 2.0):
        assert "1 to 5" in message(partial(low_rank, layer, rank))


def test_a_teacher_pulls_towards_itself():
    manual_seed(0)
    teacher, x = Sequential(Linear(4, 3), Dropout(0.5)), randn(16, 4)
    t = Tensor(np.arange(16) % 3)
    before = [p.numpy().copy() for p in teacher.parameters()]
    student = Linear(4, 3)
    loss = distilled(teacher, 2.0, 1.0)
    optimizer = SGD(student.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        loss(student, x, t).backward()
        optimizer.step()
    # Not the weights: to all logits a number may be added.
    said = [net(x).softmax(-1).numpy() for net in (student, teacher[0])]
    assert np.abs(said[0] - said[1]).max() < 0.03
    assert teacher.training and all(p.grad is None
                                    for p in teacher.parameters())
    assert all(np.array_equal(a, p.numpy()) for a, p in zip(
        before, teacher.parameters()))
    # A share of nothing is the plain loss.
    assert math.isclose(distilled(teacher, 3.0, 0.0)(student, x, t).item(),
                        loss_of(student, x, t).item(), rel_tol=1e-5)
    for wrong in ((0, 0.5), (1, 1.5), (math.inf, 0.5)):
        assert "temperature above 0" in message(
            partial(distilled, teacher, *wrong))


def test_the_front_is_not_dominated():
    draw = np.random.default_rng(0)
    costs = draw.integers(0, 5, (40, 3))
    for row, on in zip(costs, pareto_front(costs)):
        beaten = any((o <= row).all() and (o < row).any() for o in costs)
        assert on != beaten
    for wrong in ([1, 2], [[1, math.nan]]):
        assert "none of them NaN" in message(partial(pareto_front, wrong))
