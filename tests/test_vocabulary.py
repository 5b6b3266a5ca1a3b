"""The vocabulary against PyTorch's: one line, typed for both.

A new word is one row. Each row is evaluated twice, with x, y, z and the
others as tensors of ours and as PyTorch's, and `m` as the package.
"""

import copy
import math

import numpy as np
import pytest

import companion
from companion import Tensor, grad, nn
from companion.dtype import bfloat16, float16, float32, float64

pytestmark = [pytest.mark.needs("torch")]

# Elementwise: where the function is smooth.
SMOOTH = {
    "log1p": (-0.9, 5), "expm1": (-3, 3), "exp2": (-5, 5), "log2": (0.1, 9),
    "log10": (0.1, 9), "sinh": (-3, 3), "cosh": (-3, 3), "tan": (-1.5, 1.5),
    "asinh": (-5, 5), "acosh": (1.1, 9), "atanh": (-0.9, 0.9),
    "atan": (-5, 5), "asin": (-0.9, 0.9), "acos": (-0.9, 0.9),
    "arctan": (-1, 1), "arcsin": (-0.5, 0.5), "arccos": (-0.5, 0.5),
    "neg": (-1, 1), "exp": (-2, 2), "sin": (-9, 9), "sqrt": (0.1, 4),
    "sigmoid": (-5, 5), "tanh": (-3, 3), "erf": (-2, 2), "square": (-3, 3),
}
# Elementwise, constant between its steps, or bools.
STEPS = ("round", "trunc", "fix", "floor", "ceil", "isinf",
         "isfinite", "isnan", "nan_to_num", "abs", "logical_not", "frac")
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5,
           1.5, 2.5, -2.5, 1e-7, -1e-7, 3e-3, 20.0, -20.0, 88.9, -88.9,
           1e3, -1e3, 0.625, 0.66, 2.4142, 0.99999, 2.0, 4.0, 8.0, 1e10, 6e4]

# x (3, 4), y (3, 4), z (4, 5), w (4,), v (3, 1), q (2, 3, 4): floats, and
# p positive like x; i (3, 2) places along axis 1 of x, k (5,) along 0 of
# z; b bools and n whole numbers like x.
WORDS = """
x.gather(1, i)                       gather
x.gather(dim=1, index=i[:2])
x.T.gather(0, i.T)
m.take_along_dim(x, i[:1], 1)        take_along_axis
z.index_select(0, k)                 index_select
x.index_select(1, k)
x.scatter_add(1, i, y[:, :2])        scatter_add
x.T.scatter_add(0, i.T, y.T[:2])
x.detach().scatter_add(1, i[:2, :1], y.detach())
x.scatter(1, u, y[:, :3])            scatter
x.scatter(1, u[:2], 3.0)
x.T.scatter(0, u.T, y.T[:3])
x.detach().scatter(1, u[:2, :1], y.detach())
z.index_add(0, k, z[k])              index_add
x.sort(1)                            sort argsort
x.sort(0, descending=True)
x.T.sort()
x.argsort(dim=-1, descending=True)
x.topk(2)                            topk
x.topk(3, 0, largest=False)
x.topk(0), x.topk(4)
x.kthvalue(2, 1)                     kthvalue
x.isclose(x + 1e-7), x.isclose(y)    isclose
m.tensor(x.allclose(x + 1e-9))       allclose
x.cumprod(1), x.cumprod(0)           cumprod
x.cumsum(1), q.cumsum(0), q.cumsum(1), x.T.cumsum(0), x.cumsum(-1)
x.repeat(1, 80).cumsum(1), z.repeat(60, 1).cumsum(0)
x.cumsum(1, dtype=m.float64), n.cumsum(0), n.cumsum(1, dtype=m.float32)
x.median(), x.median(1), x.median(dim=0, keepdim=True)   median
q.unbind(1), q.unbind(dim=-1), v.unbind(1)
m.max(x, y), m.min(x, y), m.max(x), x.amax(1), x.amin(0)
x.softmax(1, dtype=m.float64), x.log_softmax(dim=0, dtype=m.float64)
x.logcumsumexp(1)                    logcumsumexp
q.logcumsumexp(dim=1)
x.cummax(1), x.cummin(0)             cummax cummin
x.logsumexp(1), x.softmax(1)
m.div(x, y), m.div(x, y, rounding_mode="floor")  div
m.div(x, y, rounding_mode="trunc")
n.div(n * 0 + 3, rounding_mode="trunc")
n.div(n * 0 - 3, rounding_mode="floor")
x.masked_select(b)                   masked_select
b.nonzero(), n.nonzero()             nonzero
b.nonzero(as_tuple=True), n[:0].nonzero(as_tuple=True)
x.repeat_interleave(3, 1)            repeat_interleave
x.repeat_interleave(2)
x.repeat_interleave(n[:, 0].abs(), 0)
x.unfold(1, 3, 1), q.unfold(2, 2, 2)  unfold
q.unfold(0, 1, 1)
q.unflatten(2, (2, -1))              unflatten
x.copysign(y)                        copysign
x.lerp(y, 0.3), x.lerp(y, 0.7), x.lerp(y, p)   lerp
m.std_mean(x, 1), m.var_mean(x)       std_mean var_mean
x.atan2(y), y.atan2(x)               atan2
x.hypot(y)                           hypot
x.logaddexp(y)                       logaddexp
x.fmod(0.7), x.fmod(y), n.fmod(3)    fmod
x.norm(), x.norm(dim=1), x.norm(1), x.norm(p=3, dim=0)   norm
x.norm(math.inf), x.norm(0, dim=1), x.norm("fro")
x.diff(), q.diff(2, dim=0)           diff
x.diagonal(), q.diagonal(0, 1, 2), q.diagonal(1, 2, 0)   diagonal
x.diagonal(-1), x.diagonal(9), x.trace()   trace
x.diag(), w.diag(), w.diag(1), w.diag(-2)  diag
q.movedim(0, 2), q.movedim((0, 2), (1, 0))  movedim
x.select(1, 2), q.select(-1, -1)     select
x.t(), x.swapaxes(0, 1), q.ravel()   t swapaxes ravel
x.amax(1), x.amin((0, 1))            amax amin
n.count_nonzero(), n.count_nonzero(1)  count_nonzero
x.add(y, alpha=2), x.sub(y), x.mul(2), x.pow(2), p.pow(y)  add sub mul pow
n.remainder(3), n.floor_divide(2)    remainder floor_divide
x.eq(x), x.ne(y), x.lt(y), x.le(y), x.gt(y), x.ge(x)  eq ne lt le gt ge
n.logical_and(b), n.logical_or(b), n.logical_xor(b)
n.bitwise_and(3), n.bitwise_or(3), n.bitwise_xor(3)
x.mm(z), q.bmm(q.mT)                 mm bmm
x.clip(-0.5, 0.5), x.absolute(), x.negative()  clip absolute negative
x.float(), x.double(), (x * 9).long(), b.int(), n.bool()
m.tensor(x.dim()), m.tensor(x.element_size())
x.detach().unique(), n.unique()               unique
m.einsum("ij,jk->ik", x, z)          einsum
m.einsum("ij,jk", x, z), m.einsum("ij->ji", x), m.einsum("ij->", x)
m.einsum("bij,bjk->bik", q, q.mT), m.einsum("bij,jk->bki", q, z)
m.einsum("...ij,jk->...ik", q, z), m.einsum("i,j->ij", w, w)
m.einsum("ii->i", x[:, :3]), m.einsum("ii", x[:, :3])
m.einsum("ij,ij->i", x, y), m.einsum("ij,jk,lk->il", x, z, x @ z)
m.einsum("bij,bkj->bik", q, q), m.einsum("ij,kj->ik", v, x)
m.einsum("...i->...", q), m.einsum("bii->b", q[:, :, :3])
"""
# nn.functional is F; r (2, 3, 5, 6) pictures, c (2,) their classes, t (3,)
# classes of x; g (2, 3, 4) is q's classes by its second axis, e (2, 4).
NETWORKS = """
F.relu6(x * 4), F.hardtanh(x)
F.hardswish(x * 3), F.hardsigmoid(x.detach() * 3)
F.softplus(x), F.softplus(x * 9, beta=3, threshold=2)
F.logsigmoid(x), F.mish(x), F.silu(x), F.gelu(x), F.relu(x)
F.elu(x), F.elu(x, 0.5), F.celu(x, 0.5), F.selu(x)
F.softsign(x), F.tanhshrink(x), F.softshrink(x), F.hardshrink(x)
F.threshold(x, 0.1, 7), F.prelu(x, w[:1]), F.prelu(x, w), F.leaky_relu(x)
F.glu(x), F.glu(r.mT, dim=2), F.softmin(x, dim=1), F.softmax(x, dim=0)
F.pad(x, (1, 2)), F.pad(x, (1, 0, 2, 3), value=5.0), F.pad(x, (-1, 1))
F.pad(x, (2, 3), mode="reflect"), F.pad(r, (1, 2, 4, 3), "reflect")
F.pad(x, (5, 1), mode="replicate"), F.pad(r, (4, 3, 0, 0), mode="circular")
F.pad(r, (1, 2, 3, 4), mode="replicate"), F.pad(r, (1, 1, 1, 1), "circular")
F.interpolate(r, scale_factor=2), F.interpolate(r, (7, 4)), F.interpolate(q, 9)
F.interpolate(r, (7, 3), mode="bilinear"), F.interpolate(q, 7, mode="linear")
F.interpolate(r, (9, 4), mode="bilinear", align_corners=True)
F.interpolate(r, scale_factor=2.5, mode="bilinear")
F.cross_entropy(x, t), F.cross_entropy(q, e)
F.cross_entropy(x, t.masked_fill(t == t[0], -100))
F.cross_entropy(x, t, weight=p[0].detach()), F.cross_entropy(x, p.softmax(1))

F.cross_entropy(q, e, p[0, :3].detach(), ignore_index=1, reduction="none")
F.cross_entropy(q, e, label_smoothing=0.1, ignore_index=1)
F.nll_loss(x, t), F.nll_loss(q, e, reduction="sum")
F.nll_loss(x, t, p[0].detach())
F.l1_loss(x, y), F.huber_loss(x, y, delta=0.5)
F.smooth_l1_loss(x, y, beta=0.3)
F.smooth_l1_loss(x, y, beta=0.0), F.mse_loss(x, y, reduction="sum")
F.binary_cross_entropy(x.sigmoid(), p.clamp(0, 1))
F.binary_cross_entropy_with_logits(x, p.clamp(0, 1))
F.kl_div(x, p), F.kl_div(x, y, log_target=True)
F.kl_div(x, p, reduction="batchmean")
F.normalize(x), F.normalize(x, p=1, dim=0), F.cosine_similarity(x, y)
F.cosine_similarity(x, y, dim=0), F.linear(x, y), F.linear(x, y, w[:3])
F.layer_norm(x, (4,)), F.layer_norm(q, (3, 4), x, y), F.dropout(x, 0.5, False)
F.softmax(x, dim=1, dtype=m.float64), F.log_softmax(x, -1, dtype=m.float64)
F.interpolate(r, (7, 4), mode="bicubic")
F.interpolate(r, (9, 11), mode="bicubic", align_corners=True)
F.interpolate(r, scale_factor=2, mode="bicubic")
F.interpolate(r, (1, 3), mode="bicubic", align_corners=True)
F.unfold(r, 2), F.unfold(r, (3, 2), padding=1, stride=2)
F.unfold(r, 2, dilation=(2, 3), padding=(1, 0)), nn.Unfold(3, stride=1)(r)
F.conv2d(r, q.unsqueeze(2)), F.max_pool2d(r, 2), F.avg_pool2d(r, 2)
nn.ReLU()(x), nn.ReLU(inplace=True)(x * 1), nn.GELU()(x), nn.Sigmoid()(x)
nn.Softmax(dim=1)(x), nn.Softmax(0)(x), nn.LogSoftmax(dim=-1)(x), nn.Tanh()(x)
nn.LeakyReLU(0.2)(x), nn.LeakyReLU(negative_slope=0.3)(x), nn.ELU(0.4)(x)
nn.Hardtanh(-0.3, 0.2)(x), nn.Softplus(2)(x), nn.GLU()(x), nn.Mish()(x)
nn.CrossEntropyLoss()(x, t), nn.CrossEntropyLoss(label_smoothing=0.1)(x, t)
nn.CrossEntropyLoss(weight=p[0].detach())(x, t), nn.MSELoss()(x, y)
nn.L1Loss()(x, y)
nn.BCEWithLogitsLoss()(x, p.clamp(0, 1)), nn.NLLLoss()(x, t)
nn.HuberLoss()(x, y)
nn.KLDivLoss(reduction="batchmean")(x, p), nn.SmoothL1Loss()(x, y)
nn.Identity()(x), nn.Unflatten(1, (2, 2))(x), nn.Flatten()(q)
nn.Upsample(scale_factor=2)(r), nn.Threshold(0.1, 2.0)(x), nn.ReLU6()(x)
x.std(unbiased=False), x.var(1, unbiased=True), x.sum(dtype=m.float64)
x.sum(1, dtype=m.float64), n.sum(dtype=m.int32), x.flip(dims=(0, 1))
q.flip([1])
x.roll(1), x.roll(shifts=1, dims=1), x.roll((1, -2), (0, 1)), x.roll(5, -1)
x.to(m.float64), x.to(x.device, m.float16), x.to(dtype=m.float16), x.half()
m.tensor(x.size(0)), m.tensor(x.size(-1)), m.tensor(x.size())
m.tensor([1.0, 2.0], requires_grad=True) * 2, m.tensor(x.nbytes)
m.exp(x), m.softmax(x, dim=1), m.tril(x), m.matmul(x, z), m.flatten(q, 1)
m.sum(x, dim=1), m.mean(x), m.abs(x), m.sqrt(p), m.maximum(x, y)
m.clamp(x, 0, 1)
m.sum(x, 1, keepdim=True), m.transpose(x, 0, 1), m.squeeze(v), m.norm(x)
m.topk(x, 2), m.sort(x), m.argmax(x, dim=1), m.unsqueeze(x, 0), m.std(x)
m.where(x > 0, x, y), m.cat([x, y], dim=1), m.stack([x, y]), m.outer(w, w)
m.meshgrid(w, w[:3], indexing="ij"), m.meshgrid(w, w[:2], indexing="xy")
m.meshgrid([w, w[:3]], indexing="ij"), m.meshgrid((w,), indexing="ij")
z.unfold(dimension=0, size=2, step=1)
x.clone().add_(y), x.clone().mul_(2), x.clone().zero_(), x.clone().fill_(3)
x.clone().copy_(y), (x * 1).clamp_(min=0), (x * 1).relu_(), (p * 1).sqrt_()
(x * 1).sub_(y, alpha=2), (x * 1).div_(2), (x * 1).masked_fill_(b, 0.0)
(x * 1).exp_(), (x * 1).tanh_(), (x * 1).sigmoid_(), (x * 1).neg_()
x.data * 2, x.clone().detach_(), (x * 1).lerp_(y, 0.3), (p * 1).log_()
(x * 1).square_(), (x * 1).abs_(), (p * 1).pow_(2), (x * 1).round_()
(x * 1).floor_(), (x * 1).ceil_(), (x * 1).scatter_(1, u, 2.0)
(x * 1).scatter_add_(1, i, y[:, :2]), (z * 1).index_add_(0, k, z[k])
x.asinh(), x.arcsinh(), x.atan(), x.arctan(), x.tanh().atanh().sinh()
x.tanh().asin(), x.tanh().arcsin(), x.tanh().acos(), x.tanh().arccos()
(x.abs() + 1).acosh(), (x.abs() + 2).arccosh(), (x / 9).arctanh(), x.cosh()
x.exp2(), x.expm1(), p.log1p(), p.log2(), p.log10(), x.tan(), x.neg()
x.round(), x.round(decimals=1), x.trunc(), x.fix(), x.frac(), x.isfinite()
x.isinf(), x.arctan2(y), x.logical_not(), b.bitwise_not(), n.bitwise_not()
x.divide(2), x.true_divide(y), x.multiply(y), x.subtract(y), x.type_as(n)
x.moveaxis(0, 1), x.swapdims(0, 1), x.bfloat16()
m.tensor(x.detach().cpu().tolist())
m.tensor(x.equal(x))
m.empty(2, 3).fill_(1), m.rand_like(x) * 0, m.randn_like(x) * 0
m.zeros(0, 3).sort(1), m.zeros(2, 0).sort(), m.tensor(2.0).sort()
m.zeros(2, 0).gather(1, m.zeros(2, 0).long()), m.zeros(1, 1).topk(1)
m.zeros(0, 3).topk(2), m.zeros(2, 3).topk(0, 0), m.tensor(2.0).topk(1)
m.einsum("ij,jk->ik", m.zeros(2, 0), m.zeros(0, 3)), m.zeros(0).nonzero()
m.zeros(0, 3).scatter_add(0, m.zeros(0, 3).long(), m.zeros(0, 3))
m.zeros(3, 2).scatter(0, m.zeros(0, 2).long(), m.zeros(0, 2))
m.zeros(3, 2).scatter(0, m.zeros(1, 2).long(), m.ones(2, 2))
m.zeros(0).cumprod(0), m.zeros(0, 3).logcumsumexp(0), m.zeros(1).cummax(0)
m.zeros(0, 2).cummin(1), m.tensor(2.0).cumprod(0), m.zeros(0, 3).diff(dim=0)
m.zeros(2, 0).norm(dim=1), m.zeros(0).norm(), m.tensor(2.5).round()
m.zeros(0, 3).unfold(1, 2, 1), m.zeros(0, 2).repeat_interleave(2, 0)
m.zeros(0, 4).unflatten(1, (2, 2)), m.zeros(0, 2).roll(1, 0)
m.zeros(0).roll(2)
m.zeros(3, 0).diagonal(), m.zeros(0, 0).trace(), m.zeros(0).diag()
m.zeros(0).unique(), m.zeros(0, 2).masked_select(m.zeros(0, 2) == 0)
F.pad(m.zeros(0, 2), (1, 1)), F.pad(m.zeros(1, 1), (2, 2), mode="replicate")
m.tensor(0.0).log1p(), m.zeros(0).log1p(), m.zeros(0, 2).round()
m.bernoulli(m.where(x > 0, 1.0, 0.0)), m.bernoulli(b.float())
"""
FLOAT32_INSIDE = [
    "F.hardswish(x * 3), F.hardsigmoid(x.detach() * 3)"]  # in PyTorch's
ROWS = [line.partition("  ")[0].strip()
        for line in (WORDS + NETWORKS).splitlines() if line]


def arrays(seed=0):
    """The operands by name, the same for both."""
    rng = np.random.default_rng(seed)
    names = {"x": (3, 4), "y": (3, 4), "z": (4, 5), "w": (4,), "v": (3, 1),
             "q": (2, 3, 4), "r": (2, 3, 5, 6)}
    found = {name: rng.standard_normal(s) for name, s in names.items()}
    found["p"] = rng.random((3, 4)) + 0.1
    return found, {
        "i": rng.integers(0, 4, (3, 2)), "k": rng.integers(0, 3, 5),
        "u": rng.permuted(np.tile(np.arange(4), (3, 1)), axis=1)[:, :3],
        "b": rng.random((3, 4)) < 0.5, "t": rng.integers(0, 4, 3),
        "e": rng.integers(0, 3, (2, 4)), "n": rng.integers(-4, 5, (3, 4))}


def results(value):
    """All the tensors in what a row gives."""
    if isinstance(value, (tuple, list)):
        return [each for part in value for each in results(part)]
    return [value]


def here(row, dtype, device="cpu"):
    """What a row gives with our tensors, and the floats it was given.

    All but float64 lie in memory in another order than their axes.
    """
    floats, others = arrays()
    given = {k: (Tensor(a, dtype, device) if dtype is float64 else Tensor(
        a.T, dtype, device).T).requires_grad_() for k, a in floats.items()}
    names = {"m": companion, "math": math, "nn": nn, "F": nn.functional}
    return results(eval(row, names, given | {
        k: Tensor(a, device=device) for k, a in others.items()})), given


def evaluated(row, dtype):
    """What a row gives here and there, with the floats it was given."""
    import torch

    floats, others = arrays()
    wide = getattr(torch, str(dtype))
    theirs = {k: torch.tensor(a).to(wide).requires_grad_()
              for k, a in floats.items()}
    ours, mine = here(row, dtype)
    peers = results(eval(row, {"m": torch, "math": math, "nn": torch.nn,
                               "F": torch.nn.functional}, theirs | {
        k: torch.tensor(a) for k, a in others.items()}))
    return ours, peers, mine, theirs


def agree(ours, theirs, tolerance):
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    expected = theirs.detach().double().numpy()
    assert ours.shape == expected.shape
    np.testing.assert_allclose(
        ours.detach().cast(float64).numpy(), expected, tolerance, tolerance)


TOLERANCE = {float64: 1e-12, float32: 1e-5, bfloat16: 2e-2, float16: 2e-3}


@pytest.mark.parametrize("row", ROWS)
def test_a_word_is_what_it_is_there(row):
    for dtype in (float32, float64, float16, bfloat16):
        ours, peers, _, _ = evaluated(row, dtype)
        for a, b in zip(ours, peers, strict=True):
            agree(a, b, TOLERANCE[dtype])


@pytest.mark.parametrize("row", ROWS)
def test_gradients_and_their_gradients(row):
    import torch

    ours, peers, mine, theirs = evaluated(row, float64)
    y, z = [sum((t * t).sum() for t in found if t.requires_grad)
            for found in (ours, peers)]
    assert isinstance(y, int) == isinstance(z, int), "asked of one only"
    if isinstance(y, int):
        return
    first = grad(y, list(mine.values()), create_graph=True)
    there = torch.autograd.grad(z, list(theirs.values()), create_graph=True,
                                allow_unused=True)
    for a, b in zip(first, there):
        if a is None or b is None:  # one of them knows no slope: of nothing
            assert all(t is None or not t.any() for t in (a, b))
        else:
            agree(a, b, 1e-6 if row in FLOAT32_INSIDE else 1e-9)
    y, z = [sum((g * g).sum() for g in found if g is not None)
            for found in (first, there)]
    if not (getattr(y, "requires_grad", 0) and z.requires_grad):
        return
    for a, b in zip(grad(y, list(mine.values())), torch.autograd.grad(
            z, list(theirs.values()), allow_unused=True)):
        if a is not None and b is not None:
            agree(a, b, 1e-6 if row in FLOAT32_INSIDE else 1e-8)


@pytest.mark.parametrize("name", [*SMOOTH, *STEPS])
@pytest.mark.parametrize("dtype", [float64, float32, float16, bfloat16],
                         ids=str)
def test_special_values(name, dtype):
    """NaN, infinities and corners, in every layout of memory."""
    import torch

    values = np.array(SPECIAL)
    if name in ("sin", "tan"):
        values = values[~(abs(values) > 100)]
    x = Tensor(values, float64).cast(dtype)
    t = torch.tensor(values).to(getattr(torch, str(dtype)))
    for a, b in ((x, t), (x.reshape(-1, 2).T, t.reshape(-1, 2).T),
                 (x[::3], t[::3]), (x[:0], t[:0]),
                 (x[:1].expand(2, 3), t[:1].expand(2, 3))):
        agree(getattr(a, name)(), getattr(b, name)(), TOLERANCE[dtype] / 10
              if dtype in (float32, float64) else TOLERANCE[dtype])


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes(name):
    import torch

    low, high = SMOOTH[name]
    values = np.append(np.linspace(low, high, 41), [1.5][:low > 1])
    x = Tensor(values, float64).requires_grad_()
    t = torch.tensor(values, requires_grad=True)
    y, z = getattr(x, name)(), getattr(t, name)()
    (g,), (h,) = grad(y.sum(), [x], create_graph=True), torch.autograd.grad(
        z.sum(), [t], create_graph=True)
    agree(g, h, 1e-11)
    if g.requires_grad and h.requires_grad:
        (g,), (h,) = grad(g.sum(), [x]), torch.autograd.grad(h.sum(), [t])
        agree(g, h, 1e-9)


@pytest.mark.parametrize("row", ROWS)
def test_words_run_on_every_device(row, device):
    """The same numbers there as here, and the same gradients."""
    (mine, x), (others, y) = here(row, float32), here(row, float32, device)
    for a, b in zip(mine, others, strict=True):
        assert b.dtype is a.dtype and b.shape == a.shape
        np.testing.assert_allclose(b.detach().cast(float64).numpy(),
                                   a.detach().cast(float64).numpy(), 1e-5,
                                   1e-5)
    totals = [sum((t * t).sum() for t in found if t.requires_grad)
              for found in (mine, others)]
    if isinstance(totals[0], int):
        return
    for total in totals:
        total.backward()
    for name in x:
        a, b = x[name].grad, y[name].grad
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(b.numpy(), a.numpy(), 1e-4, 1e-4)


# These look at values: where things go, or how many there are.
READ = "sort kthvalue topk unique .nonzero masked_select repeat_interleave(n"


@pytest.mark.slow
@pytest.mark.parametrize("row", [
    r for r in ROWS if "m.tensor" not in r][::4])  # C is compiled for each
def test_words_run_inside_a_program(row):
    floats, others = arrays()
    keys, names = [*floats, *others], {
        "m": companion, "math": math, "nn": nn, "F": nn.functional}

    @companion.jit
    def program(*given):
        return results(eval(row, names, dict(zip(keys, given))))

    given = [Tensor(a, None if k in others else float32)
             for k, a in (floats | others).items()]
    constant = not {*keys} & {*compile(row, "row", "eval").co_names}
    if constant or any(word in row for word in READ.split()):
        with pytest.raises(ValueError, match="asked nothing" if constant
                           else "a value was read inside"):
            program(*given)
        return
    expected, _ = here(row, float32)
    for _ in range(2):  # captured, and replayed
        for a, b in zip(expected, program(*given), strict=True):
            np.testing.assert_allclose(
                b.cast(float64).numpy(), a.detach().cast(float64).numpy(),
                1e-5, 1e-5)


ORDERED = [
    "x.sort(0)", "x.sort(0, descending=True)", "x.argsort(dim=0, stable=True)",
    "x.argsort(dim=0, descending=True, stable=True)", "x.topk(3, 0).values",
    "x.topk(4, 0, largest=False).values", "x.cummax(0)", "x.cummin(0)",
    "x.cumprod(0)", "x.kthvalue(2, 0).values", "x.logcumsumexp(0)",
    "x.cumsum(0)", "x.median()", "x.nan_to_num()", "x.amax(0)",
]


@pytest.mark.parametrize("dtype", [float32, bfloat16, companion.int64],
                         ids=str)
@pytest.mark.parametrize("text", ORDERED)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_order_of_equals_and_of_nothing(text, dtype):
    """Ties, NaN and infinities; of one element, and of none."""
    import torch

    ties = [2.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]
    drawn = [ties] if not dtype.is_float else [
        ties, [math.nan, 1.0, math.inf, math.nan, -math.inf, 1.0, -0.0],
        [-math.inf, -math.inf, math.inf, 1.0, 2.0, math.nan, 3.0]]
    if not dtype.is_float and "logcumsumexp" in text:
        return
    for values in drawn:
        values = np.array(values)
        x = Tensor(values, float64).cast(dtype)
        t = torch.tensor(values).to(getattr(torch, str(dtype)))
        for a, b in ((x, t), (x.flip(), t.flip(0)),
                     (x.reshape(-1, 1).expand(7, 2), t.reshape(-1, 1).expand(
                         7, 2))):
            for ours, theirs in zip(results(eval(text, {"x": a})),
                                    results(eval(text, {"x": b}))):
                agree(ours, theirs, TOLERANCE.get(dtype, 0))
    for shape in ((0, 3), (1, 3), (5, 0)):
        x, t = Tensor(np.ones(shape), dtype), torch.ones(shape).to(
            getattr(torch, str(dtype)))
        if min(shape) and "cum" in text or "sort" in text:
            for ours, theirs in zip(results(eval(text, {"x": x})),
                                    results(eval(text, {"x": t}))):
                agree(ours, theirs, 0)


def in_both(text, **arrays):
    """The results of `text` with these arrays as tensors here and there."""
    import torch

    names = {"math": math}
    return [results(eval(text, names | {"m": m, "F": F} | {
        k: m.from_numpy(np.array(a)) for k, a in arrays.items()}))
        for m, F in ((companion, nn.functional),
                     (torch, torch.nn.functional))]


WHOLE = ["x.fmod(y)", "x.fmod(-128)", "x.fmod(3)", "x.isclose(y)",
         "x.copysign(y)", "x.copysign(-1.0)", "x.atan2(y)",
         "x.div(y, rounding_mode='trunc')", "x.remainder(y)"]


@pytest.mark.parametrize("text", WHOLE)
def test_the_smallest_whole_number_has_no_absolute_value(text):
    few = np.array([-128, -127, -7, -1, 1, 3, 7, 100, 127], np.int8)
    x, y = [a.ravel() for a in np.meshgrid(few, few)]
    # Of -128 / -1 the C of others may stop the process.
    here, there = in_both(text, x=x[y != -1], y=y[y != -1])
    for a, b in zip(here, there, strict=True):
        agree(a, b, 1e-6)


EDGES = ["x.hypot(y)", "x.hypot(y.to(m.float64))", "x.atan2(y)",
         "x.atan2(y.to(m.float64))", "x.nan_to_num(math.inf)",
         "x.nan_to_num(nan=-math.inf, neginf=1.0)", "x.acosh()",
         "x.to(m.float64).acosh()", "x.copysign(y)", "x.logaddexp(y)"]


@pytest.mark.parametrize("text", EDGES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_edges_of_two_operands(text):
    few = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -2.5, 1e-7,
                    -1e-7, 1e30, -1e30, 3e38], np.float32)
    x, y = [a.ravel() for a in np.meshgrid(few, few)]
    here, there = in_both(text, x=x, y=y)
    for a, b in zip(here, there, strict=True):
        agree(a, b, 1e-6)


@pytest.mark.parametrize("name", ["asinh", "atanh", "atan", "asin", "sinh",
                                  "expm1", "tan", "round", "trunc"])
def test_odd_functions_keep_the_sign_of_zero(name):
    y = getattr(Tensor([-0.0, 0.0]), name)().numpy()
    assert np.signbit(y).tolist() == [True, False]
    rest = Tensor([-0.0, -4.0, 4.0]).fmod(2.0).numpy()
    assert np.signbit(rest).tolist() == [True, True, False]


ONE = ["x.sort(0)", "x.topk(1)", "x.kthvalue(1)", "x.cummax(0)",
       "x.cummin(-1)", "x.kthvalue(1, keepdim=True)"]


@pytest.mark.parametrize("text", ONE)
def test_one_number_is_a_row_of_one(text):
    here, there = in_both(text, x=np.float32(3))
    for a, b in zip(here, there, strict=True):
        agree(a, b, 0)


def test_steps_through_memory():
    x = companion.zeros(2, 3, 4).transpose(0, 2)
    assert x.stride() == (1, 4, 12) and x.stride(-1) == 12
    assert not x.is_contiguous() and x.contiguous().is_contiguous()


REFUSED = {
    "x.diff(-1)": "n >= 0", "x.kthvalue(1, 5)": "axis 5 does not",
    "x.index_select(0, x > 0)": "integer dtype",
    "x.index_select(0, i.unsqueeze(0))": "a vector of indices",
    "x.index_add(0, x > 0, x)": "integer dtype",
    "x.scatter_add(0, i, 2.0)": "one dtype", "x[:0].median()": "no middle",
    "i.add_(1.5)": "does not fit into int64", "i.div_(2)": "does not fit",
    "(x > 0).add_(1)": "does not fit into bool",
    "i.masked_fill_(i > 0, 0.5)": "does not fit", "i.exp_()": "does not fit",
    "F.unfold(q, 2)": "expected pictures", "x[:0].median(0)": "no middle",
    "x.median(1)": "axis 1 does not",
    "F.glu(x)": "no halves", "F.layer_norm(q, (2,))": "last axes of",
    "F.interpolate(q.unsqueeze(0), 0)": "above 0",
    "F.interpolate(q.unsqueeze(0), (2, 2))": "each of the 1",
    "nn.LeakyReLU(1, 2, 3)": "LeakyReLU.*too many",
    "nn.Softmax()": "Softmax.*axis",
}


@pytest.mark.parametrize("text", REFUSED)
def test_wrong_use_is_told_in_a_line(text):
    names = {"x": Tensor([1.0, 2.0, 3.0]), "i": Tensor([0, 1, 2]), "nn": nn,
             "q": companion.zeros(2, 3), "F": nn.functional}
    with pytest.raises((ValueError, TypeError, IndexError),
                       match=REFUSED[text]):
        eval(text, names)
    assert names["i"].tolist() == [0, 1, 2]


def test_what_is_written_over_a_constant_has_a_gradient():
    w, y = Tensor([1.0, 2.0], requires_grad=True), companion.ones(2)
    y.mul_(w).add_(w, alpha=2)
    y.sum().backward()
    assert w.grad.tolist() == [3.0, 3.0] and y.tolist() == [3.0, 6.0]
    z = companion.zeros(3).index_add_(0, Tensor([1, 1]), w.detach(), alpha=2)
    assert z.tolist() == [0, 6, 0]


def test_certain_probabilities_have_finite_slopes():
    x = Tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    loss = nn.functional.binary_cross_entropy(x, Tensor([0.0, 1.0, 1.0, 0.0]))
    loss.backward()
    assert loss.item() == 50 and bool(x.grad.isfinite().all())


def test_no_grad_around_a_generator():
    w = Tensor([1.0], requires_grad=True)

    @companion.no_grad()
    def steps():
        sent = yield w * 1
        yield sent * w
        return (w * 1).requires_grad

    walk = steps()
    assert not next(walk).requires_grad and (w * 1).requires_grad
    assert not walk.send(w).requires_grad and (w * 1).requires_grad
    with pytest.raises(StopIteration) as end:
        next(walk)
    assert end.value.value is False and steps.__name__ == "steps"
    block = companion.no_grad()
    with block:
        with block:
            pass
        assert not (w * 1).requires_grad
    assert (w * 1).requires_grad


def test_of_several_who_write_to_a_place_the_last_one_wins():
    """As NumPy's put_along_axis; PyTorch leaves it open."""
    rng = np.random.default_rng(0)
    for m, n in ((1, 1), (7, 3), (64, 5), (33, 40), (5, 1)):
        x, src = rng.random((4, n)), rng.random((4, m))
        index = rng.integers(0, n, (4, m))
        expected = x.copy()
        for j in range(m):
            np.put_along_axis(expected, index[:, j:j + 1], src[:, j:j + 1], 1)
        found = Tensor(x, float64).scatter(1, Tensor(index),
                                           Tensor(src, float64))
        np.testing.assert_array_equal(found.numpy(), expected)


def test_a_tournament_finds_what_sorting_finds():
    """Long rows with NaN, infinities and ties."""
    rng = np.random.default_rng(0)
    for n, k in ((64, 1), (1000, 3), (4097, 50), (500, 7), (640, 0)):
        x = rng.integers(-50, 50, (3, n)).astype(float)
        x[rng.random((3, n)) < 0.01] = math.nan
        x[rng.random((3, n)) < 0.01] = -math.inf
        x[2, 0] = math.inf
        t = Tensor(x, float64)
        for largest in (True, False):
            values, places = t.topk(k, largest=largest)
            expected = t.sort(descending=largest).values[:, :k]
            np.testing.assert_array_equal(values.numpy(), expected.numpy())
            np.testing.assert_array_equal(
                np.take_along_axis(x, places.numpy(), 1), values.numpy())
            assert all(len(set(row)) == k for row in places.tolist())


def test_words_that_are_not_known_name_their_neighbours():
    x = Tensor([1.0])
    for name, hint in {"sofmax": "softmax", "resize_": "reshape"}.items():
        with pytest.raises(AttributeError, match=hint):
            getattr(x, name)
    with pytest.raises(AttributeError, match="nn has no LSTM: type nn.GRU"):
        _ = nn.LSTM
    assert not hasattr(x, "__cuda_array_interface__")


def test_bits_read_as_others():
    import torch

    x = np.array([1.0, -0.0, np.inf, 1e-40], np.float32)
    bits = Tensor(x).bitcast(companion.int32)
    assert bits.tolist() == torch.tensor(x).view(torch.int32).tolist()
    assert bits.bitcast(float32).tolist() == x.tolist()
    with pytest.raises(ValueError, match="differ in width"):
        Tensor(x).bitcast(float64)


def test_draws_are_as_likely_as_their_weights():
    weights = Tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 0.0]])
    companion.manual_seed(0)
    many = weights.multinomial(4000, replacement=True).numpy()
    assert many.shape == (2, 4000)
    for row, expected in zip(many, ([0, 0.25, 0.75], [0.5, 0.5, 0])):
        share = np.bincount(row, minlength=3) / 4000
        # Four deviations of a share of 4000 draws.
        np.testing.assert_allclose(share, expected, atol=4 * 0.5 / 4000**0.5)
    pairs = companion.multinomial(weights, 2).numpy()
    assert {*pairs[0]} == {1, 2} and {*pairs[1]} == {0, 1}
    for wrong in (weights.multinomial, Tensor([-1.0, 2.0]).multinomial):
        with pytest.raises(ValueError, match="enough above 0"):
            wrong(3)


SCHEDULES = {
    "StepLR": (3, 0.5), "MultiStepLR": ([2, 5], 0.3), "LinearLR": (0.2, 1, 4),
    "ExponentialLR": (0.9,), "CosineAnnealingLR": (8, 0.01),
    "LambdaLR": (lambda i: 1 / (1 + i),)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_pytorchs(name):
    import torch

    from companion import lr_scheduler

    ours = companion.SGD([Tensor([1.0], requires_grad=True)], lr=0.4)
    theirs = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.4)
    mine = getattr(lr_scheduler, name)(ours, *SCHEDULES[name])
    peer = getattr(torch.optim.lr_scheduler, name)(theirs, *SCHEDULES[name])
    for _ in range(8):
        assert math.isclose(mine.get_last_lr()[0], peer.get_last_lr()[0])
        theirs.step()
        mine.step()
        peer.step()
    other = getattr(lr_scheduler, name)(ours, *SCHEDULES[name])
    other.load_state_dict(mine.state_dict())
    assert other.get_last_lr() == mine.get_last_lr()


def test_a_schedule_resumes_with_an_optimizer_that_came_first():
    """Where the rates are in both states, and several groups differ."""
    from companion.lr_scheduler import CosineAnnealingLR

    def fresh():
        return companion.SGD([{"params": [companion.ones(1).requires_grad_()],
                               "lr": lr} for lr in (1.0, 0.2)], lr=1.0)

    first = fresh()
    schedule = CosineAnnealingLR(first, 10, eta_min=0.1)
    for _ in range(4):
        schedule.step()
    other = fresh()
    other.load_state_dict(first.state_dict())
    resumed = CosineAnnealingLR(other, 10, eta_min=0.1)
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(6):
        assert resumed.get_last_lr() == schedule.get_last_lr()
        resumed.step()
        schedule.step()
    assert np.allclose(resumed.get_last_lr(), 0.1)
    other.param_groups.append(dict(other.param_groups[0]))
    with pytest.raises(ValueError, match="3 groups, the schedule 2"):
        resumed.step()
    with pytest.raises(ValueError, match="one step or more, got 0"):
        CosineAnnealingLR(first, 0)


def test_a_thawed_module_keeps_its_running_means():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    names = [name for name, _ in net.named_parameters()]
    again = copy.deepcopy(net.requires_grad_(False)).requires_grad_()
    assert [name for name, _ in again.named_parameters()] == names
    again(companion.ones(2, 2)).sum().backward()
    assert not again.layers[1].running_mean.requires_grad


def test_modules_of_functions_may_be_made_more_of():
    class Scaled(nn.Softmax):
        def __init__(self):
            super().__init__(dim=0)
            self.weight, self.note = nn.Parameter(companion.ones(2)), "mine"

        def forward(self, x):
            return super().forward(x) * self.weight

    assert Scaled()(companion.ones(2)).tolist() == [0.5, 0.5]
    x = Tensor([-1.0, 1.0])
    assert nn.ReLU(True)(x).tolist() == [0, 1]
    assert nn.LeakyReLU(0.5, True)(x).tolist() == [-0.5, 1]
    assert nn.CosineSimilarity(dim=0)(x, x).item() == pytest.approx(1)


def test_first_values_have_pytorchs_bounds_and_deviations():
    init, w = nn.init, Tensor(np.zeros((64, 8, 3, 3)), float32)
    w.requires_grad_()
    for fill, limit, deviation in (
            (init.xavier_uniform_, (6 / 648) ** 0.5, (2 / 648) ** 0.5),
            (init.kaiming_uniform_, (6 / 72) ** 0.5, (2 / 72) ** 0.5),
            (lambda x: init.kaiming_normal_(x, mode="fan_out"), 1,
             (2 / 576) ** 0.5),
            (lambda x: init.trunc_normal_(x, std=0.5, a=-1, b=1), 1, 0.44),
            (lambda x: init.normal_(x, 0, 0.1), 1, 0.1)):
        assert fill(w) is w and w.requires_grad and w.is_leaf
        assert abs(w.detach().numpy()).max() <= limit
        assert math.isclose(w.detach().std().item(), deviation, rel_tol=0.1)
    assert init.eye_(Tensor(np.ones((2, 3)))).tolist() == [
        [1, 0, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match="two axes or more"):
        init.xavier_normal_(Tensor([1.0]))


def test_what_modules_are_asked():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", companion.zeros(1))
            self.layers = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
            self.named = nn.ModuleDict({"a": nn.Identity(7)})

    net, kinds = Net(), []
    assert [type(m).__name__ for m in net.modules()] == [
        "Net", "Linear", "ReLU", "Identity"]
    assert len(net.buffers()) == 1
    net.apply(lambda m: kinds.append(type(m).__name__))
    assert kinds == ["Linear", "ReLU", "Identity", "Net"]
    net.layers[0](companion.ones(1, 2)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())
    assert len(net.parameters()) == 2
    assert net.half().cpu().count.dtype is float16
    with pytest.raises(ValueError, match="every tensor is part"):
        net.register_buffer("x", companion.zeros(1), persistent=False)


def test_a_data_set_of_tensors():
    data = companion.TensorDataset(companion.arange(5), companion.ones(5, 2))
    batches = list(companion.DataLoader(data, batch_size=2))
    assert [x.tolist() for x, _ in batches] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("n", [1, 16, 128, 129, 1000, 5000])
def test_what_is_not_finite_stays_where_it_came_up(n, dtype):
    """Long rows are added by blocks, in which 0 times infinity waits."""
    import torch

    rows = np.random.default_rng(n).standard_normal((9, n))
    for place, row in enumerate(rows[1:]):
        row[n * place // 8] = [math.inf, -math.inf, math.nan][place % 3]
    rows[2, -1] = math.inf  # after a -inf, or alone
    x = Tensor(rows, dtype)
    t = torch.tensor(rows).to(getattr(torch, str(dtype)))
    digits = 1e-3 if dtype is float32 else 1e-9  # sums that cancel
    for ours, theirs in ((x.cumsum(1), t.cumsum(1)),
                         (x.T.cumsum(0), t.T.cumsum(0))):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), digits,
                                   digits)
    whole = Tensor(rows[:1] * 100, companion.int64).cumsum(1).tolist()
    assert whole == (rows[:1] * 100).astype(np.int64).cumsum(1).tolist()
    assert abs(x[0]).cumsum(0).allclose(
        Tensor(abs(rows[0]).cumsum()).cast(dtype), 1e-6, 0)


def test_nothing_leaks_out_of_an_infinite_gradient_of_a_sum():
    """Where x is infinite the doubling is differentiated, not the product."""
    x = Tensor([1.0, math.inf, *[1.0] * 300], requires_grad=True)
    x.cumsum(0)[0].backward()
    assert x.grad.tolist() == [1.0] + [0.0] * 301


def test_values_and_places_are_not_unpacked_in_silence():
    x = Tensor([[1.0, 5.0], [7.0, 3.0]])
    for word in ("max", "min"):
        for asked in (lambda w=word: getattr(x, w)(1),
                      lambda w=word: getattr(x, w)(dim=-1),
                      lambda w=word: getattr(companion, w)(x, dim=0)):
            with pytest.raises(ValueError, match=f"x.arg{word}\\(1\\)"):
                _, _ = asked()
    first, second = x.max(1).tolist(), [float(y) for y in x.max(1)]
    assert first == second == [5.0, 7.0]
    assert sum(x.min(0)).item() == 4 and len({*map(str, x.max(0))}) == 2
    low, high = x.max(1) * 1  # any other tensor of two is two rows
    assert (low.item(), high.item()) == (5, 7)
    with pytest.raises(AttributeError, match="places are x.argmax"):
        _ = x.max(1).indices


def test_a_median_of_a_row_with_nan_is_the_first_nan():
    import torch

    rows = np.array([[3, math.nan, 1, math.nan], [4, 3, 2, 1],
                     [math.inf, -math.inf, 0, 0]])
    ours, theirs = Tensor(rows).median(1), torch.tensor(rows).median(1)
    np.testing.assert_array_equal(ours.values.numpy(), theirs.values.numpy())
    assert ours.indices.tolist() == [1, 2, 3] or (
        ours.indices.tolist() == theirs.indices.tolist())


def test_switches_of_recording():
    w = Tensor([1.0], requires_grad=True)

    @companion.no_grad
    def off():
        with companion.enable_grad():
            inner = w * 1
        return inner.requires_grad, (w * 1).requires_grad

    @companion.enable_grad
    def on():
        return (w * 1).requires_grad

    assert off() == (True, False) and off.__name__ == "off"
    with companion.inference_mode():
        assert on() and not companion.is_grad_enabled()
    companion.set_grad_enabled(False)
    assert not (w * 1).requires_grad
    companion.set_grad_enabled(True)
    for wanted in (True, False):
        with companion.set_grad_enabled(wanted):
            assert (w * 1).requires_grad is wanted
        assert companion.is_grad_enabled()

    @companion.set_grad_enabled(False)
    def never():
        return (w * 1).requires_grad

    assert (w * 1).requires_grad and not never()


def test_a_frozen_network_is_thawed_by_its_parameters():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    count = net.count()
    for p in net.parameters():
        p.requires_grad_(False)
    assert len(net.parameters()) == 4 and net.count() == 0
    assert [n for n, _ in net.named_buffers()] == [
        n for n, _ in nn.BatchNorm1d(3).named_buffers() for n in (
            f"layers.1.{n}",)]
    for p in net.parameters():
        p.requires_grad = True
    assert net.count() == count


def test_a_state_of_pytorch_is_loaded():
    import torch

    def build(of):
        return of.Sequential(of.Linear(3, 4), of.Sequential(
            of.ReLU(), of.Linear(4, 4)), of.Linear(4, 2))

    there, here = build(torch.nn), build(nn)
    state = {k: v.numpy() for k, v in there.state_dict().items()}
    assert here.load_state_dict(state) == ([], [])
    x = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    np.testing.assert_allclose(here(Tensor(x)).detach().numpy(),
                               there(torch.tensor(x)).detach().numpy(), 1e-5)
    assert here.load_state_dict(here.state_dict()) == ([], [])
    del state["2.bias"]
    found = here.load_state_dict(state | {"new": x}, strict=False)
    assert found.missing_keys == ["layers.2.bias"]
    assert found.unexpected_keys == ["new"]
    with pytest.raises(ValueError, match="missing: layers.2.bias"):
        here.load_state_dict(state)


def test_modules_by_their_names():
    import torch

    def build(of):
        part = of.Linear(2, 2)
        net = of.Module()
        net.a, net.b = part, of.ModuleDict({"c": part, "d": of.ReLU()})
        return net

    def named(net):
        return [n for n, m in net.named_modules()
                if type(m).__name__ != "ModuleDict"]

    assert named(build(nn)) == named(build(torch.nn)) == ["", "a", "b.d"]
    net = nn.Module()
    net.register_parameter("gain", nn.Parameter(companion.ones(2)))
    net.add_module("part", nn.ReLU())
    assert [n for n, _ in net.named_parameters()] == ["gain"]
    assert [n for n, _ in net.named_children()] == ["part"]


def test_a_group_joins_an_optimizer():
    a, b, c = [companion.ones(1).requires_grad_() for _ in range(3)]
    by = companion.SGD([a], lr=1.0, momentum=0.5)
    by.add_param_group({"params": b, "lr": 0.1})
    assert [g["lr"] for g in by.param_groups] == [1.0, 0.1]
    assert by.param_groups[1]["momentum"] == 0.5
    for wrong in ({"params": [a]}, {"params": [c], "speed": 1}):
        with pytest.raises(ValueError, match="optimizer"):
            by.add_param_group(wrong)
    assert len(by.param_groups) == 2


def rates(of, scheduler, steps=20):
    """What a schedule made by `scheduler(m, optimizer)` sets."""
    by = of.optim.SGD([of.ones(1).requires_grad_()], lr=0.4)
    schedule, found = scheduler(of.optim.lr_scheduler, by), []
    for step in range(steps):
        found.append(by.param_groups[0]["lr"])
        by.step()
        if type(schedule).__name__ == "ReduceLROnPlateau":
            schedule.step(max(5 - step, 1.0))
        else:
            schedule.step()
    return found


CHAINS = {
    "constant": lambda m, by: m.ConstantLR(by, 0.5, 3),
    "sequence": lambda m, by: m.SequentialLR(by, [
        m.LinearLR(by, 0.1, total_iters=5), m.CosineAnnealingLR(by, 15)],
        [5]),
    "three": lambda m, by: m.SequentialLR(by, [
        m.ConstantLR(by, 0.1, 9), m.StepLR(by, 2, 0.5),
        m.ExponentialLR(by, 0.9)], [3, 8]),
    "plateau": lambda m, by: m.ReduceLROnPlateau(by, factor=0.5, patience=2),
    "bounded": lambda m, by: m.ReduceLROnPlateau(
        by, "max", patience=0, min_lr=0.1)}


@pytest.mark.parametrize("name", CHAINS)
def test_schedules_one_after_another(name):
    import torch

    np.testing.assert_allclose(rates(companion, CHAINS[name]),
                               rates(torch, CHAINS[name]), 1e-6)


def test_what_is_saved_comes_back(tmp_path):
    state = {"epoch": 3, "w": companion.ones(2, dtype=bfloat16),
             "more": [(1, "a"), {2: np.arange(3)}, None, True, 0.5]}
    companion.save(state, tmp_path / "state")
    found = companion.load(tmp_path / "state", map_location="cpu")
    assert found["w"].dtype is bfloat16 and found["w"].tolist() == [1, 1]
    assert found["more"][0] == (1, "a") and found["epoch"] == 3
    assert found["more"][1][2].tolist() == [0, 1, 2]
    (tmp_path / "other").write_bytes(b"no such file")
    with pytest.raises(ValueError, match="no whole safetensors"):
        companion.load(tmp_path / "other")
    with pytest.raises(TypeError, match="would not come"):
        companion.save({"f": len}, tmp_path / "state")


def test_devices_by_their_names():
    assert companion.device("cpu") is companion.ones(1).device
    assert companion.device("cpu").type == "cpu"
    assert isinstance(companion.cuda.is_available(), bool)
    x = companion.ones(1).to_device("cpu")
    assert companion.is_tensor(x) and x.__array_namespace__()
    with pytest.raises(ValueError, match="expected one of"):
        companion.device("tpu")


def test_whole_numbers_are_drawn_with_pytorchs_signatures():
    for x in (companion.randint(3, (4, 2)), companion.randint(3, size=(4, 2)),
              companion.randint(0, 3, size=(4, 2)),
              companion.randint(0, 3, (4, 2))):
        assert x.shape == (4, 2) and 0 <= x.min().item() <= x.max().item() < 3


def test_a_data_set_is_split():
    data = companion.TensorDataset(companion.arange(10))
    draw = companion.Generator().manual_seed(1)
    for lengths, sizes in (([7, 3], [7, 3]), ([0.75, 0.25], [8, 2])):
        parts = companion.random_split(data, lengths, generator=draw)
        assert [len(part) for part in parts] == sizes
        seen = [part[i][0].item() for part in parts for i in range(len(part))]
        assert sorted(seen) == list(range(10)) and seen != sorted(seen)
    loader = companion.DataLoader(parts[0], batch_size=4, num_workers=1,
                                  pin_memory=True)
    assert [len(x) for x, in loader] == [4, 4] and loader.workers == 1
    assert isinstance(parts[0], companion.Subset)
    with pytest.raises(ValueError, match="add up to 10"):
        companion.random_split(data, [5, 6])


@pytest.mark.parametrize("name", [*SMOOTH, "softplus", "elu", "celu", "selu",
                                  "silu", "mish", "gelu", "logsigmoid"])
def test_what_is_broken_breaks_its_gradient(name):
    """A slope of 0 at NaN would make a broken run look frozen."""
    x = Tensor([math.nan, 0.5], float64).requires_grad_()
    f = getattr(Tensor, name, None) or getattr(nn.functional, name)
    f(x).sum().backward()
    assert math.isnan(x.grad[0]) or name == "neg"  # -1 everywhere
    assert math.isnan(x.grad[1]) == (name == "acosh")  # below its domain


def test_below_its_domain_acosh_has_no_slope():
    x = Tensor([-3.0, -1e8, 0.5], float64).requires_grad_()
    y = x.acosh()
    y.sum().backward()
    assert y.isnan().all() and x.grad.isnan().all()


def test_programs_begin_as_they_do_there():
    from companion.utils.checkpoint import checkpoint
    from companion.utils.data import (
        DataLoader,
        Dataset,
        Subset,
        TensorDataset,
        random_split,
    )

    assert companion.utils.data.DataLoader is DataLoader
    assert companion.utils.checkpoint.checkpoint is checkpoint
    halves = random_split(TensorDataset(Tensor([[1.0], [2.0]])), [1, 1])
    assert all(isinstance(half, Subset) for half in halves)
    assert issubclass(TensorDataset, object) and Dataset
    with pytest.raises(AttributeError, match="utils.data has no Sampler"):
        _ = companion.utils.data.Sampler
