"""A server of tokens, on real sockets: its manners, and its end."""

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from companion import CharTokenizer, Generator, manual_seed, serve, timing
from companion.milestones import report, serve_bench, serving
from companion.milestones.language import Recipe, split
from companion.serve import Engine, Handler, Host, Refused, Stream, ask
from companion.timing import Limits
from companion.transformer import GPT, GPTConfig

LETTERS = CharTokenizer("abcdefghijk")
CONFIG = GPTConfig(32, 11, 1, 2, 16, bias=False)


def model():
    manual_seed(0)
    return GPT(CONFIG).eval()


def host(**options):
    return Host(Engine(model(), **options), LETTERS)


def alone(prompt, tokens, seed=0, temperature=0.8):
    return LETTERS.decode(model().generate(
        LETTERS.encode(prompt), tokens, temperature,
        generator=Generator(seed)))


def text_of(lines):
    return "".join(line.get("text", "") for line in lines)


PATIENCE = 120  # seconds: a crowded machine is no failure


def wait_for(fact, seconds=PATIENCE):
    """Until it is so; an error if it never is."""
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def gated(cache, name):
    """A gate: until it is set, the cache's method waits."""
    gate, method = serve.Event(), getattr(cache, name)
    setattr(cache, name, lambda *x: (gate.wait(PATIENCE), method(*x))[1])
    return gate


def spoken_to(server, data, half=False):
    """All bytes that the server sends to a raw client."""
    with socket.create_connection(("127.0.0.1", server.server_port),
                                  timeout=PATIENCE) as line:
        line.sendall(data)
        if half:
            line.shutdown(socket.SHUT_WR)
        found = b""
        while part := line.recv(1 << 16):
            found += part
    return found


def post(body, version="1.1", length=None):
    size = len(body) if length is None else length
    return (f"POST /generate HTTP/{version}\r\nHost: x\r\n"
            f"Content-Length: {size}\r\n\r\n").encode() + body


# ---------------------------------------------------------------- the wire


def test_an_answer_is_chunks_of_lines_and_a_last_one():
    with host() as server:
        found = spoken_to(server, post(b'{"prompt": "a", "tokens": 3}'))
    head, body = found.split(b"\r\n\r\n", 1)
    assert b"200 OK" in head and b"Transfer-Encoding: chunked" in head
    lines = []
    while body:
        size, body = body.split(b"\r\n", 1)
        size = int(size, 16)
        lines.append(body[:size])
        assert body[size:size + 2] == b"\r\n"
        body = body[size + 2:]
    assert lines.pop() == b"" and len(lines) == 4
    lines = [json.loads(line) for line in lines]
    assert lines[-1] == {"end": "length", "tokens": 3}
    assert text_of(lines) == alone("a", 3)


def test_a_line_is_sent_when_its_token_is_drawn():
    """The second token is not even begun when the first arrives."""
    with host(slots=1) as server:
        gate = gated(server.engine.server.cache, "step")
        lines = ask(server.url, prompt="a", tokens=4)
        assert "text" in next(lines) and not gate.is_set()
        gate.set()
        assert len(list(lines)) == 4


@pytest.mark.parametrize("data, status", [
    (post(b"", "1.0"), b"505"),
    (b"POST /generate HTTP/1.1\r\n\r\n", b"411"),
    (post(b"", length="-1"), b"411"), (post(b"", length="1e3"), b"411"),
    (post(b"", length=1 << 17), b"413"), (post(b"", length="9" * 99), b"413"),
    (post(b"{"), b"400"), (post(b"[" * 9999), b"400"),
    (post(b"\xff\xfe"), b"400"), (post(b'{"prompt": "\\ud800"}'), b"400"),
    (post(b'{"prompt": "a", "tokens": 1e400}'), b"400"),
    (post(b'{"prompt": "a", "tokens": ' + b"9" * 5000 + b"}"), b"400"),
    (post(b'{"prompt": "a", "tokens": ' + b"9" * 99 + b"}"), b"400"),
    (post(b'{"prompt": "a", "seed": ' + b"9" * 99 + b"}"), b"400"),
    (post(b'{"prompt": "a", "temperature": ' + b"9" * 999 + b"}"), b"400"),
    (b"PUT /generate HTTP/1.1\r\n\r\n", b"501"),
    (b"OPTIONS * HTTP/1.1\r\n\r\n", b"501"),
    (b"GET /generate HTTP/1.1\r\n\r\n", b"404"),
    (b"GET /../health HTTP/1.1\r\n\r\n", b"404"),
    (b"GET /%68ealth HTTP/1.1\r\n\r\n", b"404"),
    (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", b"404"),
    (post(b"{}").replace(b"/generate", b"/health"), b"404"),
    (post(b"{}").replace(b"/generate", b"/generate?x"), b"404"),
    (b"GET /" + b"a" * (1 << 16) + b" HTTP/1.1\r\n\r\n", b"414"),
    (b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", b"431"),
    (b"GET /health HTTP/1.1\r\na: " + b"b" * (1 << 16) + b"\r\n\r\n",
     b"431"),
    (post(b'{"prompt": "a", "stop": "\xff"}'), b"400"),
    (post(b'{"prompt": "a", "temperature": Infinity}'), b"400")])
def test_what_is_wrong_gets_a_number_and_the_next_is_served(data, status):
    with host() as server:
        found = spoken_to(server, data, half=True)
        head, body = found.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 " + status)
        assert isinstance(json.loads(body)["error"], str)
        assert text_of(ask(server.url, prompt="a", tokens=2)) == alone("a", 2)


@pytest.mark.parametrize("words", [b"nonsense\r\n\r\n",
                                   b"GET /health HTTP/2.0\r\n\r\n"])
def test_what_is_no_http_gets_a_line_too(words):
    with host() as server:
        assert "error" in json.loads(spoken_to(server, words))


def test_head_is_get_without_what_it_gives():
    with host() as server:
        found = spoken_to(server, b"HEAD /health HTTP/1.1\r\n\r\n")
    head, body = found.split(b"\r\n\r\n", 1)
    assert b"200 OK" in head and b"Content-Length: " in head and not body


def test_one_question_a_line():
    """Another behind the first is not answered, and does no harm."""
    twice = 2 * post(b'{"prompt": "a", "tokens": 2}')
    with host() as server:
        assert spoken_to(server, twice).count(b"200 OK") == 1
        wait_for(lambda: not server.replies)
        assert server.engine.server.tokens == 2


def test_one_who_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(Handler, "timeout", 0.05)
    with host() as server:
        assert spoken_to(server, b"") == b""
        assert spoken_to(server, post(b"{", length=9)) == b""
        wait_for(lambda: not server.replies)


class Drops:
    """A line on which a letter comes whenever one is asked for."""

    def __init__(self, clock):
        self.clock, self.allowed = clock, []

    def settimeout(self, seconds):
        self.allowed.append(seconds)

    def recv_into(self, room):
        self.clock[0] += 3.0
        return 1


def test_one_who_says_a_letter_at_a_time_is_not_waited_for(monkeypatch):
    """All of a question has one time, however often a letter comes."""
    clock = [0.0]
    monkeypatch.setattr(serve.time, "monotonic", lambda: clock[0])
    line = Drops(clock)
    reader = serve.io.BufferedReader(serve.Hurried(line, 10.0))
    with pytest.raises(TimeoutError, match="too long"):
        reader.readline()
    assert line.allowed == [10.0, 7.0, 4.0, 1.0]


def test_a_question_too_large_is_answered_though_nobody_reads_it(
        monkeypatch):
    """More than any buffer holds: the line is not torn meanwhile."""
    monkeypatch.setattr(Handler, "linger", PATIENCE)
    data = post(b"x" * (1 << 24))
    with host() as server:
        found = spoken_to(server, data)
        with pytest.raises(Refused) as no:
            list(ask(server.url, prompt="a" * (1 << 24)))
    assert b"413" in found.split(b"\r\n", 1)[0] and no.value.status == 413


def test_there_are_no_more_threads_than_places(monkeypatch):
    monkeypatch.setattr(Host, "spare", 1)
    monkeypatch.setattr(Handler, "timeout", PATIENCE)
    with host(slots=1, queue=1) as server:
        there = ("127.0.0.1", server.server_port)
        silent = [socket.create_connection(there) for _ in range(3)]
        with pytest.raises(Refused, match="too many clients") as no:
            list(ask(server.url, prompt="a", tokens=2))
        assert no.value.status == 503
        for line in silent:
            line.close()
        for _ in silent:  # each has given its thread back
            assert server.threads.acquire(timeout=PATIENCE)
        server.threads.release(3)
        assert text_of(ask(server.url, prompt="a", tokens=2)) == alone("a", 2)


def test_an_address_of_the_longer_kind():
    try:
        server = Host(Engine(model()), LETTERS, address="::1")
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with server:
        assert serving.ADDRESS.search(server.url)[0] == server.url
        assert text_of(ask(server.url, prompt="a", tokens=2)) == alone("a", 2)


def test_no_name_server_is_asked(monkeypatch):
    """One that does not answer would hold up the start."""
    monkeypatch.setattr(socket, "getfqdn", lambda *_: 1 / 0)
    with host() as server:
        assert len(list(ask(server.url, prompt="a", tokens=2))) == 3


def test_health_counts_what_was_done():
    with host(slots=3) as server:
        (before,) = ask_health(server)
        list(ask(server.url, prompt="a", tokens=5))
        list(ask(server.url, prompt="ab", tokens=7))
        (after,) = ask_health(server)
    assert before == {"slots": 3, "waiting": 0, "busy": 0, "tokens": 0,
                      "tokens_a_second": 0}
    assert after["tokens"] == 12 and after["tokens_a_second"] > 0


def ask_health(server):
    found = spoken_to(server, b"GET /health HTTP/1.1\r\n\r\n")
    return [json.loads(found.split(b"\r\n\r\n", 1)[1])]


# ---------------------------------------------------------------- limits


def test_too_many_are_told_so_over_http():
    with host(slots=1, queue=1) as server:
        engine = server.engine
        gate = gated(engine.server.cache, "prefill")
        first, second = Stream([1], 2), Stream([1], 2)
        engine.submit(first)
        wait_for(lambda: not engine.server.waiting)
        engine.submit(second)
        with pytest.raises(Refused, match="1 requests are waiting") as no:
            list(ask(server.url, prompt="a"))
        assert no.value.status == 429
        gate.set()
        assert len(list(first)) == len(list(second)) == 2


@pytest.mark.parametrize("when", ["reading", "waiting"])
def test_one_who_hangs_up_frees_its_place(when):
    with host(slots=1) as server:
        engine = server.engine
        gate = gated(engine.server.cache, "step")
        lines = ask(server.url, prompt="a", tokens=30)
        next(lines)
        other = ask(server.url, prompt="b", tokens=2)
        if when == "waiting":
            data = post(b'{"prompt": "c", "tokens": 30}')
            with socket.create_connection(
                    ("127.0.0.1", server.server_port)) as gone:
                gone.sendall(data)
                wait_for(lambda: engine.server.waiting)
        lines.close()
        gate.set()
        assert text_of(other) == alone("b", 2)
        wait_for(lambda: not engine.busy)
        assert engine.server.tokens <= 5  # of 62 that were asked for
        wait_for(lambda: not server.replies)


# ---------------------------------------------------------------- the end


def test_a_closing_server_finishes_and_takes_no_more():
    with host(slots=1) as server:
        engine = server.engine
        gate = gated(engine.server.cache, "step")
        lines = ask(server.url, prompt="a", tokens=6)
        first = next(lines)
        engine.close()
        with pytest.raises(Refused, match="closing") as no:
            list(ask(server.url, prompt="a"))
        assert no.value.status == 503
        gate.set()
        assert text_of([first, *lines]) == alone("a", 6)


def test_closing_takes_no_longer_than_its_grace():
    server = Host(Engine(model(), slots=1), LETTERS, grace=0.05)
    streams = [Stream([1], 20) for _ in range(2)]
    with server:
        engine = server.engine
        step = engine.server.cache.step
        # A step lasts until all have to end.
        engine.server.cache.step = lambda *x: (
            wait_for(lambda: engine.cut), step(*x))[1]
        for stream in streams:
            engine.submit(stream)
    assert [len(list(s)) for s in streams] == [2, 0]
    assert [s.why for s in streams] == ["closing"] * 2


def test_a_loss_that_is_not_read_to_its_end_is_refused(monkeypatch):
    monkeypatch.setattr("threading.excepthook", lambda *_: None)
    with host(slots=1) as server:
        server.engine.server.cache.step = lambda *_: 1 / 0
        with pytest.raises(Refused, match="to its end: error") as no:
            list(ask(server.url, "/loss", prompt="abc"))
    assert no.value.status == 503


def test_a_failure_is_said_to_all_and_ends_the_server(monkeypatch):
    monkeypatch.setattr("threading.excepthook", lambda *_: None)
    with host(slots=1) as server:
        server.engine.server.cache.step = lambda *_: 1 / 0
        *_, last = ask(server.url, prompt="a", tokens=4)
        assert last["end"] == "error"
        assert server.ended.wait(PATIENCE)
        with pytest.raises(Refused, match="closing"):
            list(ask(server.url, prompt="a"))


@pytest.fixture
def folder(tmp_path):
    model().save(tmp_path / "model.safetensors")
    LETTERS.save(tmp_path / "tokenizer.json")
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_under_way(number, folder, root):
    """In a process of its own; the answer is longer than a moment."""
    with subprocess.Popen(
            [sys.executable, "-m", "companion", "host", str(folder),
             "--port", "0", "--device", "cpu", "--grace", str(PATIENCE)],
            stdout=subprocess.PIPE, text=True, cwd=root) as process:
        url = process.stdout.readline().split("/generate")[0]
        lines = ask(url, prompt="a", tokens=31)
        first = next(lines)
        process.send_signal(number)
        assert text_of([first, *lines]) == alone("a", 31)
        assert process.wait(PATIENCE) == 0
        assert "closed" in process.stdout.read()


def test_a_signal_to_one_who_has_just_opened(folder):
    """It comes while the last steps before the wait are done."""
    for _ in range(3):
        with serving.started([*serving.hosted(folder), "--device", "cpu"]):
            pass


def test_a_second_signal_is_an_exit_status(folder, monkeypatch):
    def interrupted(self, *_):
        raise KeyboardInterrupt

    ended = Host.__exit__
    monkeypatch.setattr(Engine, "run", lambda _: None)
    monkeypatch.setattr(
        Host, "__exit__", lambda self, *x: (ended(self), interrupted(self)))
    assert serve.main([str(folder), "--port", "0", "--device",
                       "cpu"]) == 128 + signal.SIGINT


def test_a_failure_is_an_exit_status(folder, monkeypatch, capsys):
    def broken(self):
        raise RuntimeError("lost")

    monkeypatch.setattr(Engine, "run", broken)
    monkeypatch.setattr("threading.excepthook", lambda *_: None)
    before = signal.getsignal(signal.SIGTERM)
    assert serve.main([str(folder), "--port", "0", "--device", "cpu"]) == 1
    assert signal.getsignal(signal.SIGTERM) is before
    assert "closed" in capsys.readouterr().out


def test_what_cannot_be_hosted_is_one_line(folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, said in (
                ([str(folder / "none")], "train gpt"),
                ([str(folder), "--device", "cpu", "--port", port], "in use"),
                ([str(folder), "--device", "cpu", "--port", "99999"],
                 "port")):
            assert serve.main(words) == 2
            found = capsys.readouterr().err
            assert said in found and found.count("\n") == 1


@pytest.mark.parametrize("words", [["--slots", "0"], ["--queue", "-1"],
                                   ["--grace", "x"], ["--device", "tpu"]])
def test_what_cannot_be_asked_of_host(words, capsys):
    with pytest.raises(SystemExit) as stop:
        serve.main(words)
    assert stop.value.code == 2


# ---------------------------------------------------------------- the judge


def test_the_judge_counts_what_is_there(monkeypatch):
    text = split("abcdefghijk" * 60)
    base = serving.Baseline(CONFIG, 4000, 1e-9, 2.0)
    monkeypatch.setattr(serving, "limits", lambda _: Limits(1.0, 10.0))
    net = GPT(GPTConfig(32, 11, 1, 2, 16, bias=False)).eval()
    with Host(Engine(net, 16), text.tokenizer) as server:
        found = serving.capstone(server.url, 1000, base, text)
        alike = serving.heard_loss(server.url, text, 32)
    rows = {row["task"]: row for row in found.rows}
    assert [rows[n]["done"] for n in serving.TARGETS] == [
        "yes", "yes", "no", "no"]
    assert not found.passed and found.value == 0.5
    ids = serving.pieces(text.held, 32, 1)
    wanted = serving.evaluate(net, serving.letters_loss,
                              serving.Tensor(ids[:, :-1]),
                              serving.Tensor(ids[:, 1:]))
    assert alike == pytest.approx(wanted, rel=1e-4)
    assert rows["nats"]["found"] == pytest.approx(wanted, abs=1e-3)
    assert rows["16 limit"]["found"] > 0
    assert json.dumps(found._asdict())


def test_a_server_is_started_and_ended(folder):
    with serving.started([*serving.hosted(folder), "--device",
                          "cpu"]) as url:
        assert text_of(ask(url, prompt="a", tokens=4)) == alone("a", 4)
    with pytest.raises(OSError):
        list(ask(url, prompt="a"))


def test_a_server_may_say_much_and_in_any_letters():
    """More than a pipe holds, before its address and behind it."""
    code = ("import sys, signal; signal.signal(15, lambda *_: exit(0)); "
            "say = sys.stdout.buffer.write; say(b'\\xff' * 99 + b'\\n'); "
            "say(b'log\\n' * 50000); say(b'at http://127.0.0.1:1/x\\n'); "
            "say(b'log\\n' * 50000); sys.stdout.flush(); "
            "print('done', file=sys.stderr, flush=True); signal.pause()")
    with serving.started([sys.executable, "-c", code]) as url:
        assert url == "http://127.0.0.1:1"


def test_a_server_that_does_not_end_is_made_to(monkeypatch):
    code = ("import signal; signal.signal(15, signal.SIG_IGN); "
            "print('http://127.0.0.1:1', flush=True); signal.pause()")
    with (pytest.raises(RuntimeError, match="ended with -9"),
          serving.started([sys.executable, "-c", code])):
        monkeypatch.setattr(serving, "PATIENCE", 0.05)


def test_a_server_that_says_nothing_is_named(monkeypatch):
    monkeypatch.setattr(serving, "PATIENCE", 0.05)
    with (pytest.raises(RuntimeError, match="address of a server, got ''"),
          serving.started([sys.executable, "-c",
                           "import signal; signal.pause()"])):
        pass


def test_another_python_keeps_its_own_library(monkeypatch):
    """Ours is put before its path, and nothing else of ours."""
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    seen = {}

    def popen(command, env, **_):
        seen.update(env)
        raise OSError("enough")

    monkeypatch.setattr(serving.subprocess, "Popen", popen)
    with pytest.raises(OSError, match="enough"), serving.started(["x"]):
        pass
    first, second = seen["PYTHONPATH"].split(":")
    assert second == "/theirs"
    assert first == str(Path(serve.__file__).parents[1])


@pytest.mark.parametrize("code, said", [
    ("print('hello')", "expected the address"),
    ("import signal; signal.signal(15, lambda *_: exit(3)); "
     "print('http://127.0.0.1:1', flush=True); signal.pause()",
     "ended with 3")])
def test_a_command_that_serves_nothing_is_named(code, said):
    with (pytest.raises(RuntimeError, match=said),
          serving.started([sys.executable, "-c", code]) as url):
        assert url == "http://127.0.0.1:1"


class Fraud(Handler):
    """Answers quickly, and less than it was asked for."""

    def generate(self):
        self.question()
        self.answer(200, {"text": "a"})

    def loss(self):
        self.question()
        self.answer(200, {"nats": 0.1, "tokens": 1})


def test_the_judge_counts_what_was_sent(monkeypatch):
    text = split("abcdefghijk" * 60)
    base = serving.Baseline(CONFIG, 4000, 1e-9, 2.0)
    for path, answer in (("/generate", Fraud.generate),
                         ("/loss", Fraud.loss)):
        monkeypatch.setitem(serve.ANSWERS, path, answer)
    with host() as server:
        with pytest.raises(RuntimeError, match="expected 16 letters, got 1"):
            serving.capstone(server.url, 1000, base, text)
        with pytest.raises(RuntimeError, match="31 tokens"):
            serving.heard_loss(server.url, text, 32)


def test_an_entry_without_a_file_is_named_before_it_is_judged(tmp_path):
    with pytest.raises(ValueError, match="there is nothing"):
        serving.entered(tmp_path / "none", ["false"], tmp_path)


def test_a_milestone_without_a_model_trains_one(tmp_path, monkeypatch):
    """All of it, down to the process that serves, with a tiny recipe."""
    text = split("abcdefghijk" * 60)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serving, "plays", lambda: text)
    monkeypatch.setattr(serving, "limits", lambda _: Limits(1.0, 10.0))
    monkeypatch.setattr(serving, "CLIENTS", (1, 2))
    monkeypatch.setitem(serving.RECIPES, "long",
                        Recipe(CONFIG, 4, 3, 1e-3, 1, 9.0))
    found = serving.milestone()
    rows = {row["task"]: row for row in found.rows}
    assert set(serving.TARGETS) < set(rows)
    # What was not lost is the mark of the same weights, served.
    assert abs(rows["nats lost"]["found"]) < 0.1
    assert rows["was bytes"]["found"] > rows["bytes"]["found"] > 0
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_no_plays_no_verdict(tmp_path, monkeypatch, capsys):
    from companion.milestones import language
    monkeypatch.chdir(tmp_path)
    stand_in = language.SPARE["tinyshakespeare/input.txt"]
    monkeypatch.setattr(language, "shakespeare", lambda: stand_in)
    assert report.main(["2024", "--out", str(tmp_path / "out")]) == 1
    assert "2024 NOT MEASURED" in capsys.readouterr().out


@pytest.mark.parametrize("slots, wanted", [
    (1, [1]), (2, [1, 2]), (4, [1, 4]), (5, [1, 4, 5]), (16, [1, 4, 16]),
    (17, [1, 4, 16, 17])])
def test_the_caches_of_a_server(slots, wanted):
    found = serve.Fitting(model(), slots)
    assert [cache.slots for cache in found.caches] == wanted


def test_one_client_computes_one_slot():
    """More come, and texts move to another cache, and back, unharmed."""
    engine, sizes = Engine(model(), slots=5), []
    streams = [Stream([1], 9 - i, seed=i) for i in range(7)]
    coming = {0: streams[:1], 1: streams[1:2], 3: streams[2:]}
    for at in range(40):
        for stream in coming.get(at, ()):
            engine.submit(stream)
        engine.step()
        sizes.append(engine.server.cache.slots)
    assert sizes[:5] == [1, 4, 4, 5, 5] and sizes[-1] == 1
    assert [LETTERS.decode(s) for s in streams] == [
        alone("b", 9 - i, i, 1.0) for i in range(7)]


# ---------------------------------------------------------------- the bench


QUESTION = {"prompt": "abc", "tokens": 9, "seed": 1}


def test_clients_hear_every_letter_of_every_answer():
    with host(slots=2) as server:
        seconds, times = serving.heard(server.url, 3, [QUESTION] * 5)
        assert server.health()["tokens"] == 5 * 9
    assert times.shape == (5, 9) and (np.diff(times) >= 0).all()
    assert times.min() > 0 and times.max() <= seconds


def test_an_answer_that_is_too_short_is_no_measurement():
    with host() as server, pytest.raises(RuntimeError, match="9 letters"):
        serving.heard(server.url, 1, [QUESTION | {"stop": "abcdefghijk"}])


def test_waits_of_letters_at_known_times():
    times = np.array([[0.1, 0.2, 0.4], [0.3, 0.5, 0.6]])
    found = serve_bench.waits([(0.6, times), (0.9, times)])
    assert found == pytest.approx({
        "tokens": 1.5 / 12, "first p50": 0.2, "first p99": 0.3,
        "next p50": 0.15, "next p99": 0.2})


def planted(monkeypatch, seconds):
    """Services that take a known time, call by call; who was asked."""
    asked = []

    def heard(url, clients, questions):
        asked.append(url)
        took = seconds[url][asked.count(url) - 1]
        return took, took * np.array([[0.1, 0.2, 0.4], [0.3, 0.5, 0.6]])
    monkeypatch.setattr(serve_bench, "heard", heard)
    return asked


def test_two_services_are_asked_in_turn(monkeypatch):
    asked = planted(monkeypatch, {"a": [9, 1, 1, 1], "b": [8, 3, 3, 3]})
    found = serve_bench.race("ab", 2, [], 3)
    assert asked == ["a", "b"] * 4
    for name, line in found.items():
        assert line.ratio == pytest.approx(3), name
        assert line.spread == pytest.approx(0, abs=1e-9), name
        assert timing.judged(line.line(float) | {"peer_name": "x"})["ratio"]
    assert found["tokens"].ours == pytest.approx(3 / 18)


def test_what_varies_more_than_it_differs_is_refused(monkeypatch):
    planted(monkeypatch, {"a": [1, 1, 3, 1, 2], "b": [1, 2, 2, 3, 1]})
    for line in serve_bench.race("ab", 2, [], 4).values():
        found = timing.judged(line.line(float) | {"peer_name": "x"})
        assert found["ratio"] is None and "spread" in found["refused"]


def test_a_bench_has_a_line_for_each_wait_of_each_crowd(monkeypatch):
    served, rounds = [], 3

    @contextmanager
    def services(text, config, slots):
        net = GPT(config).eval()
        with Host(Engine(net, slots), text.tokenizer) as one:
            served.append(one)
            yield one.url, one.url
    monkeypatch.setattr(serve_bench, "services", services)
    monkeypatch.setattr(serve_bench, "CONFIGS", {"cpu": CONFIG})
    monkeypatch.setattr(serve_bench, "limits", lambda _: Limits(1.0, 10.0))
    monkeypatch.setattr(serve_bench, "shakespeare", lambda: "abcdefghijk\n")
    lines = list(serve_bench.bench(1, quick=True))
    assert [x["case"] for x in lines] == [
        f"{who}{what}" for who in ("1 client", "8 clients") for what in (
            ", tokens", ", first p50", ", first p99", ", next p50",
            ", next p99", ": the bound")]
    assert all(x["ours"] > 0 for x in lines)
    # Of each crowd: two services, one round to warm up, 16 letters each.
    assert served[0].health()["tokens"] == (1 + 8) * 2 * (rounds + 1) * 16


@pytest.mark.slow
def test_the_bench_is_a_command(capsys):
    timing.main(["serve", "--quick", "--threads", "1", "--json"])
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert len(lines) == 12 and {x["bench"] for x in lines} == {"serve"}
    assert {x["peer_name"] for x in lines} == {"eager float32", None}
