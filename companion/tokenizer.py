# Tangled from tokenization: edit there, `make tangle`. sha256:5e77e8226b23
from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import TypeVar

from companion.training import write_atomically


class CharTokenizer:
    """Each character of `chars` is a token; its id is its place."""

    def __init__(self, chars: str):
        self.chars = chars
        self.tokens = dict(enumerate(chars))
        self.ids = {char: i for i, char in self.tokens.items()}

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        """A tokenizer for the characters that occur in `text`."""
        return cls("".join(sorted(set(text))))

    @property
    def n_vocab(self) -> int:
        """How many rows an embedding of these ids needs."""
        return len(self.chars)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; a ValueError names unknown characters."""
        if unknown := sorted(set(text) - self.ids.keys()):
            raise ValueError(f"encode: no token for {unknown}; train on a "
                             f"text that has them")
        return [self.ids[char] for char in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids from 0 to n_vocab - 1."""
        return "".join(looked_up(self.tokens, ids))

    def save(self, path: str | Path) -> None:
        """Write a JSON file that `load` reads."""
        text = json.dumps({"chars": self.chars}, ensure_ascii=False)
        write_atomically(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | Path) -> CharTokenizer:
        """What `save` wrote; a ValueError says why a file is none."""
        with read_or_refuse(path) as text:
            chars = json.loads(text)["chars"]
            if not isinstance(chars, str) or len({*chars}) < len(chars):
                raise ValueError("expected different characters")
            return cls(chars)


Token = TypeVar("Token")


def looked_up(tokens: Mapping[int, Token],
              ids: Iterable[int]) -> list[Token]:
    """The token of each id; a ValueError names one that has none."""
    try:
        return [tokens[i] for i in ids]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"decode: expected one row of ids below {max(tokens) + 1}, got "
            f"{error} (of a tensor, decode .tolist())") from None


Pair = tuple[int, int]


def replaced(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """The ids with `new` for each occurrence of `pair`, from the left."""
    out, i = [], 0
    while i < len(ids):
        found = tuple(ids[i:i + 2]) == pair
        out.append(new if found else ids[i])
        i += 2 if found else 1
    return out


def tokens_of(merges: Iterable[Pair]) -> list[bytes]:
    """The token of each id: 256 bytes, and then what merges make."""
    tokens = [bytes([b]) for b in range(256)]
    for a, b in merges:
        tokens.append(tokens[a] + tokens[b])
    return tokens


GPT2 = (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
        r"|\s+(?!\S)|\s+")


@functools.cache
def other_numbers() -> str:
    """What goes between [ and ] for all numbers that are not \\d."""
    places = [c for c in range(sys.maxunicode + 1)
              if unicodedata.category(chr(c)) in ("Nl", "No")]
    gaps = [i for i, (a, b) in enumerate(pairwise(places)) if b != a + 1]
    first = [places[i] for i in (0, *[g + 1 for g in gaps])]
    last = [places[i] for i in (*gaps, -1)]
    # Ranges, since `re` tries what stands in a class one by one.
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(first, last))


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    r"""A pattern with \p{L}, \p{N}, \s, \S and [^\s\p{L}\p{N}].

    These mean what Unicode says, as in the package `regex`.
    """
    other = other_numbers()
    letter = rf"[^\W\d_{other}]"
    # Words of A to Z are spared the search among the ranges.
    letters = rf"(?:[A-Za-z]++(?![^\W\d_])|{letter}+)"
    classes = {r"[^\s\p{L}\p{N}]": r"(?:[^\s\w]|[_\x1c-\x1f])",
               r"\p{L}+": letters, r"\p{L}": letter,
               r"\p{N}": rf"[\d{other}]",
               r"\s": r"[^\S\x1c-\x1f]", r"\S": r"[\S\x1c-\x1f]"}
    names = "|".join(map(re.escape, classes))
    return re.compile(re.sub(names, lambda m: classes[m[0]], pattern))


def words_of(text: str, pattern: str) -> list[str]:
    """A text in the pieces that a pattern finds, which are all of it."""
    words = compiled(pattern).findall(text)
    if "".join(words) != text:
        raise ValueError(f"the pattern {pattern!r} leaves out some of the "
                         f"text: add an alternative for the rest")
    return words


class PairCounts:
    """How often each pair occurs in words, kept up while pairs merge.

    `words` says how often each word occurs, which must not be 0.
    """

    def __init__(self, words: dict[bytes, int]):
        self.words = [list(word) for word in words]
        self.times = list(words.values())
        self.counts: Counter[Pair] = Counter()
        self.where: defaultdict[Pair, set[int]] = defaultdict(set)
        for i, word in enumerate(self.words):
            for pair in pairwise(word):
                self.counts[pair] += self.times[i]
                self.where[pair].add(i)
        self.heap = [(-n, pair) for pair, n in self.counts.items()]
        heapify(self.heap)

    def best(self) -> Pair | None:
        """The most frequent pair; None if no pair comes twice."""
        while self.heap:
            n, pair = heappop(self.heap)
            now = self.counts[pair]
            if now == -n:
                return pair if now > 1 else None
            if now:
                heappush(self.heap, (-now, pair))
        return None

    def merge(self, pair: Pair, new: int) -> None:
        """Make `new` of the pair, in the words that have it."""
        made = set()
        for i in self.where.pop(pair):
            times, old = self.times[i], self.words[i]
            self.words[i] = replaced(old, pair, new)
            for p in pairwise(old):
                self.counts[p] -= times
            for p in pairwise(self.words[i]):
                self.counts[p] += times
                if new in p:
                    self.where[p].add(i)
                    made.add(p)
        for p in made:
            heappush(self.heap, (-self.counts[p], p))


def learned(words: dict[bytes, int]) -> Iterator[Pair]:
    """Merge after merge, the new ids from 256 on, while a pair repeats."""
    counts, new = PairCounts(words), 256
    while pair := counts.best():
        counts.merge(pair, new)
        new += 1
        yield pair


class Tokenizer:
    """Byte-pair encoding on bytes: any text to ids, and back.

    `vocab` gives the ids of tokens, `merges` the pairs of tokens that
    become one, the first learned first; `special` the ids of texts that
    only the program writes; `pattern` what merges do not cross.
    """

    def __init__(self, vocab: dict[bytes, int],
                 merges: Sequence[tuple[bytes, bytes]],
                 special: dict[str, int] | None = None,
                 pattern: str = GPT2):
        self.vocab, self.merges = vocab, list(merges)
        self.special, self.pattern = special or {}, pattern
        check_vocabulary(self.vocab, self.merges, self.special)
        self.tokens = {i: token for token, i in vocab.items()} | {
            i: name.encode() for name, i in self.special.items()}
        self.single = [vocab[bytes([b])] for b in range(256)]
        self.made = [vocab[a + b] for a, b in self.merges]
        self.rank = {(vocab[a], vocab[b]): rank
                     for rank, (a, b) in enumerate(self.merges)}

    @property
    def n_vocab(self) -> int:
        """How many rows an embedding of these ids needs."""
        return max(self.tokens) + 1

    def __repr__(self) -> str:
        return f"Tokenizer(n_vocab={self.n_vocab}, special={self.special})"

    @classmethod
    def train(cls, text: str, vocab_size: int,
              special: Sequence[str] = (),
              pattern: str = GPT2) -> Tokenizer:
        """Learn merges until there are `vocab_size` tokens in all.

        The bytes are 0 to 255, then the merges, then `special`. A short
        text gives fewer, since no pair is left that comes twice: see
        `n_vocab`.
        """
        n = vocab_size - 256 - len(special)
        if len(set(special)) < len(special):
            raise ValueError(f"train: expected a list of special tokens "
                             f"that differ, got {special!r}")
        if n < 0:
            raise ValueError(f"train: expected a vocab_size of 256 bytes "
                             f"and {len(special)} special tokens at least, "
                             f"got {vocab_size}")
        words = Counter(words_of(text, pattern))
        found = learned({utf8(word): k for word, k in words.items()})
        pairs = list(islice(found, n))
        tokens = tokens_of(pairs)
        return cls({token: i for i, token in enumerate(tokens)},
                   [(tokens[a], tokens[b]) for a, b in pairs],
                   dict(zip(special, count(len(tokens)))), pattern)

    def merged(self, word: bytes) -> list[int]:
        """The ids of a word, in time n log n."""
        # Behind the last place stands an id that is in no pair, and it is
        # also what the first place finds at -1, to its left.
        n, ids = len(word), [*[self.single[b] for b in word], -1]
        left, right = [*range(-1, n)], [*range(1, n + 1), n]
        ready: list[tuple[int, int]] = []

        def offer(i: int) -> None:
            rank = self.rank.get((ids[i], ids[right[i]]))
            if rank is not None:
                heappush(ready, (rank, i))

        for i in range(n):
            offer(i)
        while ready:
            rank, i = heappop(ready)
            j = right[i]
            if self.rank.get((ids[i], ids[j])) == rank:  # and is still so
                ids[i], ids[j] = self.made[rank], -1
                right[i] = right[j]
                left[right[j]] = i
                offer(left[i])
                offer(i)
        return [i for i in ids if i >= 0]

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special."""
        words = words_of(text, self.pattern)
        ids = {word: self.merged(utf8(word)) for word in set(words)}
        return list(chain.from_iterable(map(ids.__getitem__, words)))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens, one after the other."""
        return b"".join(looked_up(self.tokens, ids))

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of the tokens; � stands for bytes that are no text."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def encode(self, text: str,
               allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of a text; `decode` gives the text back.

        Special tokens are made of the texts in `allowed_special` ("all"
        for all of them); in any other place their letters are letters.
        """
        names = self.special if allowed_special == "all" else allowed_special
        if unknown := sorted(set(names) - self.special.keys()):
            raise ValueError(f"encode: no special tokens {unknown}; expected "
                             f"'all', or some of {sorted(self.special)}")
        # The longest first, for one may begin as another does.
        either = "|".join(map(re.escape, sorted(names, key=len)[::-1]))
        parts = re.split(f"({either})", text) if names else [text]
        found = [[self.special[part]] if odd % 2 else
                 self.encode_ordinary(part) for odd, part in enumerate(parts)]
        return list(chain.from_iterable(found))

    def save(self, path: str | Path) -> None:
        """Write a JSON file that `load` reads."""
        found = {"pattern": self.pattern, "special": self.special,
                 "vocab": {spelled(t): i for t, i in self.vocab.items()},
                 "merges": [" ".join(map(spelled, m)) for m in self.merges]}
        text = json.dumps(found, ensure_ascii=False, indent=0)
        write_atomically(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """What `save` wrote; a ValueError says why a file is none."""
        with read_or_refuse(path) as text:
            found = json.loads(text)
            compiled(found["pattern"])
            return cls(vocab_of(found["vocab"]), merges_of(found["merges"]),
                       found["special"], found["pattern"])

    @classmethod
    def from_files(cls, vocab: str | Path,
                   merges: str | Path) -> Tokenizer:
        """Read `vocab.json` and `merges.txt`, in GPT-2's format."""
        with read_or_refuse(merges) as text:
            lines = [line for line in text.split("\n")
                     if line and not line.startswith("#version")]
            pairs = merges_of(lines)
        made = {*STAND_INS, *[line.replace(" ", "") for line in lines]}
        with read_or_refuse(vocab) as text:
            ids = json.loads(text)
            special = {name: i for name, i in ids.items()
                       if name not in made and re.fullmatch("<.*>", name)}
            own = {name: ids[name] for name in ids if name not in special}
            return cls(vocab_of(own), pairs, special)


def check_vocabulary(vocab: dict[bytes, int],
                     merges: Sequence[tuple[bytes, bytes]],
                     special: dict[str, int]) -> None:
    """A ValueError says what keeps these from being a vocabulary."""
    ids = [*vocab.values(), *special.values()]
    known = {bytes([b]) for b in range(256)}
    if missing := len(known - vocab.keys()):
        raise ValueError(f"{missing} of the 256 bytes have no token")
    if not all(type(i) is int and i >= 0 for i in ids) or "" in special:
        raise ValueError("expected texts that are not empty, with whole "
                         "numbers from 0 on as ids")
    if len(set(ids)) < len(ids):
        raise ValueError("two tokens share an id")
    for rank, (a, b) in enumerate(merges):
        if a not in known or b not in known or a + b in known:
            raise ValueError(f"merge {rank}, {a!r} and {b!r}: expected two "
                             f"tokens made before it, and a new one of them")
        known.add(a + b)
    if known != vocab.keys():
        odd = min(known ^ vocab.keys())
        raise ValueError(f"{odd!r} is among the merges or the tokens, and "
                         f"not among both")


def utf8(text: str) -> bytes:
    """The bytes of a text; half of a surrogate pair has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected text, got {text[error.start]!r} in it, half of a "
            f"character: read the file as UTF-8") from None


def stand_ins() -> str:
    """A visible character for each of the 256 bytes (as in GPT-2)."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = map(chr, range(256, 512))
    return "".join(chr(b) if b in visible else next(others)
                   for b in range(256))


STAND_INS = stand_ins()
BYTES = {char: byte for byte, char in enumerate(STAND_INS)}


def spelled(token: bytes) -> str:
    """A token in characters that can be seen, one for each byte."""
    return "".join([STAND_INS[b] for b in token])


def unspelled(text: str) -> bytes:
    """The token that was `spelled` as this text."""
    return bytes([BYTES[char] for char in text])


@contextlib.contextmanager
def read_or_refuse(path: str | Path) -> Iterator[str]:
    """A file's text; what is wrong with it becomes one ValueError."""
    try:
        yield Path(path).read_text(encoding="utf-8")
    except (ValueError, LookupError, TypeError, AttributeError,
            re.error) as error:
        raise ValueError(
            f"{path} is no whole vocabulary ({type(error).__name__}: "
            f"{error}); save it again, or fetch it anew") from None


def vocab_of(spelling: dict[str, int]) -> dict[bytes, int]:
    """The ids of tokens, from the ids of their spellings."""
    return {unspelled(token): i for token, i in spelling.items()}


def merges_of(lines: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """The pairs of tokens that lines like `Ġ t` spell."""
    pairs = [line.split(" ") for line in lines]
    return [(unspelled(a), unspelled(b)) for a, b in pairs]
