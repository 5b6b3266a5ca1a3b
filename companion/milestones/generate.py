# Tangled from language, memoization, serving: edit there, `make tangle`. sha256:2958a2fb2b15  # noqa: E501
from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from companion.cache import Ahead, CachedGPT
from companion.device import DEVICES, DRIVERS, named
from companion.quantize import read_gpt
from companion.tokenizer import CharTokenizer
from companion.transformer import GPT, spoken


def loaded(path: Path, device: str) -> tuple[GPT, CharTokenizer]:
    """The model of a folder, or of a file in one, and its tokenizer."""
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"there is no {file}; expected the folder of a "
                         f"run: python -m companion train gpt")
    model = read_gpt(file)
    tokenizer = CharTokenizer.load(file.with_name("tokenizer.json"))
    if tokenizer.n_vocab != model.config.vocab_size:
        raise ValueError(
            f"{file} knows {model.config.vocab_size} tokens, and the "
            f"tokenizer.json beside it {tokenizer.n_vocab}; expected both "
            f"of one run")
    model.to(named(device))
    return model, tokenizer


def write(model: GPT, tokenizer: CharTokenizer,
          options: argparse.Namespace) -> None:
    """Print the prompt and what follows, letter by letter."""
    new = CachedGPT(model).generate(
        tokenizer.encode(options.prompt), options.tokens,
        options.temperature, options.top_k, options.top_p,
        generator=Ahead(options.seed))
    print(options.prompt, end="")
    for piece in spoken(tokenizer, new):
        print(piece, end="", flush=True)
    print()


def count(text: str) -> int:
    """A number of tokens, as it was typed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"expected a number of 0 or more, got {text!r}")
    return int(text)


def main(argv: list[str]) -> int:
    """Print text that a trained GPT writes: generate FOLDER."""
    parser = argparse.ArgumentParser(prog="python -m companion generate")
    parser.add_argument("model", type=Path, nargs="?",
                        default=Path("_build/gpt-cpu"),
                        help="the folder of a run, or its .safetensors")
    parser.add_argument("--prompt", default="\n", help="the text before")
    for name, kind, default in (
            ("tokens", count, 500), ("temperature", float, 0.8),
            ("top-k", int, None), ("top-p", float, None), ("seed", int, 0)):
        parser.add_argument(f"--{name}", type=kind, default=default,
                            help=f"({default})")
    parser.add_argument("--device", choices=DEVICES | DRIVERS,
                        default="cpu")
    options = parser.parse_args(argv)
    try:
        write(*loaded(options.model, options.device), options)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 128 + signal.SIGINT
    return 0
