# Tangled from serving: edit there, `make tangle`. sha256:bf633577cb75
from __future__ import annotations

import argparse
import io
import json
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from socketserver import TCPServer
from threading import (
    BoundedSemaphore, Condition, Event, Thread, current_thread)
from typing import Any, NamedTuple

import numpy as np

from companion.cache import KVCache, Request, Server
from companion.device import DEVICES, DRIVERS
from companion.milestones.generate import loaded
from companion.transformer import GPT, spoken


def nobody_left() -> bool:
    """A reader who stays."""
    return False


@dataclass(eq=False)
class Stream(Request):
    """A request whose tokens can be read while they are drawn.

    It ends after `max_new_tokens`, before a token of `stop`, or when
    `left()` says that nobody reads any more; `why` says which.
    """

    stop: Collection[int] = ()
    left: Callable[[], bool] = nobody_left
    why: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokens = SimpleQueue[int | None]()

    def __iter__(self) -> Iterator[int]:
        """Its tokens, each as soon as it is drawn."""
        return iter(self.tokens.get, None)

    def end(self, why: str) -> bool:
        self.why = why
        self.tokens.put(None)
        return True

    def take(self, logits: np.ndarray, now: float) -> bool:
        """Draw a token and pass it on; whether it was the last."""
        if self.left():
            return self.end("left")
        full = super().take(logits, now)
        if self.new[-1] in self.stop:
            self.new.pop()
            return self.end("stop")
        self.tokens.put(self.new[-1])
        return self.end("length") if full else False


class Refused(Exception):
    """A request that is not served: HTTP's status, and one line why."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class Fitting(Server):
    """A server of up to so many slots, in the smallest of its caches that
    has room for all; `tokens` counts what it has handed out."""

    def __init__(self, model: GPT, slots: int):
        smaller = [4 ** i for i in range(slots.bit_length() // 2 + 1)]
        self.caches = [KVCache(model, n) for n in smaller if n < slots]
        self.caches.append(KVCache(model, slots))
        super().__init__(self.caches[0])
        self.tokens = 0

    def step(self) -> None:
        texts = [request for request in self.slots if request]
        wanted = len(texts) + len(self.waiting)
        fitting = [c for c in self.caches if c.slots >= wanted]
        cache = (fitting or self.caches[-1:])[0]
        if cache is not self.cache:
            self.cache, self.slots = cache, [None] * cache.slots
            for slot, request in enumerate(texts):
                self.slots[slot] = request
                # The last token is the next step's.
                cache.prefill([*request.prompt, *request.new[:-1]], slot)
        super().step()

    def hand(self, slot: int, logits: np.ndarray) -> None:
        super().hand(slot, logits)
        self.tokens += 1


class Engine:
    """Decodes for all, in the one thread that calls `run`.

    `slots` texts are written at once, and `queue` more may wait.
    """

    def __init__(self, model: GPT, slots: int = 8, queue: int = 32):
        if queue < 1:
            raise ValueError(f"Engine: expected a queue of 1 or more, got "
                             f"{queue}")
        self.server, self.queue = Fitting(model, slots), queue
        self.changed, self.seconds = Condition(), 0.0
        self.closing = self.cut = False
        for cache in self.server.caches:
            # The third call of a kind is the first of a program.
            for _ in range(3):
                Server(cache).run([Request([0], 2)])

    @property
    def busy(self) -> bool:
        return any(self.server.slots) or bool(self.server.waiting)

    def submit(self, stream: Stream) -> None:
        """Let it wait for a slot; Refused, if it can not."""
        with self.changed:
            if self.closing:
                raise Refused(503, "the server is closing; ask another")
            if len(self.server.waiting) >= self.queue:
                raise Refused(429, f"{self.queue} requests are waiting "
                                   f"already; ask again in a second")
            try:
                self.server.submit(stream)
            except ValueError as error:
                raise Refused(400, str(error)) from None
            self.changed.notify()

    def awake(self) -> bool:
        """Wait for work; whether there may be any more."""
        with self.changed:
            self.changed.wait_for(lambda: self.closing or self.busy)
            for stream in [*self.server.waiting]:
                if isinstance(stream, Stream) and stream.left():
                    self.server.waiting.remove(stream)
                    stream.end("left")
            return not self.cut and (self.busy or not self.closing)

    def run(self) -> None:
        """Serve until it is closed, and those who were there are done."""
        why = "error"
        try:
            while self.awake():
                self.step()
            why = "closing"
        finally:
            # Whatever has happened: nobody waits for ever.
            with self.changed:
                self.closing = True
                for stream in [*self.server.slots, *self.server.waiting]:
                    if isinstance(stream, Stream):
                        stream.end(why)

    def step(self) -> None:
        start = time.perf_counter()
        self.server.step()
        self.seconds += time.perf_counter() - start

    def close(self, at_once: bool = False) -> None:
        """Take no more; finish what is there, or leave that as well."""
        with self.changed:
            self.closing, self.cut = True, at_once
            self.changed.notify()


class Asked(NamedTuple):
    """What a client asks for, with what holds where it says nothing."""

    prompt: str
    tokens: int = 32
    temperature: float = 0.8
    seed: int = 0
    stop: str = ""


FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "prompt": ((str,), "a text"),
    "tokens": ((int,), "a whole number"),
    "temperature": ((int, float), "a number"),
    "seed": ((int,), "a whole number"),
    "stop": ((str,), "a text; each of its tokens ends the answer")}


def read_question(body: bytes) -> Asked:
    """From JSON; a ValueError says in one line what was expected."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "prompt" not in found:
        raise ValueError('expected a JSON object such as {"prompt": "To be"}')
    for name, value in found.items():
        if name not in FIELDS:
            raise ValueError(f"no field {name!r}; expected some of "
                             f"{', '.join(FIELDS)}")
        kinds, words = FIELDS[name]
        # True is no number here, nor is what no float can hold.
        if type(value) not in kinds or (
                type(value) is int and value.bit_length() > 64):
            raise ValueError(f"{name}: expected {words}, got "
                             f"{json.dumps(value)[:40]}")
    return Asked(**found)


class Host(ThreadingHTTPServer):
    """A model behind an address: POST /generate, GET /health.

    Port 0 is any that is free: see `url`. `with` opens and closes it.
    """

    request_queue_size = 128  # clients that wait for a thread
    spare = 64  # threads beside those whose requests have a place

    def __init__(self, engine: Engine, tokenizer: Any, port: int = 0,
                 address: str = "127.0.0.1", grace: float = 10.0):
        if ":" in address:
            self.address_family = socket.AF_INET6
        super().__init__((address, port), Handler)
        self.address = f"[{address}]" if ":" in address else address
        self.threads = BoundedSemaphore(
            engine.server.caches[-1].slots + engine.queue + self.spare)
        self.engine, self.tokenizer, self.grace = engine, tokenizer, grace
        self.ended, self.replies = Event(), set[Thread]()
        self.failed = False
        self.decoder = Thread(target=self.decode, daemon=True)

    def decode(self) -> None:
        try:
            self.engine.run()
        except Exception:
            self.failed = True
            raise
        finally:
            self.ended.set()

    def __enter__(self) -> Host:
        self.decoder.start()
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Take no more, and finish what is under way, within `grace`."""
        for cut, seconds in ((False, self.grace), (True, 1.0)):
            self.engine.close(cut)
            end = time.monotonic() + seconds
            for thread in (self.decoder, *self.replies):
                thread.join(max(end - time.monotonic(), 0))
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.server_port}"

    def health(self) -> dict[str, Any]:
        """What the engine has done, and is busy with."""
        server, seconds = self.engine.server, self.engine.seconds
        return {"slots": server.caches[-1].slots,
                "busy": sum(map(bool, server.slots)),
                "waiting": len(server.waiting), "tokens": server.tokens,
                "tokens_a_second": server.tokens / seconds if seconds else 0}

    def handle_error(self, request: Any, address: Any) -> None:
        """A client that is gone is no error of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, address)

    def server_bind(self) -> None:
        """Without a name server, which the usual one asks for our name."""
        TCPServer.server_bind(self)
        self.server_port = self.server_address[1]

    def process_request(self, request: Any, address: Any) -> None:
        """Give a client a thread, if there are not too many."""
        if self.threads.acquire(blocking=False):
            super().process_request(request, address)
        else:
            with suppress(OSError):  # it has left already
                request.sendall(CROWDED)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, address: Any) -> None:
        try:
            super().process_request_thread(request, address)
        finally:
            self.threads.release()


CROWDED = (b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"
           b"Content-Type: application/json\r\nContent-Length: 53\r\n\r\n"
           b'{"error": "too many clients; ask again in a second"}\n')


class Handler(BaseHTTPRequestHandler):
    """A question of a client, in a thread of its own."""

    server: Host
    protocol_version = "HTTP/1.1"  # which knows chunks
    timeout = 10  # seconds for a question, or for a part of an answer
    linger = 1.0  # seconds in which what is not wanted is thrown away
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, self.server.health())
        else:
            self.lost()

    do_HEAD = do_GET

    def lost(self) -> None:
        self.send_error(404, "expected GET /health or POST "
                        + " or ".join(ANSWERS))

    def do_POST(self) -> None:
        self.server.replies.add(current_thread())
        try:
            ANSWERS.get(self.path, Handler.lost)(self)
        except Refused as error:
            self.send_error(error.status, str(error))
        finally:
            self.server.replies.discard(current_thread())

    def head(self, status: int, name: str, value: str) -> None:
        """What comes before an answer; after it the line is closed."""
        self.connection.settimeout(self.timeout)
        self.send_response(status)
        for pair in (("Content-Type", "application/json"), (name, value),
                     ("Connection", "close")):
            self.send_header(*pair)
        self.end_headers()

    def answer(self, status: int, found: dict[str, Any]) -> None:
        """One object, as JSON."""
        body = json.dumps(found).encode() + b"\n"
        self.head(status, "Content-Length", str(len(body)))
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None,
                   explain: str | None = None) -> None:
        """One line of JSON, for the library's refusals as for ours."""
        self.answer(code, {"error": message or self.responses[code][0]})

    def log_message(self, *_: Any) -> None:
        """Nothing: /health says how it goes."""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(Hurried(self.connection, self.timeout))

    def finish(self) -> None:
        """Close the line, once a client who still sends has the answer.

        A line that is closed with words unread is torn, and the answer
        may be lost. So what comes is thrown away, for a while.
        """
        super().finish()
        rest = Hurried(self.connection, self.linger)
        with suppress(OSError):  # it takes longer, or is gone
            self.connection.shutdown(socket.SHUT_WR)
            while rest.read(LARGEST):
                pass

    def ids(self, text: str) -> list[int]:
        try:
            return self.server.tokenizer.encode(text)
        except ValueError as error:
            raise Refused(400, str(error)) from None

    def question(self) -> Asked:
        """What is asked for; Refused, if it is not clear."""
        size = self.headers.get("Content-Length", "")
        if self.request_version != "HTTP/1.1":
            raise Refused(505, "expected HTTP/1.1, which knows chunks")
        if not size.isdecimal():
            raise Refused(411, "expected a Content-Length")
        if len(size) > 9 or int(size) > LARGEST:
            raise Refused(413, f"a body of {size[:9]} bytes; expected at "
                               f"most {LARGEST}")
        try:
            return read_question(self.rfile.read(int(size)))
        except ValueError as error:
            raise Refused(400, str(error)) from None

    def generate(self) -> None:
        """A text in lines, {"text": …}, and {"end": …} behind them."""
        asked = self.question()
        try:
            stream = Stream(
                self.ids(asked.prompt), asked.tokens, asked.seed,
                options={"temperature": asked.temperature},
                stop={*self.ids(asked.stop)}, left=self.hung_up)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        self.server.engine.submit(stream)
        self.head(200, "Transfer-Encoding", "chunked")
        for piece in spoken(self.server.tokenizer, stream):
            self.chunk({"text": piece})
        self.chunk({"end": stream.why, "tokens": len(stream.new)})
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, found: dict[str, Any]) -> None:
        line = json.dumps(found).encode() + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))

    def hung_up(self) -> bool:
        """Whether the client has closed its end of the line."""
        look = select.poll()
        try:
            look.register(self.connection, select.POLLIN)
            return bool(look.poll(0)) and not self.connection.recv(
                1, socket.MSG_PEEK)
        except (OSError, ValueError):  # the line is broken, or closed here
            return True


LARGEST = 1 << 16  # bytes of a question


class Hurried(io.RawIOBase):
    """What a client sends, all of it within so many seconds."""

    def __init__(self, line: socket.socket, seconds: float):
        self.line, self.end = line, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("a question that takes too long")
        self.line.settimeout(left)
        return self.line.recv_into(room)


ANSWERS: dict[str, Callable[[Handler], None]] = {
    "/generate": Handler.generate}


def ask(url: str, path: str = "/generate",
        **question: Any) -> Iterator[dict[str, Any]]:
    """The lines of an answer, each as soon as it is there.

    Raises Refused with the server's status and its words.
    """
    line = HTTPConnection(url.removeprefix("http://"), timeout=60)
    with closing(line):
        # A server may refuse before it has heard all: then it says why.
        with suppress(BrokenPipeError, ConnectionResetError):
            line.request("POST", path, json.dumps(question))
        with line.getresponse() as answer:
            if answer.status != 200:
                raise Refused(answer.status, json.load(answer)["error"])
            rest = b""
            while part := answer.read1():  # far quicker than by lines
                *lines, rest = (rest + part).split(b"\n")
                yield from map(json.loads, lines)


def number(text: str) -> int:
    """A number of something, as it was typed."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a number of 1 or more, got {text!r}")
    return int(text)


def options_of(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m companion host")
    parser.add_argument("model", type=Path, nargs="?",
                        default=Path("_build/gpt-cpu"),
                        help="the folder of a run, or its .safetensors")
    parser.add_argument("--port", type=int, default=8000,
                        help="0 for any that is free (8000)")
    parser.add_argument("--address", default="127.0.0.1",
                        help="whom to answer (127.0.0.1: this machine)")
    for name, default, words in (
            ("slots", 8, "texts that share a step"),
            ("queue", 32, "requests that may wait"),
            ("grace", 10, "seconds to finish when it is stopped")):
        parser.add_argument(f"--{name}", type=number, default=default,
                            help=f"{words} ({default})")
    parser.add_argument("--device", choices=DEVICES | DRIVERS,
                        default="lazy", help="where it runs (lazy)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Serve a trained GPT over HTTP: host FOLDER."""
    options = options_of(argv)
    try:
        model, tokenizer = loaded(options.model, options.device)
        host = Host(Engine(model, options.slots, options.queue), tokenizer,
                    options.port, options.address, options.grace)
        return until_stopped(host)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        print(f"host: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before it was open, or a second time
        return 128 + signal.SIGINT


def until_stopped(host: Host) -> int:
    """Serve until Ctrl-C or SIGTERM; 1 if decoding has failed."""
    def stop(number: int, frame: Any) -> None:
        signal.signal(number, before[number])  # a second one is the usual
        stopped.append(number)  # no lock: we may hold it just now

    stopped: list[int] = []
    before: dict[int, Any] = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with host:
            print(f"{host.url}/generate is open; Ctrl-C closes it",
                  flush=True)
            # A signal between a look and a sleep wakes nobody: look again.
            while not (stopped or host.ended.wait(0.2)):
                pass
        print("closed", flush=True)
        return int(host.failed)
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


@dataclass(eq=False)
class Read(Stream):
    """A text that is known: `nats` is what its tokens after the prompt
    cost together, -log p of each."""

    known: Sequence[int] = ()
    nats: float = 0.0

    def take(self, logits: np.ndarray, now: float) -> bool:
        if self.left():
            return self.end("left")
        x = logits.astype(np.float64) - logits.max()
        self.new.append(self.known[len(self.new)])
        self.nats += float(np.log(np.exp(x).sum()) - x[self.new[-1]])
        full = len(self.new) == self.max_new_tokens
        return self.end("length") if full else False


def read_loss(handler: Handler) -> None:
    """What a text's tokens after the first cost, {"nats": …}."""
    ids = handler.ids(handler.question().prompt)
    stream = Read(ids[:1], len(ids) - 1, known=ids[1:], left=handler.hung_up)
    handler.server.engine.submit(stream)
    for _ in stream:  # until it has been read
        pass
    if stream.why != "length":
        raise Refused(503, f"the text was not read to its end: {stream.why}")
    handler.answer(200, {"nats": stream.nats, "tokens": len(stream.new)})


ANSWERS["/loss"] = read_loss
