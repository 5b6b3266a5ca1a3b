# Tangled from serving: edit there, `make tangle`. sha256:c2aa8680e86a
from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from companion.literate import message
from companion.milestones.language import letters_loss
from companion.serve import Engine, Host, Refused, Stream, ask
from companion.tensor import Tensor
from companion.tensor.random import Generator, manual_seed
from companion.tokenizer import CharTokenizer
from companion.transformer import GPT, GPTConfig

SMALL = GPTConfig(16, 11, 2, 2, 16)
LETTERS = CharTokenizer("abcdefghijk")


def small_model():
    """A GPT with weights so large that positions matter."""
    manual_seed(0)
    net = GPT(SMALL).eval()
    for p in net.parameters():
        p.detach().assign(p.detach() * (8 if p.ndim == 2 else 1))
    return net


def small_host(net=None, **more):
    return Host(Engine(net or small_model(), **more), LETTERS)


def answer_of(url, **question):
    """A whole answer: its text, and how it ended."""
    *lines, last = ask(url, **question)
    return "".join(line["text"] for line in lines), last["end"]


def test_each_client_gets_what_generate_writes():
    net = small_model()
    asked = [{"prompt": "abcabc"[:1 + i % 5], "tokens": 3 + i % 8, "seed": i,
              "temperature": i % 3 / 2, "stop": "k" * (i % 2)}
             for i in range(12)]
    with small_host(net, slots=3) as host, ThreadPoolExecutor(12) as people:
        found = list(people.map(
            lambda one: answer_of(host.url, **one)[0], asked))
    for one, text in zip(asked, found):
        new = net.generate(
            LETTERS.encode(one["prompt"]), one["tokens"],
            one["temperature"], stop=LETTERS.encode(one["stop"]),
            generator=Generator(one["seed"]))
        assert text == LETTERS.decode(new), one


def test_a_server_finishes_what_is_under_way():
    host = small_host(slots=1)
    asked = [Stream([1], 9, seed=i) for i in range(3)]
    for stream in asked:
        host.engine.submit(stream)
    host.engine.close()
    with host:
        pass
    assert [(len(list(s)), s.why) for s in asked] == [(9, "length")] * 3
    assert not host.decoder.is_alive() and not host.replies


def refusal(url, path="/generate", **question):
    """Status and words with which a server says no."""
    try:
        list(ask(url, path, **question))
    except Refused as error:
        return error.status, str(error)
    raise AssertionError(f"{question} was not refused")


def test_what_does_not_fit_is_refused():
    with small_host() as host:
        for question, words in (
                ({}, "JSON object"), ({"prompt": 1}, "a text"),
                ({"prompt": "a", "size": 1}, "no field 'size'"),
                ({"prompt": "a", "tokens": True}, "a whole number"),
                ({"prompt": "a", "tokens": 0}, "1 or more"),
                ({"prompt": "a", "tokens": 16}, "at most 16"),
                ({"prompt": ""}, "1 or more"), ({"prompt": "z"}, "'z'"),
                ({"prompt": "a", "stop": "z"}, "'z'"),
                ({"prompt": "a", "temperature": -1}, "temperature"),
                ({"prompt": "a", "temperature": math.nan}, "temperature"),
                ({"prompt": "a", "seed": -1}, "seed")):
            status, found = refusal(host.url, **question)
            assert status == 400 and words in found, (question, found)
        assert refusal(host.url, "/x", prompt="a")[0] == 404
        assert refusal(host.url, prompt="a" * (1 << 16))[0] == 413
        assert refusal(host.url, "/loss", prompt="a")[0] == 400


def test_a_full_queue_is_said_and_not_joined():
    engine = Engine(small_model(), slots=1, queue=2)
    for _ in range(2):
        engine.submit(Stream([1], 2))
    assert "2 requests" in message(
        lambda: engine.submit(Stream([1], 2)), Refused)
    assert len(engine.server.waiting) == 2


def test_those_who_leave_are_not_served():
    engine = Engine(small_model(), slots=1)
    asked = [Stream([1], 5, left=lambda i=i: i == 1) for i in range(3)]
    for stream in asked:
        engine.submit(stream)
    engine.close()
    engine.run()
    assert [len(list(s)) for s in asked] == [5, 0, 5]
    assert [s.why for s in asked] == ["length", "left", "length"]


def test_a_broken_step_keeps_nobody_waiting():
    engine = Engine(small_model(), slots=1)
    asked = [Stream([1], 5) for _ in range(2)]
    for stream in asked:
        engine.submit(stream)
    engine.server.cache.step = lambda *_: 1 / 0
    assert "division" in message(engine.run, ZeroDivisionError)
    assert [s.why for s in asked] == ["error"] * 2
    assert "closing" in message(
        lambda: engine.submit(Stream([1], 1)), Refused)


def test_the_loss_over_http_is_the_loss():
    net, ids = small_model(), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    own = letters_loss(net, Tensor(ids[:-1]), Tensor(ids[1:])).item()
    with small_host(net) as host:
        (found,) = ask(host.url, "/loss", prompt=LETTERS.decode(ids))
    assert found["tokens"] == 9
    assert np.isclose(found["nats"] / 9, own, rtol=1e-3)
