"""From texts without labels to the sequences of a pre-training: sources, tokens, and what is held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bertune.config import Config, ReadConfig
from bertune.data.corpus import Corpus, Pieces, hold_out, open_corpus, pieces_of, segments_of
from bertune.data.documents import (
    Survey,
    TextSource,
    file_sources,
    row_cells,
    row_key,
    table_source,
    text_columns,
    units,
)
from bertune.data.masking import Masking
from bertune.data.read import FRAME, read_table
from bertune.data.sequences import Sequences
from bertune.data.tokens import Tokenizer
from bertune.errors import ConfigError, DataError, listed
from bertune.paths import cache_root
from bertune.pretrainconfig import WITHIN_TASK
from bertune.training.listen import Listener
from bertune.training.prepare import Prepared

MOST_HELD = 200_000  # tokens to measure on


def sources_of(config: Config, source: Any) -> list[TextSource]:
    """The files of a pre-training, or a table in memory in their place."""
    data, columns = config.data, tuple(config.data.text)
    if source is None:
        return file_sources(data.files, data, columns=columns, rule=config.pretrain.documents)
    _check_documents(config, "data in memory has")
    table = read_table(source, data, keep_all=True)
    return [table_source(table, text_columns(table, columns, ()), name=FRAME)]


def stage_sources(config: Config, prepared: Prepared) -> list[TextSource]:
    """The texts of the training rows, and the files of `pretrain.on`, which need not have the columns of the training
    file. Rows of these that say what a row of any split says, or one of its columns, are passed over: validation and
    test rows are not for learning, and training rows are there already."""
    task = prepared.task
    columns = task.text + task.text_pair
    known = frozenset(
        key for split in prepared.splits.values() for cells in row_cells(split.table, columns)
        for key in (row_key(cells), *(row_key([cell]) for cell in cells)) if key  # a blank line of a file is no row
    )  # fmt: skip
    sources = [table_source(prepared.train.table, columns, name="the training rows")]
    if set(config.pretrain.on) == {WITHIN_TASK}:
        _check_documents(config, "training rows have")
    for name in config.pretrain.on:
        if name != WITHIN_TASK:
            sources += [replace(source, without=known) for source in _unlabelled(name, config, columns)]
    return sources


def _check_documents(config: Config, what: str) -> None:
    rule = config.pretrain.documents
    if rule not in ("auto", "row"):
        raise ConfigError(
            f"pretrain.documents {rule}: is for files of plain text; {what} a document a row. Leave it out."
        )


def _unlabelled(name: str, config: Config, columns: tuple[str, ...]) -> list[TextSource]:
    """A file by what it looks like, or else, where that leaves its texts unknown, as the training file is read."""
    data, rule = config.data, config.pretrain.documents
    try:
        return file_sources([name], ReadConfig(encoding=data.encoding), wanted=columns, rule=rule)
    except ConfigError:
        if not data.columns:
            raise
        return file_sources([name], data, wanted=columns, rule=rule)


def described(sources: list[TextSource]) -> str:
    """`books.txt.gz (a document ends at two blank lines)`."""
    ends = {"row": "a row is a document", "blank": "a blank line ends a document",
            "double-blank": "two blank lines end a document"}  # fmt: skip
    names = [f"{Path(source.name).name} ({', '.join(source.columns)}; {ends[source.rule]})" for source in sources]
    return listed(names, 4)


def check_known(sources: list[TextSource], tokenizer: Tokenizer, *, masks: bool) -> None:
    """Raise DataError where the vocabulary has none of the words; with masks, unknown ones do not count as tokens."""
    special = np.array(tokenizer.special_ids() if masks else [], dtype=np.int64)
    texts = (text for text, _ in units(sources, sentences=False))
    total = 0
    while some := list(islice(texts, 256)):
        found = tokenizer.column(some).values
        total += len(found)
        if not np.isin(found, special).all():
            return
    raise _nothing(total)


def _nothing(tokens: int) -> DataError:
    if not tokens:
        return DataError("No text to pre-train on: the tokenizer finds no tokens in it.")
    return DataError(
        f"Nothing to guess: the vocabulary of the model has none of the words, all {tokens:,} tokens are unknown. "
        "Choose a --model that knows the language, or begin one: --from-scratch mini."
    )


def tokenized(
    sources: list[TextSource], found: Survey, tokenizer: Tokenizer, config: Config, run_folder: Path,
    listener: Listener,
) -> Corpus:
    """The corpus as tokens, from the cache where it is there, else from `run_folder`."""
    with listener.work("Tokenizing", found.units) as advance:
        return open_corpus(
            sources, found, tokenizer, sentences=config.pretrain.objective != "mlm", cache=cache_root(),
            fallback=run_folder, advance=advance,
        )


def training_sequences(
    corpus: Corpus, tokenizer: Tokenizer, config: Config, say: Callable[[str], None]
) -> tuple[Sequences, Sequences | None]:
    """What trains, and what is measured on; DataError where nothing can be made of the corpus."""
    options, seed = config.pretrain, config.train.seed
    pairs = options.objective != "mlm"
    template = tokenizer.template(pairs)
    room = options.max_length - template.num_special
    special = np.zeros(tokenizer.vocab_size, dtype=bool)
    special[tokenizer.special_ids()] = True
    masking = None
    if options.objective != "nsp":
        assert tokenizer.mask_id is not None, "checked before anything was written"
        masking = Masking(
            options.masking, options.mask_share, options.random_share, tokenizer.mask_id, special,
            tokenizer.continuations() if options.whole_word else None,
        )

    def of(documents: np.ndarray, most: int | None = None) -> Sequences:
        pieces = (
            segments_of(corpus, documents, width=room // 2) if pairs else pieces_of(corpus, documents, width=room)
        )
        if most is not None:
            count = int(np.searchsorted(np.cumsum(pieces.lengths), most)) + 1
            pieces = Pieces(pieces.starts[:count], pieces.lengths[:count], pieces.documents[:count])
        return Sequences(corpus, pieces, template, pairs=pairs, masking=masking, seed=seed)

    if not corpus.tokens or (masking is not None and all(special[shard].all() for shard in corpus.shards)):
        raise _nothing(corpus.tokens)  # of a vocabulary that was made of the texts; others were checked before
    trained, held = hold_out(corpus, share=options.held_out, most=MOST_HELD, seed=seed, least=4 if pairs else 1)
    try:
        train, measured = of(trained), of(held, MOST_HELD) if len(held) else None
    except DataError:  # one of them has no pairs
        trained = np.union1d(trained, held)
        train, measured = of(trained), None
    whole = "whole words, " if options.whole_word else ""
    kind = f"pairs of up to {room} tokens" if pairs else f"sequences of up to {options.max_length} tokens, none padding"
    measured_on = f"{len(held):,} documents held out" if measured else "nothing held out"
    masks = f"; {whole}{options.masking:.0%} masked" if masking else ""
    say(f"{len(train):,} {kind} from {len(trained):,} documents, {measured_on}{masks}.")
    return train, measured
