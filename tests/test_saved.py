"""Programs in files: what is read back does what was saved."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from companion import (
    GPT,
    AdamW,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    GPTConfig,
    Linear,
    Sequential,
    Tensor,
    float32,
    jit,
    load_program,
    manual_seed,
    relu,
    save_program,
)


def saved(function, path, *args, **named):
    step = jit(function)
    for _ in range(3):
        step(*args, **named)
    save_program(step, path)
    return step, load_program(path)


def test_a_gpt_in_a_file(tmp_path):
    manual_seed(0)
    net = GPT(GPTConfig(8, 11, 2, 2, 16)).to("lazy").eval()
    ids = Tensor(np.arange(24).reshape(3, 8) % 11)
    step, after = saved(net, tmp_path / "gpt", ids)
    for seed in range(3):
        other = Tensor(np.random.default_rng(seed).integers(0, 11, (3, 8)))
        np.testing.assert_array_equal(after(other).numpy(),
                                      step(other).numpy())
    with pytest.raises(IndexError, match="the index 11 is out of range"):
        after(Tensor(np.full((3, 8), 11)))
    np.testing.assert_array_equal(after(ids).numpy(), step(ids).numpy())


def test_a_convolution_in_a_file(tmp_path):
    """The fields of a window come back with their names."""
    net = Sequential(Conv2d(2, 3, 3, stride=2, padding=1), relu,
                     ConvTranspose2d(3, 1, 2, stride=2)).to("lazy")
    x = Tensor(np.random.default_rng(0).standard_normal((2, 2, 5, 6)),
               float32)
    step, after = saved(net, tmp_path / "conv", x)
    np.testing.assert_array_equal(after(x).numpy(), step(x).numpy())


def test_another_process_needs_no_class(tmp_path):
    net = Sequential(Linear(3, 4), Linear(4, 2)).to("lazy")
    x = Tensor(np.ones((5, 3)), float32)
    step, _ = saved(lambda x: {"y": net(x), "both": (x, x.sum())},
                    tmp_path / "p", x)
    text = f"""
import numpy as np
from companion import Tensor, float32, load_program
found = load_program({str(tmp_path / "p")!r})(Tensor(np.ones((5, 3)), float32))
print(found["y"].tolist(), found["both"][0].shape, found["both"][1].item())
"""
    told = subprocess.run([sys.executable, "-c", text], check=True,
                          capture_output=True, text=True).stdout
    assert told == f"{step(x)['y'].tolist()} (5, 3) 15.0\n"


def test_a_state_goes_on(tmp_path):
    """What is written in place is the file's own from then on."""
    total = Tensor([1.0, 2.0], float32, device="lazy")

    def add(x, times=1):
        total.assign(total + x * times)
        return total[0], total * 2, None
    x = Tensor([1.0, 1.0], float32)
    step, after = saved(add, tmp_path / "p", x, times=2)
    total.assign(total * 10)
    save_program(step, tmp_path / "p")
    after = load_program(tmp_path / "p")
    for _ in range(3):
        for one, two in zip(step(x, times=2)[:2], after(x, times=2)[:2]):
            assert np.array_equal(one.numpy(), two.numpy())
    assert total.tolist() == [76, 86] and after(x, times=2)[2] is None
    assert total.tolist() == [76, 86]
    with pytest.raises(TypeError, match=r"takes .*'times': 2.*'times': 3"):
        after(x, times=3)
    with pytest.raises(TypeError, match=r"float32\[2\].*float64\[2\]"):
        after(Tensor(np.ones(2)), times=2)


@pytest.mark.parametrize("value", [
    np.nan, np.inf, -np.inf, -0.0, 1e-45, 3, True])
def test_constants_keep_every_bit(tmp_path, value):
    x = Tensor(np.zeros(3), float32)
    step, after = saved(lambda x: x + value, tmp_path / "p", x)
    assert after(x).numpy().tobytes() == step(x).numpy().tobytes()


def test_what_a_file_cannot_hold_is_told(tmp_path):
    net = Sequential(Linear(2, 2), Dropout(0.5)).to("lazy")
    x, file = Tensor(np.ones((1, 2)), float32), tmp_path / "p"
    optimizer = AdamW(net.layers[0].parameters())

    def train(x):
        optimizer.zero_grad()
        net.layers[0](x).sum().backward()
        optimizer.step()
    for function in (net, train):
        with pytest.raises(ValueError, match="asks for numbers"):
            saved(function, file, x)
    step = jit(net.layers[0])
    with pytest.raises(ValueError, match="0 programs; expected one"):
        save_program(step, file)
    for n in (1, 1, 1, 2, 2, 2):
        step(Tensor(np.ones((n, 2)), float32))
    with pytest.raises(ValueError, match="2 programs; expected one"):
        save_program(step, file)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused(tmp_path):
    file = tmp_path / "p"
    x = Tensor(np.ones((2, 3)), float32)
    saved(lambda x: (x * 2).sum(0).reshape((3, 1)), file, x)
    whole = file.read_bytes()
    with safe_open(file, "numpy") as found:
        about = found.metadata()["program"]
        arrays = {k: found.get_tensor(k) for k in sorted(found.keys())}
    for old, new in (('"MUL"', '"NONE"'), ('"MUL"', '"ADD2"'),
                     ('"SUM", [', '"SUM", [99, '), ('"RESHAPE"', '"EXPAND"'),
                     ('"float32"', '"float33"'), ('"nodes"', '"knots"')):
        assert old in about
        save_file(arrays, file, {"program": about.replace(old, new)})
        with pytest.raises(ValueError, match="is no program that"):
            load_program(file)
    for damaged in (whole[:50], whole[:-4], b"", b"text"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no program that"):
            load_program(file)
    save_file({"w": np.ones(2)}, file)
    with pytest.raises(ValueError, match="is no program that"):
        load_program(file)
    with pytest.raises(FileNotFoundError):
        load_program(tmp_path / "missing")


def test_named_arguments_come_in_any_order(tmp_path):
    step = jit(lambda x, y, by=1: x - y * by)
    x, y = Tensor([5.0], float32), Tensor([2.0], float32)
    step(x=x, by=2, y=y), step(y=y, x=x, by=2)
    assert step(by=2, y=y, x=x).item() == 1 and len(step.programs) == 1
    save_program(step, tmp_path / "p")
    assert load_program(tmp_path / "p")(y=y, by=2, x=x).item() == 1
