"""Tokenizing: ids as transformers gives them, truncation by its stated rules, saved files that open."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Rust
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bertune.data.ragged import Column, Special, Template, assemble, kept_lengths
from bertune.data.tasks import Rows
from bertune.data.tokens import Encoded, Tokenizer
from bertune.data.vocab import Subwords
from bertune.errors import ConfigError, ModelError

WORDS = ["the", "a", "dog", "cat", "runs", "sleeps", "in", "park", "[", "]", "sep", "cls", "big", "##s", "red"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich!",
    "naïve café — “quotes”, emoji 🙂 and numbers 1,234.56",
    "   leading and  double   spaces\tand tabs ",
    "don't re-enter; it's over",
]
LONG = " ".join(f"word{i} of the longer text" for i in range(60))


def rows(*columns: list[str], pair: list[str] | None = None) -> Rows:
    return Rows(first=tuple(columns), second=None if pair is None else (pair,))


def listed(encoded: Encoded) -> list[list[int]]:
    return [part.tolist() for part in np.split(encoded.ids, encoded.offsets[1:-1])][: len(encoded)]


def segments(encoded: Encoded) -> list[list[int]]:
    return [part.tolist() for part in np.split(encoded.types, encoded.offsets[1:-1])][: len(encoded)]


def written(tokenizer: Tokenizer, encoded: Encoded) -> list[str]:
    return [" ".join(tokenizer.tokens(ids)) for ids in listed(encoded)]


def write_bert(folder: Path, tokens: list[str] | None = None, *, config: dict[str, object] | None = None) -> Path:
    (folder / "vocab.txt").write_text("\n".join(tokens or BERT) + "\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 512}', encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def byte_level(special: list[str]) -> Rust:
    """A tiny byte-level BPE without a post-processor."""
    rust = Rust(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    rust.train_from_iterator(SENTENCES * 3, trainer)
    return rust


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture
def bert(tmp_path: Path) -> Tokenizer:
    return Tokenizer.load(write_bert(tmp_path))


@pytest.fixture
def roberta_dir(tmp_path: Path) -> Path:
    """The two files of a RoBERTa before tokenizer.json, and its configuration."""
    byte_level(ROBERTA).model.save(str(tmp_path))
    config = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1, "type_vocab_size": 1}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


@pytest.fixture
def unigram_dir(tmp_path: Path) -> Path:
    """A tiny XLM-RoBERTa-like tokenizer.json."""
    rust = Rust(models.Unigram())
    rust.normalizer = normalizers.NFKC()
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=ROBERTA, unk_token="<unk>", show_progress=False)
    rust.train_from_iterator(SENTENCES * 3, trainer)
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    rust.enable_truncation(8)
    rust.enable_padding(length=8, pad_id=1, pad_token="<pad>")
    rust.save(str(tmp_path / "tokenizer.json"))
    config = {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


# Ids equal to transformers'


def test_embedded_truncation_and_padding_are_cleared_and_ids_equal_transformers(mini_dir: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.BertTokenizerFast.from_pretrained(mini_dir)
    tokenizer = Tokenizer.load(mini_dir)
    texts = [*SENTENCES, LONG, "", "中文 mixed with English"]
    ours = tokenizer.encode(rows(texts), max_length=None, truncation="longest-first")
    theirs = reference(texts, truncation=False, padding=False)
    assert listed(ours) == theirs["input_ids"] and segments(ours) == theirs["token_type_ids"]
    assert ours.lengths[len(SENTENCES)] > 300, "the long text is whole, not cut or padded to 128"
    pairs = tokenizer.encode(rows(texts, pair=texts[::-1]), max_length=None, truncation="longest-first")
    theirs = reference(texts, texts[::-1], truncation=False, padding=False)
    assert listed(pairs) == theirs["input_ids"] and segments(pairs) == theirs["token_type_ids"]


def test_longest_first_equals_transformers_where_no_odd_token_is_to_be_given(mini_dir: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.BertTokenizerFast.from_pretrained(mini_dir)
    tokenizer = Tokenizer.load(mini_dir)
    texts = [*SENTENCES, LONG]
    single = tokenizer.encode(rows(texts), max_length=64, truncation="longest-first")
    assert listed(single) == reference(texts, truncation="longest_first", max_length=64, padding=False)["input_ids"]
    first = [text for text in texts for _ in texts]
    second = texts * len(texts)
    # 65 - 3 special tokens leave an even budget, where both rules agree everywhere.
    even = tokenizer.encode(rows(first, pair=second), max_length=65, truncation="longest-first")
    theirs = reference(first, second, truncation="longest_first", max_length=65, padding=False)
    assert listed(even) == theirs["input_ids"] and segments(even) == theirs["token_type_ids"]
    # 64 leaves 61: where both sides are cut the odd token is the first side's here, that of the longer or second there.
    odd = tokenizer.encode(rows(first, pair=second), max_length=64, truncation="longest-first")
    theirs = reference(first, second, truncation="longest_first", max_length=64, padding=False)
    differing = [i for i, (a, b) in enumerate(zip(listed(odd), theirs["input_ids"], strict=True)) if a != b]
    assert differing == [len(first) - 1], "only the pair whose sides are both cut"
    assert (segments(odd)[-1].count(1), theirs["token_type_ids"][-1].count(1)) == (31, 32)


@pytest.mark.parametrize("pair", [False, True])
def test_chinese_vocabulary_gives_the_ids_of_transformers(shared_data: Path, tmp_path: Path, pair: bool) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = (shared_data / "vocab" / "bert-base-chinese-vocab.txt").read_text(encoding="utf-8")
    folder = write_bert(tmp_path, vocabulary.rstrip("\n").split("\n"))
    lines = (shared_data / "zh" / "dev.json").read_text(encoding="utf-8").splitlines()[:200]
    records = [json.loads(line) for line in lines]
    first, second = [r["sentence1"] for r in records], [r["sentence2"] for r in records]
    tokenizer = Tokenizer.load(folder)
    reference = transformers.BertTokenizerFast.from_pretrained(folder, do_lower_case=True)
    ours = tokenizer.encode(rows(first, pair=second if pair else None), max_length=41, truncation="longest-first")
    theirs = reference(first, second if pair else None, truncation="longest_first", max_length=41, padding=False)
    assert listed(ours) == theirs["input_ids"]
    assert tokenizer.encode(rows(["我爱北京"]), max_length=None, truncation="head").lengths.tolist() == [6]


# Special tokens


@pytest.mark.parametrize("text", ["the [SEP] dog", "[CLS]the[SEP]dog", "[PAD] [MASK]"])
def test_a_special_token_inside_a_text_is_plain_text(bert: Tokenizer, text: str) -> None:
    ids = listed(bert.encode(rows([text]), max_length=None, truncation="head"))[0]
    assert ids[0] == 2 and ids[-1] == 3
    assert not {0, 2, 3, 4} & set(ids[1:-1])


def test_columns_are_joined_by_the_separator_in_segment_0(bert: Tokenizer) -> None:
    joined = rows(["the dog", "a cat"], ["runs", ""], ["in", "sleeps"])
    encoded = bert.encode(joined, max_length=None, truncation="head")
    assert written(bert, encoded) == ["[CLS] the dog [SEP] runs [SEP] in [SEP]", "[CLS] a cat [SEP] sleeps [SEP]"]
    assert not encoded.types.any()


def test_joined_columns_of_a_pair_keep_their_sides(bert: Tokenizer) -> None:
    both = Rows(first=(["the"], ["dog"]), second=(["a"], ["cat"]))
    encoded = bert.encode(both, max_length=None, truncation="head")
    assert written(bert, encoded) == ["[CLS] the [SEP] dog [SEP] a [SEP] cat [SEP]"]
    assert segments(encoded) == [[0, 0, 0, 0, 0, 1, 1, 1, 1]]
    assert (bert.num_special(False), bert.num_special(True)) == (2, 3)


def test_roberta_pairs_have_two_separators_and_no_segments(roberta_dir: Path) -> None:
    tokenizer = Tokenizer.load(roberta_dir)
    encoded = tokenizer.encode(rows(["dog"], pair=["fox"]), max_length=None, truncation="head")
    words = tokenizer.tokens(encoded.ids)
    assert words[0] == "<s>" and words[-1] == "</s>" and words.count("</s>") == 3
    assert not encoded.types.any() and tokenizer.num_special(True) == 4 and tokenizer.pad_id == 1


def test_a_model_without_segments_gets_none(tmp_path: Path) -> None:
    write_bert(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}', encoding="utf-8")
    encoded = Tokenizer.load(tmp_path).encode(rows(["the"], pair=["a"]), max_length=None, truncation="head")
    assert not encoded.types.any()


def test_missing_special_tokens_are_built_from_their_names_or_refused(tmp_path: Path) -> None:
    rust = byte_level(["[CLS]", "[SEP]"])
    rust.post_processor = processors.ByteLevel()
    rust.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    encoded = tokenizer.encode(rows(["dog"], pair=["dog"]), max_length=None, truncation="head")
    words = tokenizer.tokens(encoded.ids)
    assert words[0] == "[CLS]" and words[-1] == "[SEP]" and segments(encoded)[0][-1] == 1
    byte_level(["<end>"]).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"names no cls_token, sep_token; set them in tokenizer_config.json"):
        Tokenizer.load(tmp_path)


# Loading


def test_a_piece_that_begins_with_a_chinese_character_begins_a_word(tmp_path: Path) -> None:
    pieces = ["<s>", "</s>", "<pad>", "<unk>", "▁中", "国", "人民", "ed", "2", ",", "▁a"]
    rust = Rust(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    vocabulary = Subwords(rust, folder=tmp_path, config={}, model={})
    assert [pieces[number] for number in np.flatnonzero(vocabulary.continuations())] == ["ed", "2"]


def test_a_bare_vocabulary_is_lower_cased_unless_it_has_capital_letters(tmp_path: Path) -> None:
    def read(folder: Path) -> list[str]:
        tokenizer = Tokenizer.load(folder)
        return written(tokenizer, tokenizer.encode(rows(["The DOG"]), max_length=None, truncation="head"))

    assert read(write_bert(tmp_path)) == ["[CLS] the dog [SEP]"]
    assert read(write_bert(tmp_path, [*BERT, "The"])) == ["[CLS] The [UNK] [SEP]"]
    assert read(write_bert(tmp_path, [*BERT, "The"], config={"do_lower_case": True})) == ["[CLS] the dog [SEP]"]


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer found; looked for tokenizer.json, vocab.txt, vocab.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n")
    with pytest.raises(ModelError, match=r"sentencepiece.bpe.model: .* converted to tokenizer.json .*save_pretrained"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "WordPiece", "vocab": 3}}'])
def test_a_damaged_tokenizer_is_a_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match="damaged or of an unknown kind"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_without_special_tokens_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vocab.txt: the vocabulary has no \[UNK\], \[CLS\], \[SEP\]"):
        Tokenizer.load(write_bert(tmp_path, ["a", "b"]))


def test_any_text_is_taken(mini_dir: Path) -> None:
    tokenizer = Tokenizer.load(mini_dir)
    texts = ["\ud800 half \udc00", "nul \x00 and \x1b", "", " \n", "\U0001f642" * 50, "\ufffd half \ufffd"]
    encoded = tokenizer.encode(rows(texts), max_length=None, truncation="head")
    ids = listed(encoded)
    assert len(encoded) == len(texts) and ids[0] == ids[5], "a lone surrogate is read as U+FFFD"


def test_chunks_do_not_change_the_result(bert: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the dog", "a", "", "cat in park"] * 5
    whole = bert.encode(rows(texts, texts[::-1]), max_length=6, truncation="head")
    monkeypatch.setattr(bert._vocabulary, "chunk_rows", 3)
    parts = bert.encode(rows(texts, texts[::-1]), max_length=6, truncation="head")
    assert listed(parts) == listed(whole) and parts.truncation() == whole.truncation()
    assert len(bert.encode(rows([]), max_length=6, truncation="head")) == 0


def test_the_fingerprint_changes_with_the_vocabulary_only(tmp_path: Path) -> None:
    first = Tokenizer.load(write_bert(tmp_path)).fingerprint
    assert Tokenizer.load(tmp_path).fingerprint == first
    assert Tokenizer.load(write_bert(tmp_path, [*BERT, "new"])).fingerprint != first


# Truncation

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=20)


def reference(first: int, second: int, budget: int, truncation: str) -> tuple[int, int]:
    """The rules, one token at a time."""
    while first + second > budget:
        cut_second = second >= first if truncation == "longest-first" else second > 0
        first, second = (first, second - 1) if cut_second else (first - 1, second)
    return first, second


@given(LENGTHS, LENGTHS, st.integers(1, 60), st.sampled_from(["longest-first", "only-second", "head"]))
def test_truncation_equals_a_token_at_a_time(a: list[int], b: list[int], budget: int, truncation: str) -> None:
    size = min(len(a), len(b))
    kept = kept_lengths(np.array(a[:size]), np.array(b[:size]), budget=budget, truncation=truncation)
    expected = [reference(*pair, budget, truncation) for pair in zip(a[:size], b[:size], strict=True)]
    assert list(zip(*(side.tolist() for side in kept), strict=True)) == expected


TEXTS = st.lists(st.lists(st.integers(10, 99), max_size=12), min_size=1, max_size=6)


@settings(max_examples=60)
@given(TEXTS, TEXTS, TEXTS, st.integers(5, 30), st.sampled_from(["longest-first", "only-second", "head"]))
def test_rows_are_what_a_plain_loop_builds(
    a: list[list[int]], b: list[list[int]], c: list[list[int]], max_length: int, truncation: str
) -> None:
    size = min(len(a), len(b), len(c))
    template = Template((Special(1, 0),), 0, (Special(2, 0), Special(2, 0)), 1, (Special(3, 1),))
    encoded = assemble(
        template, [column(a[:size]), column(b[:size])], [column(c[:size])],
        separator=4, max_length=max_length, truncation=truncation, unk_id=50,
    )  # fmt: skip
    for i in range(size):
        one, two = a[i] + ([4, *b[i]] if b[i] else []), c[i]
        keep_one, keep_two = reference(len(one), len(two), max_length - 4, truncation)
        assert listed(encoded)[i] == [1, *one[:keep_one], 2, 2, *two[:keep_two], 3]
        assert segments(encoded)[i] == [0] * (keep_one + 3) + [1] * (keep_two + 1)
        assert encoded.full_lengths[i] == len(one) + len(two) + 4
        assert encoded.lengths[i] <= max_length
        if truncation == "only-second" and len(one) + 4 <= max_length:
            assert keep_one == len(one), "the first side is whole where it fits"
    assert encoded.unknown == sum(ids.count(50) for ids in listed(encoded))


def column(texts: list[list[int]]) -> Column:
    values = np.array([token for text in texts for token in text], dtype=np.int32)
    return Column(values, np.array([len(text) for text in texts], dtype=np.int64))


def test_the_report_counts_rows_and_tokens(bert: Tokenizer) -> None:
    texts = ["the big red dog runs in a park", "a cat", "zebra the cat"]
    report = bert.encode(rows(texts), max_length=6, truncation="head").truncation()
    assert report.tokens_cut_share == pytest.approx(4 / 13) and report.unknown_share == pytest.approx(1 / 9)
    assert report.sentence() == (
        "Truncation: 1 of 3 rows (33.3 %) lost 30.8 % of all tokens at max length 6. "
        "Unknown to the vocabulary: 11.1 % of the tokens."
    )
    fitting = bert.encode(rows(texts[1:2]), max_length=6, truncation="head").truncation()
    assert fitting.sentence() == "Truncation: none; all 1 rows fit into 6 tokens."


def test_impossible_options_are_clear_errors(bert: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"'tail' is unknown; expected one of longest-first, only-second, head"):
        bert.encode(rows(["a"]), max_length=8, truncation="tail")
    with pytest.raises(ConfigError, match=r"max length 3 has no room .* 3 special tokens .* at least 4"):
        bert.encode(rows(["a"], pair=["a"]), max_length=3, truncation="head")


# Saving


def check_saved(source: Path, target: Path) -> dict[str, object]:
    """transformers and `load` give from the saved folder the ids that the source gave; the saved configuration."""
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.load(source)
    tokenizer.save(target)
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    theirs = transformers.AutoTokenizer.from_pretrained(target)
    for pair in (None, SENTENCES[::-1]):
        ours = tokenizer.encode(rows(SENTENCES, pair=pair), max_length=None, truncation="head")
        encoded = theirs(SENTENCES, pair)
        assert listed(ours) == encoded["input_ids"]
        assert segments(ours) == encoded.get("token_type_ids", [[0] * len(ids) for ids in listed(ours)])
    assert theirs.pad_token_id == tokenizer.pad_id and theirs.model_max_length == 512
    again = Tokenizer.load(target)
    assert again.fingerprint == tokenizer.fingerprint and again.pad_id == tokenizer.pad_id
    saved = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is None and saved["padding"] is None
    config: dict[str, object] = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    return config


def test_a_saved_minilm_opens_in_transformers(mini_dir: Path, tmp_path: Path) -> None:
    config = check_saved(mini_dir, tmp_path)
    assert config["do_lower_case"] is True and config["name_or_path"] == "nreimers/MiniLM-L6-H384-uncased"
    assert (tmp_path / "vocab.txt").is_file() and (tmp_path / "special_tokens_map.json").is_file()


@pytest.mark.parametrize("more", [{}, {"do_lower_case": False, "strip_accents": False}])
def test_a_saved_bare_vocabulary_opens_in_transformers(tmp_path: Path, more: dict[str, object]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    letters = [chr(code) for code in range(97, 123)]
    write_bert(source, [*BERT, *letters, *("##" + letter for letter in letters), "The", "ü"], config=more)
    check_saved(source, tmp_path / "saved")


def test_a_saved_byte_level_vocabulary_opens_in_transformers(roberta_dir: Path) -> None:
    config = check_saved(roberta_dir, roberta_dir / "saved")
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


def test_a_saved_unigram_vocabulary_opens_in_transformers(unigram_dir: Path) -> None:
    check_saved(unigram_dir, unigram_dir / "saved")


def test_machine_paths_and_foreign_settings_are_not_saved(tmp_path: Path) -> None:
    names = {"name_or_path": "/home/someone/model", "tokenizer_file": "/x/tokenizer.json", "max_length": 128}
    write_bert(tmp_path)
    config = {"model_max_length": int(1e30), "unk_token": {"content": "[UNK]"}, **names}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    Tokenizer.load(tmp_path).save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not set(names) & set(config) and config["model_max_length"] == 512


# Where tokens stand in their text


def pieces(tokenizer: Tokenizer, texts: Rows, max_length: int | None = None) -> list[tuple[int, int, str]]:
    """Side, column and characters of each token that is of a text."""
    places = tokenizer.places(texts, max_length=max_length, truncation="longest-first")
    encoded = tokenizer.encode(texts, max_length=max_length, truncation="longest-first")
    assert len(places) == len(encoded.ids)
    sides = [texts.first, texts.second or ()]
    return [
        (side, column, sides[side][column][0][begin:end].strip())
        for side, column, begin, end in places.tolist()
        if side >= 0
    ]


def test_tokens_know_their_side_and_column_and_are_cut_as_ids_are(bert: Tokenizer) -> None:
    two = rows(["the BIG dogs"], ["red"], pair=["a cat sleeps"])
    whole = [(0, 0, "the"), (0, 0, "BIG"), (0, 0, "dog"), (0, 0, "s"), (0, 1, "red"), (1, 0, "a"), (1, 0, "cat"),
             (1, 0, "sleeps")]  # fmt: skip
    assert pieces(bert, two) == whole
    assert pieces(bert, two, max_length=7) == [*whole[:2], *whole[5:7]]


@pytest.mark.parametrize("kind", ["roberta_dir", "unigram_dir"])
def test_tokens_of_other_vocabularies_cover_their_text(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = Tokenizer.load(request.getfixturevalue(kind))
    for text in SENTENCES:
        found = pieces(tokenizer, rows([text]))
        whole = "".join(part for _, _, part in found)
        # A character of several bytes is of several tokens.
        assert set("".join(text.split())) <= set(whole)
        assert len(whole) >= len("".join(text.split()))
