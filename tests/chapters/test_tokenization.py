# Tangled from tokenization: edit there, `make tangle`. sha256:813113d2f6dd
from __future__ import annotations

import json
import sys
import tempfile
import unicodedata
from collections import Counter
from itertools import chain, groupby, pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings, strategies as st

from companion.literate import message
from companion.tokenizer import (
    GPT2, STAND_INS, CharTokenizer, Tokenizer, compiled, learned, replaced)


def naive(ids, n):
    """n merges, each after a look at the whole text."""
    merges = []
    for new in range(256, 256 + n):
        counts = Counter(pairwise(ids))
        if not counts:
            break
        pair = min(counts, key=lambda p: (-counts[p], p))
        ids = replaced(ids, pair, new)
        merges.append(pair)
    return merges, ids


def kind(char):
    """Unicode's own answer: letter, number, space or anything else."""
    category = unicodedata.category(char)
    return ("s" if category[0] == "Z" or char in "\t\n\v\f\r\x85" else
            category[0] if category[0] in "LN" else "other")


def test_classes_are_unicodes():
    every = [chr(c) for c in range(sys.maxunicode + 1)]
    kinds, whole = [kind(c) for c in every], "".join(every)
    for name, those in ((r"\p{L}", "L"), (r"\p{N}", "N"), (r"\s", "s"),
                        (r"\S", ("L", "N", "other")),
                        (r"[^\s\p{L}\p{N}]", ("other",))):
        expected = [c for c, k in zip(every, kinds) if k in those]
        assert compiled(name).findall(whole) == expected
    mixed = "aé½b" + whole + "zⅧz²éa_x"
    runs = ["".join(run) for letters, run in groupby(
        mixed, key=lambda c: kind(c) == "L") if letters]
    assert compiled(r"\p{L}+").findall(mixed) == runs


def spread(words):
    """All the words in one row, each behind a mark of its own."""
    ids = []
    for word in chain.from_iterable([w] * n for w, n in words.items()):
        ids += [-len(ids) - 1, *word]
    return ids


def test_counts_kept_are_counts_made_anew():
    draw = np.random.default_rng(0)
    for letters in (1, 2, 3, 5) * 10:
        words = {bytes(draw.integers(0, letters, n, np.uint8)): n % 3 + 1
                 for n in (40, 25, 9, 2, 1)}
        found = list(learned(words))
        expected, rest = naive(spread(words), len(found))
        assert found == expected
        assert max(Counter(pairwise(rest)).values()) == 1


def plainly(tokenizer, word):
    """The ids of a word: of all pairs, merge the earliest, and repeat."""
    ids = [tokenizer.single[b] for b in word]
    while ranks := [(tokenizer.rank[p], i) for i, p in
                    enumerate(pairwise(ids)) if p in tokenizer.rank]:
        rank, i = min(ranks)
        ids[i:i + 2] = [tokenizer.made[rank]]
    return ids


EXCERPT = r"""
Ġ t 256 Ġ a 257 h e 258 r e 260 o n 261 Ġt he 262 e r 263 Ġ s 264 a t 265 Ġ w
266 e n 268 Ġ c 269 i s 271 o r 273 Ġ b 275 e d 276 Ġ f 277 Ġa n 281 a l 282 Ġt
o 284 Ġ d 288 Ġan d 290 a s 292 l e 293 l l 297 Ġ re 302 o t 313 Ġ I 314 u t
315 Ġ is 318 i m 320 i g 328 a c 330 u r 333 Ġ u 334 l d 335 Ġ M 337 Ġ he 339 Ġ
B 347 Ġ 1 352 c h 354 Ġa s 355 n d 358 Ġ 2 362 Ġ H 367 Ġ r 374 Ġs e 384 Ġa re
389 ig h 394 Ġ N 399 igh t 432 T he 464 Ġw or 476 i e 494 i z 528 e p 538 ac h
620 e ll 695 ur n 700 Ġ 6 718 Ġ = 796 Ġ 8 807 e f 891 Ġwor ld 995 Ġre t 1005 o
ot 1025 1 2 1065 ' m 1101 Ġ1 2 1105 ut e 1133 iz ed 1143 Ġ2 0 1160 Ġ + 1343 at
s 1381 Ġret urn 1441 Ġb o 1489 2 5 1495 Ġs w 1509 2 4 1731 a f 1878 Ġ x 2124 ĠM
e 2185 4 5 2231 Ġc al 2386 ) : 2599 0 4 3023 L L 3069 6 8 3104 6 7 3134 Ġu nd
3318 7 7 3324 k en 3464 d ef 4299 Ġd ie 4656 ã Ģ 5099 Ġse a 5417 Ġs ch 5513 Ġt
on 5680 Ġhe ll 5968 Ġ Î 7377 Ġr u 7422 ð Ł 8582 le ep 8892 Ġsw im 9422 Ġcal m
9480 Ġton ight 9975 12 3 10163 ell o 11109 ĠH E 11179 Ġto ken 11241 à ¤ 11976 Ġ
Ð 12466 Ġ ðŁ 12520 he ll 12758 ä º 12859 Ø § 12919 å ¤ 13783 Ù Ħ 13862 Ð ¾
15166 H ello 15496 Ġas leep 16039 Ġbo ats 16659 ãĢ Ĥ 16764 12 7 16799 Ð µ 16843
Ġ12 3 17031 Î ± 17394 Ð ¸ 18849 ĠB oot 18892 Ġ Ù 18923 ach t 19725 ä » 20015 Ñ
Ĥ 20375 Ñ Ģ 21169 Ñ ģ 21727 Ð ½ 22177 Ù Ĭ 22654 Ø§ ÙĦ 23525 Ġhell o 23748 à ¥
24231 h ig 25196 Ù ħ 25405 Ð¾ Ð 25443 Î ½ 26180 ĠÎ ± 26367 Î ¿ 26517 Ø ± 26897
ĠÎ ² 27169 Ġ à¤ 28225 Ġ Ø§ÙĦ 28981 Î ¹ 29945 Ù Ī 30335 Î µ 30950 hell o 31373 Ð
º 31583 Ġ20 25 32190 Ï Ħ 32830 é ĥ 32849 å ¹ 33176 Ï ģ 33643 Ø§ Ø 34247 Î ¼
34703 Ï Ĥ 35558 æ µ 38184 Ï ĥ 38392 Î » 39377 Ø ¨ 39848 Ñ ı 40623 ĠÙ Ī 42092 Î
º 43000 Ñ Į 45367 Ø © 45632 Ï Ģ 46582 ĠHE LL 47899 à¤ ¾ 48077 Ġ20 24 48609 è Ī
48958
""".split()


def gpt2(folder):
    """GPT-2's tokenizer, as far as this page needs it, from its files."""
    triples = list(zip(EXCERPT[::3], EXCERPT[1::3], EXCERPT[2::3]))
    ids = {char: i for i, char in enumerate(sorted(STAND_INS))}
    ids |= {a + b: int(i) for a, b, i in triples}
    ids["<|endoftext|>"] = 50256
    lines = ["#version: 0.2", *[f"{a} {b}" for a, b, _ in triples], ""]
    (folder / "vocab.json").write_text(json.dumps(ids), "utf-8")
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    return Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")


SEA = {"English": "The sea is calm tonight and the boats are asleep.",
       "German": "Das Meer ist heute Nacht ruhig und die Boote schlafen.",
       "Greek": "Η θάλασσα είναι ήρεμη απόψε και οι βάρκες κοιμούνται.",
       "Russian": "Сегодня ночью море спокойно, и лодки спят.",
       "Hindi": "आज रात समुद्र शांत है और नावें सो रही हैं।",
       "Chinese": "今夜海面平静,船都睡着了。",
       "Arabic": "البحر هادئ الليلة والقوارب نائمة."}

RECORDED = {
    "Hello world, I'm tokenized.": [15496, 995, 11, 314, 1101, 11241, 1143,
     13],
    "hello": [31373],
    " hello": [23748],
    "Hello": [15496],
    " HELLO": [47899, 46],
    "127 + 677 = 804": [16799, 1343, 718, 3324, 796, 807, 3023],
    " 1234567": [17031, 2231, 3134],
    "1234568": [10163, 2231, 3104],
    " 2024 2025": [48609, 32190],
    "def f(x):\n        return x": [4299, 277, 7, 87, 2599, 198, 220, 220, 220,
     220, 220, 220, 220, 1441, 2124],
    "a 🐢 swims": [64, 12520, 238, 95, 9422, 82]}

RECORDED |= {
    SEA["English"]: [464, 5417, 318, 9480, 9975, 290, 262, 16659, 389, 16039,
     13],
    SEA["German"]: [35, 292, 2185, 263, 318, 83, 339, 1133, 399, 19725, 7422,
     25196, 3318, 4656, 18892, 68, 5513, 75, 1878, 268, 13],
    SEA["Greek"]: [138, 245, 7377, 116, 138, 105, 39377, 17394, 38392, 38392,
     17394, 7377, 113, 138, 107, 26180, 17394, 29945, 7377, 106, 33643, 30950,
     34703, 138, 115, 26367, 46582, 139, 234, 139, 230, 30950, 7377, 118,
     17394, 29945, 7377, 123, 29945, 27169, 138, 105, 33643, 43000, 30950,
     35558, 7377, 118, 26517, 29945, 34703, 26517, 139, 235, 26180, 32830,
     17394, 29945, 13],
    SEA["Russian"]: [140, 94, 16843, 140, 111, 25443, 112, 22177, 40623, 12466,
     121, 15166, 141, 229, 45367, 141, 236, 12466, 120, 15166, 21169, 16843,
     220, 21727, 140, 123, 25443, 118, 25443, 117, 22177, 15166, 11, 12466,
     116, 12466, 119, 25443, 112, 31583, 18849, 220, 21727, 140, 123, 40623,
     20375, 13],
    SEA["Hindi"]: [11976, 228, 11976, 250, 28225, 108, 48077, 11976, 97, 28225,
     116, 11976, 106, 24231, 223, 11976, 99, 24231, 235, 11976, 108, 28225,
     114, 48077, 11976, 224, 11976, 97, 28225, 117, 24231, 230, 28225, 242,
     11976, 108, 28225, 101, 48077, 11976, 113, 24231, 229, 11976, 224, 28225,
     116, 24231, 233, 28225, 108, 11976, 117, 24231, 222, 28225, 117, 24231,
     230, 11976, 224, 24231, 97],
    SEA["Chinese"]: [20015, 232, 13783, 250, 38184, 115, 165, 251, 95, 33176,
     111, 165, 251, 247, 11, 48958, 117, 32849, 121, 163, 251, 94, 163, 251,
     222, 12859, 228, 16764],
    SEA["Arabic"]: [23525, 39848, 148, 255, 26897, 18923, 229, 34247, 107, 148,
     99, 28981, 13862, 22654, 13862, 45632, 42092, 23525, 149, 224, 30335,
     12919, 26897, 39848, 18923, 228, 34247, 99, 25405, 45632, 13]}


def test_gpt2_is_read_and_cuts_as_the_reference():
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = gpt2(Path(folder))
    for text, ids in RECORDED.items():
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<|endoftext|>", "all") == [50256]
    assert 50256 not in tokenizer.encode("<|endoftext|>")


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@settings(max_examples=200, deadline=None)
@given(anything, anything, st.integers(256, 300))
def test_any_text_comes_back(known, other, size):
    tokenizer = Tokenizer.train(known * 3, size, ["<|end|>"][:size - 256])
    for text in known, other, f"{known}<|end|>{other}":
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert max(ids, default=0) < tokenizer.n_vocab <= size
        assert not set(ids) & set(tokenizer.special.values())
        allowed = tokenizer.encode(text, "all")
        assert tokenizer.decode(allowed) == text


@settings(max_examples=200, deadline=None)
@given(st.text("ab", max_size=60), st.text("abc", max_size=60))
def test_the_heap_merges_as_the_plain_version_does(known, word):
    tokenizer = Tokenizer.train(known, 290)
    expected = plainly(tokenizer, word.encode())
    assert tokenizer.merged(word.encode()) == expected


PIECES = ["We", "'re", " in", " 1969", ":", " it", "'s", " ", " Part",
          " №", "2½", ",", "\n\n", "\t", "x", "²", " —", " naïve", "!",
          " don", "’", "t", " CAN", "'", "T", " '", "tis", "\x1c", " a",
          "\xa0", "b", "\u2003", " \u200b", "c", " Ⅷ", "一二", "  \r",
          "\n", "_", "x", "__", " '", "ll"]


def test_words_are_cut_as_by_regex():
    assert compiled(GPT2).findall("".join(PIECES)) == PIECES


@settings(max_examples=100, deadline=None)
@given(anything)
def test_the_first_cut_loses_nothing(text):
    assert "".join(compiled(GPT2).findall(text)) == text


def test_merges_are_those_of_a_count_by_hand():
    text = "low low low lower lower newest newest"
    some = Tokenizer.train(text, 261)
    assert some.merges == [(b"l", b"o"), (b"lo", b"w"), (b" ", b"low"),
                           (b" ", b"n"), (b"e", b"r")]
    assert some.n_vocab == 261
    few = Tokenizer.train("abc", 300)
    assert few.n_vocab == 256 and few.merges == []
    empty = Tokenizer.train("", 300, ["<|end|>"])
    assert empty.n_vocab == 257 and empty.encode("") == []


def test_special_tokens_are_made_where_they_are_allowed():
    names = ["<|end|>", "<|end|><|end|>", "."]
    some = Tokenizer.train("a.b " * 9, 270, names)
    end, two, dot = some.special.values()
    text = "a.<|end|><|end|>b<|end|>"
    assert not {end, two, dot} & set(some.encode(text))
    assert some.encode(text, "all")[1:3] == [dot, two]
    assert some.encode(text, ["<|end|>"]).count(end) == 3
    assert some.encode(text, {"."}).count(dot) == 1
    for allowed in ("all", {"."}, names[:1]):
        assert some.decode(some.encode(text, allowed)) == text
    assert "no special tokens ['no']" in message(
        lambda: some.encode("", ["no"]))


def test_a_file_gives_the_tokenizer_back():
    pattern = GPT2.replace(r"\p{N}+", r"\p{N}")
    some = Tokenizer.train("море, море 12 12 \n\x00 море", 290,
                           ["<|конец|>", " "], pattern)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "some.json")
        some.save(path)
        again = Tokenizer.load(path)
        assert [p.name for p in Path(folder).iterdir()] == ["some.json"]
        letters = CharTokenizer("aé🐢\n")
        letters.save(path)
        assert CharTokenizer.load(path).chars == letters.chars
    for name in "vocab", "merges", "special", "pattern":
        assert getattr(again, name) == getattr(some, name)
    text = "море 2024<|конец|>"
    assert again.encode(text, "all") == some.encode(text, "all")


def test_damaged_files_are_refused_in_one_line():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "some.json")
        Tokenizer.train("to be or not to be", 259).save(path)
        whole = path.read_text("utf-8")
        found = json.loads(whole)
        for change in ({"vocab": {}}, {"vocab": []}, {"merges": ["a b"]},
                       {"merges": ["ab"]}, {"merges": 3}, {"special": 1},
                       {"special": {"x": 0}}, {"special": {"": 999}},
                       {"special": {"x": "y"}}, {"pattern": "["},
                       {"merges": found["merges"][::-1]},
                       {"merges": found["merges"] * 2},
                       {"vocab": found["vocab"] | {" ": 999}}):
            path.write_text(json.dumps(found | change), "utf-8")
            said = message(lambda: Tokenizer.load(path))
            assert str(path) in said and "\n" not in said
        for text in "", "{}", "[]", "3", whole[:500]:
            path.write_text(text, "utf-8")
            assert str(path) in message(lambda: Tokenizer.load(path))
        path.write_bytes(b"\xff\xfe")
        assert "UnicodeDecodeError" in message(lambda: Tokenizer.load(path))
        for text in '{"chars": "aa"}', '{"chars": ["a"]}', "[]":
            path.write_text(text, "utf-8")
            assert str(path) in message(lambda: CharTokenizer.load(path))


def test_gpt2s_files_are_checked():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gpt2(folder)
        files = folder / "vocab.json", folder / "merges.txt"
        whole = files[1].read_text("utf-8")
        cut = whole[:whole.index("Ġan d")]
        for text in cut, whole[:400], whole + "a b c\n", whole + "q q\n":
            files[1].write_text(text, "utf-8")
            assert name in message(lambda: Tokenizer.from_files(*files))
        files[0].write_text("{", "utf-8")
        files[1].write_text(whole, "utf-8")
        assert "vocab.json" in message(lambda: Tokenizer.from_files(*files))


def test_bad_input_is_one_clear_line():
    some = Tokenizer.train("to be or not to be " * 3, 260)
    assert "below 260, got 260" in message(lambda: some.decode([260]))
    assert "got -1" in message(lambda: some.decode([-1]))
    assert "one row" in message(lambda: some.decode([[1, 2]]))
    assert "half of a character" in message(lambda: some.encode("\ud83d"))
    assert "at least, got 200" in message(lambda: Tokenizer.train("", 200))
    letters = CharTokenizer.train("to be")
    assert "got -1" in message(lambda: letters.decode([-1]))
    assert "that differ" in message(
        lambda: Tokenizer.train("to be", 300, special="<|end|>"))
    assert "leaves out" in message(
        lambda: Tokenizer.train("to be", 300, pattern=r"\p{L}+"))
    assert "no token for ['x', 'é']" in message(lambda: letters.encode("éx"))
    for ids in ([0, 1], (0, 1), np.array([0, 1]), iter([0, 1])):
        assert some.decode(ids) == "\0\1" and len(letters.decode([0])) == 1
    assert some.decode([255]) == "�"


def test_long_words_are_no_trap():
    some = Tokenizer.train("thou " * 9, 260)
    ids = some.encode("thou" * 50_000)
    assert len(ids) <= 100_000 and some.decode(ids) == "thou" * 50_000
