"""The commands `train` and `generate`, as they are typed."""

import importlib
import json
import signal

import numpy as np
import pytest

from companion.__main__ import COMMANDS, usage
from companion.milestones import generate, language, report, train
from companion.transformer import GPT, GPTConfig

WORDS = "It is the cause, it is the cause, my soul:\n" * 40
TINY = language.Recipe(GPTConfig(8, 65, 1, 2, 8, dropout=0.1),
                       batch=4, steps=12, lr=1e-2, warmup=2, target=9.0)
FILES = {"checkpoint.safetensors", "checkpoint.safetensors.jsonl",
         "losses.svg", "model.safetensors", "result.json", "run.json",
         "tokenizer.json"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A recipe of seconds, on a few lines that pass for the plays."""
    monkeypatch.setitem(language.RECIPES, "tiny", TINY)
    monkeypatch.setattr(language, "shakespeare", lambda: WORDS)


def trained(folder, *words):
    return train.main(["gpt", *(words or ("--config", "tiny")),
                       *(() if "--resume" in words
                         else ("--out", str(folder)))])


def losses(folder):
    rows = (folder / "checkpoint.safetensors.jsonl").read_text()
    return [json.loads(row)["loss"] for row in rows.splitlines()]


def presses(monkeypatch, at, press):
    """Put an observer that presses a key in the progress bar's place."""

    class Presses(train.Observer):
        def look(self, run, row):
            if run.steps == at:
                press()

    monkeypatch.setattr(train, "ProgressBar", Presses)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def ctrl_c_twice():
    ctrl_c()
    ctrl_c()


def test_a_run_leaves_all_its_files_and_a_result(tmp_path, capsys):
    assert trained(tmp_path) == 0
    assert {p.name for p in tmp_path.iterdir()} == FILES
    found = json.loads((tmp_path / "result.json").read_text())
    model = GPT.load(tmp_path / "model.safetensors")
    text = language.plays()
    assert found["loss"] == language.held_loss(model, text.held)
    assert found["steps"] == 12 and len(found["sample"]) == 400
    assert found["parameters"] == model.config.parameters
    shown = capsys.readouterr().out
    assert shown.index("about") < shown.index("asked for")
    assert "12 steps of 4 x 8 letters on cpu" in shown
    assert "9.0: reached" in shown
    assert f"generate {tmp_path}" in shown


def test_a_missed_target_is_said(tmp_path, monkeypatch, capsys):
    hard = language.replace(TINY, target=0.0)
    monkeypatch.setitem(language.RECIPES, "tiny", hard)
    assert trained(tmp_path) == 0
    assert "0.0: MISSED" in capsys.readouterr().out


@pytest.mark.parametrize("at", [1, 6, 11])
def test_ctrl_c_saves_and_says_how_to_go_on(at, tmp_path, monkeypatch,
                                            capsys):
    assert trained(tmp_path / "whole") == 0
    presses(monkeypatch, at, ctrl_c)
    parts = tmp_path / "two words"
    before = signal.getsignal(signal.SIGINT)
    assert trained(parts) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert len(losses(parts)) == at
    shown = capsys.readouterr().out
    assert f"train gpt --resume '{parts}'" in shown
    assert f"({at} steps)" in shown
    assert trained(parts, "--resume", str(parts)) == 0
    assert losses(parts) == losses(tmp_path / "whole")
    weights = [GPT.load(f / "model.safetensors").state_dict()
               for f in (parts, tmp_path / "whole")]
    for name, p in weights[0].items():
        assert np.array_equal(p.numpy(), weights[1][name].numpy())


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN])
def usual(request):
    """What Ctrl-C does to a run in front, and to one in the background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual")
def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch, capsys):
    assert trained(tmp_path / "whole") == 0
    presses(monkeypatch, 6, ctrl_c_twice)
    parts = tmp_path / "parts"
    assert trained(parts) == 130
    assert "stopped at once" in capsys.readouterr().out
    presses(monkeypatch, 0, ctrl_c)
    assert trained(parts, "--resume", str(parts)) == 0
    assert losses(parts) == losses(tmp_path / "whole")


def test_a_key_pressed_before_the_first_step(tmp_path, monkeypatch, capsys):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "seconds_a_step", pressed)
    assert trained(tmp_path / "x") == 130
    assert not (tmp_path / "x").exists()
    assert "before the first step" in capsys.readouterr().out


def test_a_finished_run_is_judged_again(tmp_path):
    assert trained(tmp_path) == 0
    before = (tmp_path / "result.json").read_text()
    assert trained(tmp_path, "--resume", str(tmp_path)) == 0
    again = (tmp_path / "result.json").read_text()
    assert json.loads(again)["loss"] == json.loads(before)["loss"]


def test_the_seed_makes_the_run(tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert trained(tmp_path / name, "--config", "tiny",
                       "--seed", seed) == 0
    a, b, c = [losses(tmp_path / name) for name in "abc"]
    assert a == b != c


@pytest.mark.slow
def test_a_run_on_the_emulated_card(tmp_path):
    small = language.replace(TINY, steps=3, warmup=1)
    language.RECIPES["tiny"] = small
    for name, device in (("cpu", "cpu"), ("card", "emulated")):
        assert trained(tmp_path / name, "--config", "tiny",
                       "--device", device) == 0
    found = json.loads((tmp_path / "card/result.json").read_text())
    assert found["device"] == "emulated"
    both = [losses(tmp_path / name) for name in ("cpu", "card")]
    # Dropout draws the same bits on both; sums may be of another order.
    np.testing.assert_allclose(*both, rtol=1e-4)
    folder = str(tmp_path / "card")
    assert trained(tmp_path, "--resume", folder, "--device", "cpu") == 0


@pytest.mark.parametrize("words, said", [
    ((), "what"), (("mlp",), "gpt"),
    (("gpt", "--config", "huge"), "cpu"),
    (("gpt", "--device", "tpu"), "cuda"),
    (("gpt", "--seed", "x"), "int"),
    (("gpt", "--resume", "x", "--config", "cpu"), "only --device"),
    (("gpt", "--resume", "x", "--seed", "0"), "only --device"),
])
def test_what_cannot_be_asked_of_train(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(list(words))
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def refused(main, capsys, *words):
    """The one line in which a command says no."""
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_folder_with_a_run_is_not_written_over(tmp_path, capsys):
    assert trained(tmp_path) == 0
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    said = refused(train.main, capsys, "gpt", "--config", "tiny", "--out",
                   tmp_path)
    assert f"--resume {tmp_path}" in said and "--out" in said
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}


@pytest.mark.parametrize("content", [
    None, "", "[]", "{", '{"config": "lost"}', '{"colour": "red"}'])
def test_what_is_no_run_is_not_gone_on_with(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    said = refused(train.main, capsys, "gpt", "--resume", tmp_path)
    assert "holds no run" in said and "--config cpu" in said


def test_a_checkpoint_of_another_text_is_refused(tmp_path, monkeypatch,
                                                 capsys):
    presses(monkeypatch, 6, ctrl_c)
    assert trained(tmp_path) == 130
    monkeypatch.setattr(language, "shakespeare",
                        lambda: WORDS.replace("soul", "luos"))
    said = refused(train.main, capsys, "gpt", "--resume", tmp_path)
    assert "the same data" in said


@pytest.mark.parametrize("seed", ["-1", str(2 ** 70)])
def test_a_wrong_seed_leaves_nothing(seed, tmp_path, capsys):
    said = refused(train.main, capsys, "gpt", "--config", "tiny", "--seed",
                   seed, "--out", tmp_path / "x")
    assert "seed" in said and not (tmp_path / "x").exists()


def test_no_plays_no_run(tmp_path, monkeypatch, capsys):
    stand_in = language.SPARE["tinyshakespeare/input.txt"]
    monkeypatch.setattr(language, "shakespeare", lambda: stand_in)
    said = refused(train.main, capsys, "gpt", "--config", "tiny", "--out",
                   tmp_path / "x")
    assert "COMPANION_DATA" in said and not (tmp_path / "x").exists()
    out = tmp_path / "out"
    assert report.main(["2017", "--out", str(out)]) == 1
    shown = capsys.readouterr().out
    assert "2017 NOT MEASURED" in shown and "COMPANION_DATA" in shown


def test_no_card_no_run(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise RuntimeError("cuda: CuPy finds no NVIDIA GPU")

    monkeypatch.setattr(train, "seconds_a_step", none)
    said = refused(train.main, capsys, "gpt", "--config", "tiny", "--out",
                   tmp_path / "x", "--device", "cuda")
    assert "no NVIDIA GPU" in said and not (tmp_path / "x").exists()


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch,
                                                capsys):
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)
    assert trained(tmp_path) == 0
    assert {p.name for p in tmp_path.iterdir()} == FILES - {"losses.svg"}
    assert "no picture" in capsys.readouterr().out


# ---------------------------------------------------------------- generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that has been trained."""
    where = tmp_path_factory.mktemp("runs") / "plays"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(language.RECIPES, "tiny", TINY)
        patch.setattr(language, "shakespeare", lambda: WORDS)
        assert trained(where) == 0
    return where


def written(capsys, *words):
    capsys.readouterr()
    assert generate.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_a_text_begins_with_its_prompt(folder, capsys):
    text = written(capsys, folder, "--prompt", "my soul", "--tokens", 30)
    assert text.startswith("my soul") and text.endswith("\n")
    assert len(text) == len("my soul") + 30 + 1
    assert set(text) <= set(WORDS)


def test_the_seed_makes_the_text(folder, capsys):
    ask = folder, "--tokens", 60, "--seed"
    a, b, c = [written(capsys, *ask, seed) for seed in (1, 1, 2)]
    assert a == b != c
    file = folder / "model.safetensors"
    assert written(capsys, file, "--tokens", 60, "--seed", 1) == a


def test_the_settings_reach_the_model(folder, capsys):
    ask = folder, "--tokens", 40, "--seed"
    likeliest = [written(capsys, *ask, seed, *more) for seed in (1, 2)
                 for more in (("--temperature", 0), ("--top-k", 1),
                              ("--top-p", 1e-9))]
    assert len(set(likeliest)) == 1


def test_a_text_is_printed_while_it_is_made(folder, capsys, monkeypatch):
    def stopped(tokenizer, ids):
        yield "It"
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "spoken", stopped)
    assert generate.main([str(folder), "--prompt", "is"]) == 130
    assert capsys.readouterr().out == "isIt\n"


@pytest.mark.parametrize("words, said", [
    (("--prompt", ""), "a prompt of one token"),
    (("--prompt", "ü"), "no token for ['ü']"),
    (("--temperature", "-1"), "a temperature of 0"),
    (("--top-k", "0"), "a top_k of 1"),
    (("--top-p", "2"), "top_p above 0"),
    (("--seed", "-1"), "seed"),
])
def test_what_cannot_be_generated(folder, words, said, capsys):
    assert said in refused(generate.main, capsys, folder, *words)


@pytest.mark.parametrize("number", ["-1", "1.5", "many"])
def test_no_such_number_of_tokens(folder, number, capsys):
    with pytest.raises(SystemExit) as stop:
        generate.main([str(folder), "--tokens", number])
    assert stop.value.code == 2
    assert "expected a number of 0 or more" in capsys.readouterr().err


def test_where_no_model_is(tmp_path, folder, capsys):
    said = refused(generate.main, capsys, tmp_path)
    assert "there is no" in said and "train gpt" in said
    lone = tmp_path / "model.safetensors"
    lone.write_bytes((folder / "model.safetensors").read_bytes())
    assert "tokenizer.json" in refused(generate.main, capsys, lone)
    (tmp_path / "tokenizer.json").write_text('{"chars": "ab"}')
    assert "beside it 2" in refused(generate.main, capsys, lone)
    lone.write_bytes(b"no weights")
    assert "safetensors" in refused(generate.main, capsys, lone)


def test_both_commands_are_in_the_table():
    for name in ("train", "generate"):
        assert f"companion.milestones.{name}" == COMMANDS[name]
        assert importlib.import_module(COMMANDS[name]).main
        assert f"  {name:10} " in usage()


# --------------------------------------------------------------- milestone


def test_the_verdict_of_2017_needs_all_three(tmp_path, monkeypatch):
    rows = [language.judged(name, 1.0, "≥", 0.5, 0.0) for name in "ab"]
    asked = []

    def reading(recipe, text, observers):
        asked.append(recipe)
        return language.judged("plays", 1.93, "≤", recipe.target, 0.0)

    monkeypatch.setattr(language, "turning", lambda: rows)
    monkeypatch.setattr(language, "reading", reading)
    assert report.main(["2017", "--out", str(tmp_path)]) == 1
    assert asked == [language.RECIPES["cpu"]]
    found = json.loads((tmp_path / "2017.json").read_text())
    assert [row["done"] for row in found["rows"]] == ["yes", "yes", "no"]


def test_plays_are_read_for_all_steps():
    row = language.reading(TINY, language.plays())
    assert row["done"] == "yes" and 0 < row["found"] < 5


def test_the_recipes_are_nanogpts():
    cpu, baby = [language.RECIPES[name] for name in ("cpu", "baby")]
    assert cpu.config == GPTConfig(64, 65, 4, 4, 128, 0.0, bias=False)
    assert cpu == language.Recipe(cpu.config, 12, 2000, 1e-3, 100, 1.92)
    assert baby.config == GPTConfig(256, 65, 6, 6, 384, 0.2, bias=False)
    assert baby == language.Recipe(baby.config, 64, 5000, 1e-3, 100, 1.48)


@pytest.mark.slow
@pytest.mark.needs("datasets")
def test_the_plays_are_the_plays(monkeypatch):
    monkeypatch.undo()
    text = language.plays()
    assert text.tokenizer.n_vocab == 65
    assert (len(text.read), len(text.held)) == (1_003_854, 111_540)
