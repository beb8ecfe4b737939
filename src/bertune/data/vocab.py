"""Subword vocabularies: a model folder's files -> a tokenizer of the Rust library, its special tokens put in by us.

Read are `tokenizer.json`; else `vocab.txt` (WordPiece); else `vocab.json` + `merges.txt` (byte-level BPE). Truncation
and padding that a tokenizer.json brings along are cleared. A special token written inside a text is plain text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Any

import numpy as np
from tokenizers import AddedToken, Encoding, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Rust

from bertune.data.ragged import Column, Special, Template
from bertune.data.scripts import is_unspaced
from bertune.errors import ModelError, listed

_NAMES = {
    "cls_token": ("[CLS]", "<s>", "<cls>"),
    "sep_token": ("[SEP]", "</s>", "<sep>"),
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "mask_token": ("[MASK]", "<mask>"),
}
# Of a saved tokenizer_config.json: places on some machine, remote code, cutting and padding of another program, and
# switches that would make transformers build the special tokens anew instead of reading them from tokenizer.json.
_DROPPED = {
    "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "is_local", "local_files_only",
    "auto_map", "max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "add_bos_token", "add_eos_token",
}  # fmt: skip
_NO_SEGMENTS = {"distilbert", "roberta", "xlm-roberta", "camembert", "modernbert"}
_POSITIONS_AFTER_PAD = {"roberta", "xlm-roberta", "camembert"}


class Subwords:
    """WordPiece, byte-level BPE or Unigram, and what stands beside it in its folder."""

    takes_parses = False
    chunk_rows = 4096  # rows handed over at once; bounds memory

    def __init__(self, rust: Rust, *, folder: Path, config: dict[str, Any], model: dict[str, Any]) -> None:
        self.rust, self.config, self.model, self.place = rust, config, model, folder
        rust.no_truncation()
        rust.no_padding()
        rust.encode_special_tokens = True  # "[SEP]" in a text is then text
        self.names = _special_names(rust, config, _json(folder / "special_tokens_map.json"))
        self.keep = {
            name: (folder / name).read_bytes()
            for name in ("vocab.txt", "special_tokens_map.json")
            if (folder / name).is_file()
        }
        self.single, self.pair = self._templates()
        self.segments = self._segments()
        if not self.segments:
            self.single, self.pair = self.single.without_types(), self.pair.without_types()
        self.vocab_size = max(rust.get_vocab(with_added_tokens=True).values()) + 1
        self.unk_id = self._id("unk_token", -1)
        self.pad_id = self._id("pad_token", int(model.get("pad_token_id") or 0))

    @classmethod
    def read(cls, folder: Path) -> Subwords:
        config, model = _json(folder / "tokenizer_config.json"), _json(folder / "config.json")
        with _RustErrors(folder):
            if (folder / "tokenizer.json").is_file():
                rust = Rust.from_str(_text(folder / "tokenizer.json"))
            elif (folder / "vocab.txt").is_file():
                rust = _word_piece(folder / "vocab.txt", config)
            else:
                rust = _byte_level(folder, config)
            return cls(rust, folder=folder, config=config, model=model)

    def column(self, texts: list[str]) -> Column:
        """Ids of `texts` without special tokens, on all cores."""
        encodings = self.rust.encode_batch_fast(takeable(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        values = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
        return Column(values, lengths)

    @property
    def mask_id(self) -> int | None:
        """Id of the mask token, None where the vocabulary has none."""
        number = self._id("mask_token", -1)
        return None if number < 0 else number

    def special_ids(self) -> list[int]:
        """Ids of the special tokens, the unknown one among them, and of what else the files mark as special."""
        marked = {number for number, token in self.rust.get_added_tokens_decoder().items() if token.special}
        return sorted(marked | {self._id(name, self.pad_id) for name in self.names})

    def continuations(self) -> np.ndarray:
        """bool [vocab_size]: pieces that go on with a word which an earlier token began.

        WordPiece marks them with ##. Other vocabularies mark what begins after a space; a piece without that mark goes
        on with a word where it begins with a letter or a digit, so that punctuation stands by itself, and so does what
        begins with a Chinese character or one of another script without spaces.
        """
        goes_on = np.zeros(self.vocab_size, dtype=bool)
        tokens = self.rust.get_vocab(with_added_tokens=True)
        prefix = getattr(self.rust.model, "continuing_subword_prefix", None)
        for token, number in tokens.items():
            if isinstance(self.rust.model, models.WordPiece):
                goes_on[number] = token.startswith(prefix or "##")
            else:
                goes_on[number] = token[:1] not in ("Ġ", "Ċ", "▁") and token[:1].isalnum() and not is_unspaced(token[0])
        goes_on[self.special_ids()] = False
        return goes_on

    def spans(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Begin and end, in characters, of each token that `column` makes of each text."""
        encodings = self.rust.encode_batch(takeable(texts), add_special_tokens=False)
        return [encoding.offsets for encoding in encodings]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [self.rust.id_to_token(int(number)) or "" for number in ids]

    def content(self) -> bytes:
        """What the ids of a text depend on."""
        return hashlib.sha256(self.rust.to_str().encode("utf-8")).digest()

    def save(self, folder: Path) -> None:
        """tokenizer.json and the files beside it, so that transformers' AutoTokenizer gives the same ids.

        The class named in tokenizer_config.json is the general one, which reads tokenizer.json as it is; the classes of
        the architectures build a tokenizer anew from a few options and can differ from it.
        """
        (folder / "tokenizer.json").write_text(self.rust.to_str(pretty=True), encoding="utf-8", newline="\n")
        text = json.dumps(self._saved_config(), ensure_ascii=False, indent=2)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8", newline="\n")
        for name, content in self.keep.items():
            (folder / name).write_bytes(content)

    def _saved_config(self) -> dict[str, Any]:
        config = {key: value for key, value in self.config.items() if key not in _DROPPED}
        if _is_machine_path(str(config.get("name_or_path", ""))):
            config.pop("name_or_path", None)
        for name, token in self.names.items():
            if not config.get(name):
                config[name] = token
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        segments = ["token_type_ids"] if self.segments else []
        config.setdefault("model_input_names", ["input_ids", *segments, "attention_mask"])
        limit, positions = config.get("model_max_length"), self.model.get("max_position_embeddings")
        if not isinstance(limit, int) or limit > 1_000_000:  # transformers writes 1e30 for "not known"
            config.pop("model_max_length", None)
            if isinstance(positions, int):
                after_pad = self.model.get("model_type") in _POSITIONS_AFTER_PAD
                config["model_max_length"] = positions - (self.pad_id + 1 if after_pad else 0)
        return config

    def _id(self, name: str, default: int) -> int:
        number = self.rust.token_to_id(self.names[name]) if name in self.names else None
        return default if number is None else number

    def _segments(self) -> bool:
        """Whether the model is told which side a token belongs to."""
        names = self.config.get("model_input_names")
        if isinstance(names, list):
            return "token_type_ids" in names
        if str(self.config.get("tokenizer_class", "")).startswith("DistilBert"):
            return False
        return self.model.get("model_type") not in _NO_SEGMENTS and self.model.get("type_vocab_size", 2) > 1

    def _templates(self) -> tuple[Template, Template]:
        """From the tokenizer's own post-processor; where that adds nothing, `cls a sep` and `cls a sep b sep`."""
        single = self._probe(pair=False)
        if not (single.prefix and single.suffix):
            missing = [name for name in ("cls_token", "sep_token") if name not in self.names]
            if missing:
                raise ModelError(
                    f"{self.place}: the tokenizer puts no special tokens around a text and names no {listed(missing)}; "
                    "set them in tokenizer_config.json, as an encoder such as BERT has them."
                )
            cls, sep = self.names["cls_token"], self.names["sep_token"]
            self.rust.post_processor = processors.TemplateProcessing(
                single=f"{cls}:0 $A:0 {sep}:0",
                pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
                special_tokens=[(cls, self._id("cls_token", 0)), (sep, self._id("sep_token", 0))],
            )
            single = self._probe(pair=False)
        return single, self._probe(pair=True)

    def _probe(self, *, pair: bool) -> Template:
        """The template, read off an encoded text."""
        texts = itertools.chain(("a", "1", "."), itertools.islice(self.rust.get_vocab(), 1000))
        text = next((text for text in texts if self.rust.encode(text, add_special_tokens=False).ids), None)
        if text is None:
            raise ModelError(f"{self.place}: the tokenizer makes no tokens of any text.")
        encoding = self.rust.encode(text, text if pair else None)
        sides: list[int | None] = encoding.sequence_ids
        begin, end = sides.index(0), len(sides) - sides[::-1].index(0)
        prefix, first_type = _specials(encoding, 0, begin), encoding.type_ids[begin]
        if not pair:
            return Template(prefix, first_type, (), 0, _specials(encoding, end, None))
        second, last = sides.index(1), len(sides) - sides[::-1].index(1)
        between, suffix = _specials(encoding, end, second), _specials(encoding, last, None)
        return Template(prefix, first_type, between, encoding.type_ids[second], suffix)


class _RustErrors:
    """Turns errors of the Rust library into ours: it raises `Exception` itself, whose subclasses must not be caught."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is Exception:
            raise ModelError(f"{self.folder}: its tokenizer files are damaged or of an unknown kind: {error}") from None


def _word_piece(path: Path, config: dict[str, Any]) -> Rust:
    """BERT's tokenizer over a list of tokens, one a line.

    Without `do_lower_case` in tokenizer_config.json, text is lower-cased unless the vocabulary has entries with capital
    letters (other than special tokens such as [CLS] and <S>).
    """
    lines = _text(path).split("\n")
    tokens = lines[:-1] if lines[-1] == "" else lines
    names = {name: _content(config.get(name)) or choices[0] for name, choices in _NAMES.items()}
    missing = [names[name] for name in ("unk_token", "cls_token", "sep_token") if names[name] not in tokens]
    if missing:
        raise ModelError(f"{path}: the vocabulary has no {listed(missing)}; expected one token a line, as BERT has it.")
    cased = any(token != token.lower() and not re.fullmatch(r"\[.*\]|<.*>", token) for token in tokens)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    rust = Rust(models.WordPiece(vocabulary, unk_token=names["unk_token"], max_input_chars_per_word=100))
    lower, chinese = config.get("do_lower_case"), config.get("tokenize_chinese_chars")
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True if chinese is None else bool(chinese),
        strip_accents=config.get("strip_accents"),
        lowercase=not cased if lower is None else bool(lower),
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece(prefix="##")
    rust.add_special_tokens([token for token in names.values() if token in vocabulary])
    _add_tokens(rust, path.parent)
    return rust


def _byte_level(folder: Path, config: dict[str, Any]) -> Rust:
    """RoBERTa's tokenizer: `<s> a </s>` and `<s> a </s></s> b </s>`, all in segment 0."""
    names = {name: _content(config.get(name)) or choices[1] for name, choices in _NAMES.items()}
    rust = Rust(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    cls, sep = names["cls_token"], names["sep_token"]
    start, end = rust.token_to_id(cls), rust.token_to_id(sep)
    if start is None or end is None:
        missing = [token for token, number in ((cls, start), (sep, end)) if number is None]
        raise ModelError(f"{folder / 'vocab.json'}: the vocabulary has no {listed(missing)}, which RoBERTa's has.")
    space = bool(config.get("add_prefix_space", False))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    rust.decoder = decoders.ByteLevel()
    for name, token in names.items():
        if rust.token_to_id(token) is not None:
            rust.add_special_tokens([AddedToken(token, lstrip=name == "mask_token", special=True)])
    _add_tokens(rust, folder)
    rust.post_processor = processors.RobertaProcessing((sep, end), (cls, start), True, space)
    return rust


def _add_tokens(rust: Rust, folder: Path) -> None:
    """Tokens that older programs wrote beside the vocabulary."""
    for token, number in sorted(_json(folder / "added_tokens.json").items(), key=lambda item: item[1]):
        rust.add_tokens([AddedToken(token, normalized=False)])
        if rust.token_to_id(token) != number:
            raise ModelError(
                f"{folder / 'added_tokens.json'}: token {token!r} cannot have the id {number}; "
                "the ids must follow those of the vocabulary."
            )


def _special_names(rust: Rust, *files: dict[str, Any]) -> dict[str, str]:
    """Special tokens by name, as the files say or else by their usual writing; only those the vocabulary has."""
    names = {}
    for name, usual in _NAMES.items():
        tokens = [_content(file.get(name)) for file in files] + list(usual)
        found = next((token for token in tokens if token and rust.token_to_id(token) is not None), None)
        if found:
            names[name] = found
    return names


def _specials(encoding: Encoding, begin: int, end: int | None) -> tuple[Special, ...]:
    return tuple(map(Special, encoding.ids[begin:end], encoding.type_ids[begin:end]))


def _content(token: Any) -> str:
    """A special token is written as a string, or as an object with its content."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def takeable(texts: list[str]) -> list[str]:
    """The texts, with U+FFFD for lone surrogates (halves of a character), which UTF-8 cannot express."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]
    return texts


def _is_machine_path(name: str) -> bool:
    """Whether a model's name is a place on some machine; a hub name is `name` or `owner/name`."""
    return (
        name == ""
        or name.startswith((".", "~"))
        or name.count("/") > 1
        or "\\" in name
        or PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).is_absolute()
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not readable: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value
