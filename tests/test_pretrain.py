"""Pre-training as a whole: what it learns, leaves, resumes and refuses, and the training that begins with it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

import bertune
from bertune.bundle import Bundle
from bertune.config import Config
from bertune.data.documents import TextSource
from bertune.errors import ConfigError, DataError, Interrupted, ModelError, TrainingError
from bertune.model.encoder import Encoder, EncoderConfig, initialize
from bertune.model.hubconfig import parse_config
from bertune.model.kernels import library
from bertune.model.pretraining import PretrainingModel, load_pretraining
from bertune.settings import nested
from bertune.training import pretrain as module
from bertune.training.pretrain import Pretrained, pretrain
from bertune.training.pretrain_fit import PretrainCourse, settle_pretraining, tokens_at_once
from bertune.training.scratch import look_beside, scratch_config
from shell import call as shell
from tiny_runs import PLAIN, QUICK, TOPICS, Told, make_tiny_bert, sentence, topic_rows

pytestmark = [pytest.mark.usefixtures("one_thread")]

PRETRAIN = {
    "train.threads": 1, "train.device": "cpu", "train.precision": "fp32", "pretrain.lr": 1e-2, "pretrain.tokens": 256,
    "pretrain.max_length": 32, "pretrain.held_out": 0.1, "pretrain.epochs": 2, "pretrain.evaluations": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of one topic each, between blank lines: masks can be told from the other words."""
    random = np.random.default_rng(0)
    documents = []
    for _ in range(100):
        topic = str(random.choice(list(TOPICS)))
        lines = [sentence(random, [topic, topic, topic], words=3) for _ in range(int(random.integers(2, 8)))]
        documents.append("\n".join(lines))
    path = tmp_path_factory.mktemp("books") / "books.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def no_curves() -> Any:
    """Without pictures, which take longer than a tiny pre-training; one test draws the curve, the report's its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "plot_pretraining", lambda history, path: None)
        patch.setattr("bertune.training.finish.plot_curves", lambda history, path, *, metric: None)
        patch.setattr("bertune.report.write.draw_pretraining", lambda history: {})
        yield


def options(files: Any, model: Path | None, **changes: Any) -> Config:
    settings = PRETRAIN | {"data.files": str(files)} | ({} if model is None else {"model.name": str(model)})
    config = Config()
    for name, value in (settings | {name.replace("__", "."): value for name, value in changes.items()}).items():
        config = config.updated(nested(name, value))
    return config


def run(books: Path, model: Path | None, out: Path, *, resume: bool = False, listener: Any = None,
        **changes: Any) -> Pretrained:  # fmt: skip
    return pretrain(options(books, model, **changes), out=out, resume=resume, listener=listener)


def history(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def done(books: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory, told: Told) -> Pretrained:
    out = tmp_path_factory.mktemp("done") / "out"
    return run(books, tiny_bert, out, listener=told, pretrain__objective="both", pretrain__epochs=15)


class TestResult:
    def test_masks_are_guessed_better(self, done: Pretrained) -> None:
        before, after = done.metrics["before"], done.metrics["held_out"]
        assert after["perplexity"] < before["perplexity"] / 2
        assert after["masked_accuracy"] > before["masked_accuracy"] + 0.1

    def test_perplexity_is_e_to_the_mean_loss_of_masked_tokens(self, done: Pretrained) -> None:
        after = done.metrics["held_out"]
        assert after["perplexity"] == pytest.approx(np.exp(after["masked_loss"]))
        assert after["masked_tokens"] > 20

    def test_the_curve_has_the_beginning_and_as_many_evaluations_as_asked_for(self, done: Pretrained) -> None:
        records = [record for record in history(done.out) if record["kind"] == "eval"]
        assert [record["step"] for record in records] == [0, round(done.metrics["steps"] / 2), done.metrics["steps"]]
        assert records[0]["metrics"] == done.metrics["before"]
        assert records[-1]["metrics"]["perplexity"] == pytest.approx(done.metrics["held_out"]["perplexity"], rel=1e-4)

    def test_transformers_opens_it_with_both_heads_and_the_tokenizer(self, done: Pretrained) -> None:
        model, info = transformers.AutoModelForPreTraining.from_pretrained(done.out, output_loading_info=True)
        assert type(model).__name__ == "BertForPreTraining"
        assert not info["missing_keys"] and not info["unexpected_keys"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(done.out)
        with torch.no_grad():
            encoded = tokenizer("the cat and the [MASK] .", return_tensors="pt")
            scores = model.eval()(**encoded).prediction_logits[0, 5]
        assert scores.argmax().item() not in tokenizer.all_special_ids

    def test_the_run_says_what_it_does(self, told: Told) -> None:
        said = "\n".join(told.said)
        assert "Corpus: 100 documents, " in said and "from books.txt (text; a blank line ends a document)." in said
        assert "New weights: head.masked, head.next." in said
        assert "documents held out; 15% masked." in said

    def test_the_folder_knows_its_own_files(self, done: Pretrained) -> None:
        record = json.loads((done.out / "run" / "pretrained.json").read_text(encoding="utf-8"))
        assert {path.name for path in done.out.iterdir()} == {*record["files"], "run"}
        assert record["base_model"]["name"] == "tiny-bert"
        assert not (done.out / "run" / "checkpoints").exists()

    def test_a_classifier_is_trained_on_it_and_it_is_none_itself(self, done: Pretrained, tmp_path: Path) -> None:
        told = Told()
        bertune.train(topic_rows(60), out=tmp_path / "out", model=done.out, settings=QUICK, listener=told)
        assert any("left out: other tasks' heads (7)" in text for text in told.said)
        with pytest.raises(ModelError, match="a pre-trained encoder without a classifier"):
            bertune.load(done.out)

    def test_it_can_be_pre_trained_again_with_the_heads_it_has(
        self, done: Pretrained, books: Path, tmp_path: Path
    ) -> None:
        again = run(books, done.out, tmp_path / "again", pretrain__objective="both", pretrain__max_steps=1)
        assert again.metrics["new_weights"] == []
        assert again.metrics["before"]["perplexity"] == pytest.approx(done.metrics["held_out"]["perplexity"], rel=1e-6)

    def test_its_own_configuration_makes_it_again(self, done: Pretrained, tmp_path: Path) -> None:
        config = Config.load(done.out / "run" / "config.yaml")
        again = pretrain(config, out=tmp_path / "again")
        one, two = ((out / "model.safetensors").read_bytes() for out in (done.out, again.out))
        assert one == two


def test_only_the_encoder_asked_for_is_needed_for_masks_alone(books: Path, tiny_bert: Path, tmp_path: Path) -> None:
    done = run(books, tiny_bert, tmp_path / "out")
    assert type(transformers.AutoModelForMaskedLM.from_pretrained(done.out)).__name__ == "BertForMaskedLM"
    assert set(done.metrics["held_out"]) == {"perplexity", "masked_accuracy", "masked_loss", "masked_tokens"}


def test_only_the_heads_that_are_new_learn_at_the_rate_of_new_ones(
    books: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    first, told = run(books, tiny_bert, tmp_path / "first").out, Told()
    both = {"pretrain__objective": "both", "pretrain__max_steps": 1, "pretrain__weight_decay": 0.0}
    done = run(books, first, tmp_path / "both", listener=told, pretrain__epochs=None, **both)
    assert done.metrics["new_weights"] == ["head.next"]
    assert any("learning rate 0.01 (new head: 0.1)." in text for text in told.said)
    before, after = (
        dict(load_pretraining(folder, objective="both")[0].named_parameters()) for folder in (first, done.out)
    )
    # The first step of Adam moves a weight by its rate, whatever the gradient.
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    new = [name for name in moved if name.startswith("head.next.")]
    assert len(new) == 2
    slow = max(value for name, value in moved.items() if name not in new)
    assert [moved[name] for name in new] == pytest.approx([10 * slow] * 2, rel=1e-3)


def test_dropout_is_that_of_the_pre_training_and_not_of_what_follows(
    books: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    plain, without = (
        run(books, tiny_bert, tmp_path / name, model__dropout=rate, pretrain__max_steps=2).out
        for name, rate in (("plain", None), ("without", 0.0))
    )
    assert (plain / "model.safetensors").read_bytes() != (without / "model.safetensors").read_bytes()
    config = json.loads((without / "config.json").read_text(encoding="utf-8"))
    assert (config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]) == (0.1, 0.1)


def test_next_sentences_alone_leave_their_head_alone(books: Path, tiny_bert: Path, tmp_path: Path) -> None:
    done = run(books, tiny_bert, tmp_path / "out", pretrain__objective="nsp")
    names = load_file(done.out / "model.safetensors").keys()
    assert "cls.seq_relationship.weight" in names and not any("predictions" in name for name in names)
    assert set(done.metrics["held_out"]) == {"next_accuracy", "next_loss", "pairs"}


@pytest.mark.parametrize("objective", ["mlm", "nsp", "both"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_weight_of_the_encoder_is_trained_whatever_the_objective(
    books: Path, tiny_bert: Path, tmp_path: Path, objective: str, precision: str
) -> None:
    done = run(
        books, tiny_bert, tmp_path / "out", pretrain__objective=objective, train__precision=precision,
        pretrain__weight_decay=0.0, pretrain__max_steps=3,
    )  # fmt: skip
    before, after = load_file(tiny_bert / "model.safetensors"), load_file(done.out / "model.safetensors")
    same = {name for name, value in before.items() if torch.equal(value, after[f"bert.{name}"])}
    assert same == ({"pooler.dense.weight", "pooler.dense.bias"} if objective == "mlm" else set())


def test_next_sentences_are_told_from_others(tiny_bert: Path, tmp_path: Path) -> None:
    """Animals in the first sentence of a document, plants in the second: an animal in second place gives it away."""
    random, topics = np.random.default_rng(0), ("animals", "plants")
    documents = ["\n".join(sentence(random, [topic] * 2, words=1) for topic in topics) for _ in range(300)]
    (tmp_path / "a.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    changes = {
        "pretrain__objective": "nsp", "pretrain__epochs": 20, "pretrain__held_out": 0.2, "pretrain__lr": 3e-3,
    }  # fmt: skip
    found = run(tmp_path / "a.txt", tiny_bert, tmp_path / "out", **changes).metrics["held_out"]
    assert found["pairs"] >= 60 and found["next_accuracy"] > 0.65 and found["next_loss"] < 0.6


def test_masks_of_more_tokens_leave_fewer_to_guess_from(books: Path, tiny_bert: Path, tmp_path: Path) -> None:
    few, many = (
        run(books, tiny_bert, tmp_path / str(rate), pretrain__masking=rate, pretrain__max_steps=1).metrics["held_out"]
        for rate in (0.1, 0.5)
    )
    assert 3 < many["masked_tokens"] / few["masked_tokens"] < 8


def test_a_row_of_a_table_is_a_document(tiny_bert: Path, tmp_path: Path) -> None:
    pl.DataFrame(topic_rows(80)).write_ndjson(tmp_path / "rows.jsonl")
    assert run(tmp_path / "rows.jsonl", tiny_bert, tmp_path / "out").metrics["corpus"]["documents"] == 80


def test_every_step_has_about_as_many_tokens_and_a_pass_reads_all_once(books: Path, tiny_bert: Path) -> None:
    class Walk:
        def turn(self, number: int) -> Any:
            lengths = np.random.default_rng(number).integers(3, 128, 500)
            return type("Turn", (), {"lengths": lengths})

        def __len__(self) -> int:
            return 500

    encoder = type("Encoder", (), {"hidden": 16})
    config = options(books, tiny_bert, pretrain__tokens=1000, pretrain__max_length=128)
    plan = settle_pretraining(config, tokens=32_000, rows=500, encoder=encoder, new=["head.masked"])  # type: ignore[arg-type]
    assert (plan.steps_per_epoch, plan.steps, plan.tokens, plan.lr, plan.head_lr) == (32, 64, 1000, 1e-2, 0.1)
    course = PretrainCourse(Walk(), plan, token_budget=512, clip=1.0, seed=0)  # type: ignore[arg-type]
    for epoch in range(2):
        rows = [course.rows(epoch * 32 + step) for step in range(1, 33)]
        assert sorted(np.concatenate(rows).tolist()) == list(range(500))
        sizes = [Walk().turn(epoch).lengths[part].sum() for part in rows]
        assert max(sizes) - min(sizes) < 256


def test_more_tokens_are_computed_at_once_than_of_a_classifier_if_the_encoder_is_small() -> None:
    def at_once(layers: int, hidden: int) -> int:
        return tokens_at_once(EncoderConfig("bert", 100, hidden, layers, heads=4, ffn=4 * hidden, max_positions=512))

    assert (at_once(6, 384), at_once(12, 768), at_once(24, 1024)) == (12_288, 5295, 4096)


class TestResume:
    SETTINGS: ClassVar[dict[str, dict[str, Any]]] = {
        "fp32": {"train__checkpoint_steps": 3},
        "bf16, both objectives": {
            "train__checkpoint_steps": 3, "train__precision": "bf16", "pretrain__objective": "both",
            "pretrain__whole_word": True,
        },
    }  # fmt: skip

    @pytest.mark.parametrize("case", SETTINGS)
    def test_a_run_stopped_again_and_again_ends_as_the_undisturbed_one(
        self, books: Path, tiny_bert: Path, tmp_path: Path, case: str
    ) -> None:
        if "bf16" in case and library() is None:
            pytest.skip("no compiled kernels")
        settings = self.SETTINGS[case]
        whole = run(books, tiny_bert, tmp_path / "whole", **settings)
        assert whole.metrics["steps"] > 10

        class Killed(Exception):
            pass

        class Stopper(Told):
            def __init__(self, at: int, *, polite: bool) -> None:
                super().__init__()
                self.at, self.polite = at, polite

            def step(self, step: Any) -> None:
                if step.number == self.at and not self.polite:
                    raise Killed
                if step.number == self.at:
                    signal.raise_signal(signal.SIGINT)

        out = tmp_path / "out"
        half = whole.metrics["steps"] // 2  # where a pass and an evaluation end
        for at, polite in ((2, False), (5, False), (8, True), (half, True), (half + 2, False)):
            stopper = Stopper(at, polite=polite)
            with pytest.raises(Interrupted if polite else Killed):
                run(books, tiny_bert, out, resume=at > 2, listener=stopper, **settings)
        told = Told()
        found = run(books, tiny_bert, out, resume=True, listener=told, **settings)
        assert any(text.startswith("Resumed after step") for text in told.said)
        for name in ("model.safetensors", "config.json", "tokenizer.json", "run/history.jsonl", "run/config.yaml"):
            assert (out / name).read_bytes() == (whole.out / name).read_bytes(), name
        times = {"seconds", "tokens_per_second"}
        one, two = ({k: v for k, v in done.metrics.items() if k not in times} for done in (found, whole))
        assert one == two

    def test_other_options_or_texts_are_refused(self, books: Path, tiny_bert: Path, tmp_path: Path) -> None:
        class Stop(Told):
            def step(self, step: Any) -> None:
                raise KeyboardInterrupt

        text = tmp_path / "text.txt"
        text.write_text(books.read_text(encoding="utf-8"), encoding="utf-8")
        with pytest.raises(Interrupted):
            run(text, tiny_bert, tmp_path / "out", listener=Stop())
        with pytest.raises(ConfigError, match=r"other options: pretrain\.masking \(was 0\.15, now 0\.2\)\."):
            run(text, tiny_bert, tmp_path / "out", resume=True, pretrain__masking=0.2)
        text.write_text("another text\n\n" + books.read_text(encoding="utf-8"), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"--resume: the texts are not those that the run in .* started with\."):
            run(text, tiny_bert, tmp_path / "out", resume=True)

    def test_of_a_complete_run_there_is_nothing_to_do_and_other_options_are_named(
        self, books: Path, tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        whole, told = run(books, tiny_bert, tmp_path / "out"), Told()
        assert run(books, tiny_bert, tmp_path / "out", resume=True, listener=told).metrics == whole.metrics
        assert told.said == [f"{tmp_path / 'out'} holds a complete pre-training already; nothing to do."]
        assert not caplog.text
        run(books, tiny_bert, tmp_path / "out", resume=True, pretrain__masking=0.3)
        assert "other options are not applied: pretrain.masking (was 0.15, now 0.3)" in caplog.text


def test_a_divergence_leaves_the_last_good_weights_as_a_model(
    books: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, calls = PretrainingModel.loss, []

    def broken(self: PretrainingModel, *args: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        return usual(self, *args, **named) * (torch.nan if len(calls) > 3 else 1.0)

    monkeypatch.setattr(PretrainingModel, "loss", broken)
    place = tmp_path / "out" / "run" / "last-good"
    words = rf"Step 4: the loss is no longer .* The weights of step 3 are kept in {place}, which --model takes\."
    with pytest.raises(TrainingError, match=words):
        run(books, tiny_bert, tmp_path / "out")
    monkeypatch.undo()
    told = Told()
    run(books, place, tmp_path / "further", listener=told, pretrain__max_steps=1)
    assert not any("New weights" in text for text in told.said)


class TestFromScratch:
    SIZES: ClassVar[dict[str, Any]] = {
        "pretrain__from_scratch": "mini", "pretrain__vocab_size": 400, "pretrain__layers": 2, "pretrain__hidden": 16,
        "pretrain__heads": 2, "pretrain__ffn": 32, "pretrain__positions": 64,
    }  # fmt: skip

    def test_a_vocabulary_and_a_small_bert_are_made_of_the_texts(self, books: Path, tmp_path: Path) -> None:
        done = run(books, None, tmp_path / "out", **self.SIZES)
        words = (done.out / "vocab.txt").read_text(encoding="utf-8").split()
        assert words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] and len(words) <= 400
        assert set(TOPICS["animals"]) | set(PLAIN) <= set(words)
        model = transformers.AutoModelForMaskedLM.from_pretrained(done.out)
        config = model.config
        assert (config.vocab_size, config.num_hidden_layers, config.hidden_size) == (len(words), 2, 16)
        assert done.metrics["held_out"]["perplexity"] < done.metrics["before"]["perplexity"] / 2
        tokenizer = transformers.AutoTokenizer.from_pretrained(done.out)
        assert tokenizer.tokenize("The CAT saw [UNK]")[:2] == ["the", "cat"]

    def test_the_same_seed_makes_the_same_model_and_a_stopped_run_goes_on(self, books: Path, tmp_path: Path) -> None:
        class Stop(Told):
            def step(self, step: Any) -> None:
                if step.number == 3:
                    signal.raise_signal(signal.SIGINT)

        one = run(books, None, tmp_path / "one", **self.SIZES)
        with pytest.raises(Interrupted):
            run(books, None, tmp_path / "two", listener=Stop(), **self.SIZES)
        two = run(books, None, tmp_path / "two", resume=True, **self.SIZES)
        for name in ("model.safetensors", "vocab.txt"):
            assert (one.out / name).read_bytes() == (two.out / name).read_bytes()

    def test_the_shapes_are_the_books_and_bert_mini(self) -> None:
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        for shape, wanted in (("d2l-small", (2, 256, 4, 512)), ("mini", (4, 256, 4, 1024))):
            config = Config().updated({"pretrain": {"from_scratch": shape}})
            found = scratch_config(config.pretrain, 100)
            assert tuple(found[name] for name in names) == wanted

    @pytest.mark.parametrize(("layers", "hidden", "heads"), [(3, 64, 4), (1, 64, 2), (2, 66, 3), (2, 7, 7)])
    def test_heads_begin_with_the_neighbors_of_a_token(self, layers: int, hidden: int, heads: int) -> None:
        shape = {"from_scratch": "mini", "layers": layers, "hidden": hidden, "heads": heads, "ffn": 8}
        raw = scratch_config(Config().updated({"pretrain": shape}).pretrain, 100)
        plain, encoder = (Encoder(parse_config(raw, place="here")) for _ in range(2))
        for model in (plain, encoder):
            initialize(model, 0.02, seed=0)
        look_beside(encoder, 0.02)

        before, after = plain.state_dict(), encoder.state_dict()
        looking = range(max(1, layers - 1)) if hidden // heads > 1 else ()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"embeddings.position.weight"} | {f"layers.{layer}.qkv.weight" for layer in looking}
        positions = after["embeddings.position.weight"]
        assert positions.std().item() == pytest.approx(0.02, rel=0.1)
        states = torch.nn.functional.layer_norm(positions, (hidden,))
        for layer in looking:
            query, key, value = after[f"layers.{layer}.qkv.weight"].split(hidden)
            assert torch.equal(value, before[f"layers.{layer}.qkv.weight"][2 * hidden :])
            size = hidden // heads
            for head in range(heads):
                mine = slice(head * size, (head + 1) * size)
                scores = (states @ query[mine].T) @ (states @ key[mine].T).T
                places = torch.arange(50, 450)
                distances = scores[places].argmax(dim=1) - places
                # Sinusoids return, and few of them nearly all at once.
                assert (distances == (-1, 1, -2, 2)[head]).float().mean() > 0.9

    @pytest.mark.parametrize("begins", ["normal", "neighbors"])
    def test_what_attention_begins_with_is_chosen_and_said(self, books: Path, tmp_path: Path, begins: str) -> None:
        told = Told()
        changes = {**self.SIZES, "pretrain__initialization": begins, "pretrain__max_steps": 1}
        start = run(books, None, tmp_path / "out", listener=told, **changes).out / "run" / "start"
        ending = ", with heads that look at the neighbors of a token." if begins == "neighbors" else "."
        assert any(f"New encoder: mini, random weights{ending}" in text for text in told.said)
        raw = json.loads((start / "config.json").read_text(encoding="utf-8"))
        encoder = Encoder(parse_config(raw, place="here"))
        initialize(encoder, 0.02, seed=0)
        if begins == "neighbors":
            look_beside(encoder, 0.02)
        found = load_file(start / "model.safetensors")
        positions, query = encoder.embeddings.position, encoder.layers[0].qkv.weight[:16]  # type: ignore[index, union-attr]
        assert torch.equal(found["bert.embeddings.position_embeddings.weight"], positions.weight)  # type: ignore[union-attr]
        assert torch.equal(found["bert.encoder.layer.0.attention.self.query.weight"], query)

    def test_capital_letters_stay_where_asked_for(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("Émile saw Émile .\n" * 200, encoding="utf-8")
        done = run(tmp_path / "a.txt", None, tmp_path / "out", pretrain__cased=True, **self.SIZES)
        tokens = transformers.AutoTokenizer.from_pretrained(done.out).tokenize("Émile")
        assert tokens == ["Émile"]


def test_texts_may_be_in_memory(tiny_bert: Path, tmp_path: Path) -> None:
    rows = topic_rows(80)
    pl.DataFrame(rows).write_csv(tmp_path / "rows.csv")
    results = [
        bertune.pretrain(data, out=tmp_path / name, model=tiny_bert, text="text", settings=PRETRAIN, epochs=1)
        for name, data in (("memory", rows), ("file", tmp_path / "rows.csv"))
    ]
    one, two = ((result.out / "model.safetensors").read_bytes() for result in results)
    assert one == two


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "error", "text"),
        [
            ({"pretrain__max_length": 65}, ConfigError, "pretrain.max_length 65: this encoder reads at most 64"),
            ({"pretrain__vocab_size": 500}, ConfigError, "pretrain.vocab_size 500: needs --from-scratch."),
            ({"pretrain__initialization": "neighbors"}, ConfigError,
             "pretrain.initialization neighbors: needs --from-scratch."),
            ({"pretrain__from_scratch": "mini"}, ConfigError, "--from-scratch mini: one goes on with a model and the"),
            ({"pretrain__objective": "nsp", "pretrain__masking": 0.3}, ConfigError,
             "pretrain.masking 0.3: nothing is masked with --objective nsp."),
            ({"pretrain__random_share": 0.3}, ConfigError,
             "pretrain.mask_share 0.8 and pretrain.random_share 0.3: are together at most 1; make one"),
            ({"pretrain__held_out": 0, "pretrain__evaluations": 3}, ConfigError,
             "pretrain.evaluations 3: with pretrain.held_out 0 nothing is measured."),
            ({"data__text": "txt"}, DataError, "no column 'txt'"),
            ({"pretrain__tokens": 100, "pretrain__max_length": 64}, ConfigError, "pretrain.tokens 100: a step takes at "
             "least two sequences of pretrain.max_length 64. Pass 128 or more"),
            ({"train__lr": 0.1}, ConfigError, "train.lr: has no effect on a pre-training"),
        ],
    )  # fmt: skip
    def test_before_anything_is_written(
        self, books: Path, tiny_bert: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], text: str
    ) -> None:
        with pytest.raises(error) as caught:
            run(books, tiny_bert, tmp_path / "out", **changes)
        assert text in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_a_corpus_of_which_the_vocabulary_has_no_word(self, tiny_bert: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("ζζζ ξξξ\n" * 40, encoding="utf-8")
        with pytest.raises(DataError, match=r"Nothing to guess: .* has none of the words, all 80 tokens are unknown"):
            run(tmp_path / "a.txt", tiny_bert, tmp_path / "out")

    def test_next_sentences_of_a_single_document(self, tiny_bert: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("the cat . \nthe dog .\n\n", encoding="utf-8")
        with pytest.raises(DataError) as caught:
            options = {"pretrain__objective": "both", "pretrain__documents": "blank"}
            run(tmp_path / "a.txt", tiny_bert, tmp_path / "out", **options)
        assert str(caught.value) == (
            "--objective both: next sentences take at least two documents, one of them with two sentences or more; "
            f"found in {tmp_path / 'a.txt'}: 1, 1 of them that long. Add texts, see --documents for what a document "
            "is, or pass --objective mlm."
        )
        assert not (tmp_path / "out").exists()

    def test_shares_may_be_set_one_after_the_other(self, books: Path, tmp_path: Path) -> None:
        # the model is looked for after options were read, so that its absence shows that these were taken
        done = shell("pretrain", books, "--model", tmp_path / "none", "--out", tmp_path / "out", "--set",
                     "pretrain.mask_share=1", "--set", "pretrain.random_share=0")  # fmt: skip
        assert done.code == 2 and "pretrain" not in done.err

    def test_data_in_memory_has_no_blank_lines_to_end_documents(self, tiny_bert: Path, tmp_path: Path) -> None:
        config = options([], tiny_bert, pretrain__documents="blank")
        with pytest.raises(ConfigError, match=r"documents blank: .* data in memory has a document a row"):
            pretrain(config, out=tmp_path / "out", source=topic_rows(20))

    def test_a_tokenizer_without_a_mask(self, books: Path, tmp_path: Path) -> None:
        folder = make_tiny_bert(tmp_path / "model")
        words = (folder / "vocab.txt").read_text(encoding="utf-8").replace("[MASK]", "mask")
        (folder / "vocab.txt").write_text(words, encoding="utf-8")
        with pytest.raises(ConfigError, match="its tokenizer has no mask token"):
            run(books, folder, tmp_path / "out")

    def test_a_result_of_lora_whose_encoder_lies_elsewhere(self, books: Path, tiny_bert: Path, tmp_path: Path) -> None:
        lora = bertune.train(
            topic_rows(40), out=tmp_path / "lora", model=tiny_bert, settings=QUICK | {"model.lora": 2}
        ).out
        with pytest.raises(ConfigError, match=rf"its encoder lies elsewhere.*bertune convert {lora} OUT"):
            run(books, lora, tmp_path / "out")


SHELL = (
    "--epochs", "2", "--lr", "1e-2", "--tokens", "256", "--max-length", "32", "--precision", "fp32",
    "--device", "cpu", "--threads", "1",
)  # fmt: skip


class TestCommand:
    def test_it_tells_the_held_out_part_before_and_after(self, books: Path, tiny_bert: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        asked = ("--whole-word", "--objective", "both", *SHELL)
        done = shell("pretrain", books, "--model", tiny_bert, "--out", out, *asked)
        assert done.code == 0, done.err
        assert [line.split("  ")[0] for line in done.out.splitlines()] == [
            "held-out part", "----------------------", "perplexity", "masked accuracy", "next-sentence accuracy",
        ]  # fmt: skip
        assert yaml.safe_load((out / "run" / "config.yaml").read_text(encoding="utf-8"))["pretrain"]["whole_word"]
        again = shell("pretrain", "--resume", "--out", out, "--json", "--quiet")
        assert again.code == 0 and json.loads(again.out)["metrics"]["objective"] == "both"
        refused = shell("pretrain", books, "--model", tiny_bert, "--out", out, *SHELL)
        assert refused.code == 2 and "holds an earlier run" in refused.err
        replaced = shell("pretrain", books, "--model", tiny_bert, "--out", out, "--overwrite", "--quiet", *SHELL)
        assert replaced.code == 0, replaced.err
        assert (out / "model.safetensors").is_file()

    def test_it_leaves_a_page_unless_told_otherwise(self, books: Path, tiny_bert: Path, tmp_path: Path) -> None:
        asked = ("--model", tiny_bert, *SHELL, "--set", "pretrain.max_steps=1")
        done = shell("pretrain", books, "--out", tmp_path / "out", *asked)
        page = tmp_path / "out" / "run" / "report.html"
        assert f"The report is in {page}." in done.err
        assert "Report of a pre-training" in page.read_text(encoding="utf-8")
        page.unlink()
        assert shell("pretrain", "--resume", "--out", tmp_path / "out").code == 0
        assert page.is_file()
        done = shell("pretrain", books, "--out", tmp_path / "none", "--set", "report.page=no", *asked)
        assert done.code == 0, done.err
        assert not (tmp_path / "none" / "run" / "report.html").exists()

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--objective", "clm"], "'pretrain.objective' cannot be 'clm'"),
            (["--text", "txt"], "no column 'txt'"),
            (["--masking", "1.5"], "'pretrain.masking' cannot be '1.5'"),
            (["--set", "train.lr=0.1"], "--set train.lr=0.1: has no effect here"),
            (["--set", "pretrain.on=train"], "--set pretrain.on=train: has no effect here"),
        ],
    )  # fmt: skip
    def test_wrong_input_ends_with_2_and_a_sentence(
        self, books: Path, tiny_bert: Path, tmp_path: Path, arguments: list[str], text: str
    ) -> None:
        done = shell("pretrain", books, "--model", tiny_bert, "--out", tmp_path / "out", *SHELL, *arguments)
        assert done.code == 2 and text in done.err and len(done.err.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()

    def test_an_empty_corpus_ends_with_2_and_a_sentence(self, tiny_bert: Path, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("text,label\n,x\n", encoding="utf-8")
        done = shell("pretrain", tmp_path / "a.csv", "--model", tiny_bert, "--out", tmp_path / "out", *SHELL)
        assert done.code == 2 and "no text to pre-train on; every row is blank in text." in done.err
        assert not (tmp_path / "out").exists()

    def test_the_curve_is_drawn(self, books: Path, tmp_path: Path) -> None:
        from bertune.evaluate.curves import plot_pretraining

        records = [
            {"kind": "eval", "step": step, "epoch": step / 4, "split": "valid",
             "metrics": {"perplexity": 90.0 / (1 + step), "masked_accuracy": 0.1 * step, "masked_tokens": 9}}
            for step in range(5)
        ]  # fmt: skip
        plot_pretraining(records, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    pl.DataFrame(topic_rows(100)).write_csv(folder / "topics.csv")
    pl.DataFrame({"Text": [row["text"] for row in topic_rows(50, seed=9)]}).write_ndjson(folder / "more.jsonl")
    return {"topics": folder / "topics.csv", "more": folder / "more.jsonl"}


class TestStage:
    STAGE: ClassVar[dict[str, Any]] = QUICK | {
        name: value for name, value in PRETRAIN.items() if name.startswith("pretrain.")
    }

    def test_only_training_texts_and_the_files_are_seen(
        self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []
        usual = TextSource.texts

        def watched(self: TextSource) -> Any:
            for text, begins in usual(self):
                seen.append(text)
                yield text, begins

        monkeypatch.setattr(TextSource, "texts", watched)
        settings = self.STAGE | {"pretrain.on": [str(data["more"])]}
        result = bertune.train(data["topics"], out=tmp_path / "out", model=tiny_bert, settings=settings)
        rows = pl.read_csv(data["topics"])["text"].to_list()
        splits = pl.read_csv(tmp_path / "out" / "run" / "splits.csv")
        of = {
            name: {rows[row - 1] for row in splits.filter(pl.col("split") == name)["row"]}
            for name in ("train", "valid", "test")
        }
        more = set(pl.read_ndjson(data["more"])["Text"].to_list())
        assert set(seen) == of["train"] | more
        assert not set(seen) & ((of["valid"] | of["test"]) - of["train"] - more)
        assert result.metrics["pretrain"]["corpus"]["documents"] == len(splits.filter(pl.col("split") == "train")) + 50
        assert "the training texts, more.jsonl" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    def test_rows_of_a_file_that_are_rows_of_a_split_are_passed_over(
        self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path
    ) -> None:
        rows = [{"label": "x", "text": f"  {row['text']}"} for row in topic_rows(100)]
        pl.DataFrame([*rows, {"label": "x", "text": "cat goal cat goal"}]).write_csv(tmp_path / "again.csv")
        settings = self.STAGE | {"pretrain.on": [str(data["topics"]), str(tmp_path / "again.csv")]}
        result = bertune.train(data["topics"], out=tmp_path / "out", model=tiny_bert, settings=settings)
        train = pl.read_csv(tmp_path / "out" / "run" / "splits.csv").filter(split="train")
        assert result.metrics["pretrain"]["corpus"]["documents"] == len(train) + 1

    def test_a_file_without_a_header_is_read_as_the_training_file_is(self, tiny_bert: Path, tmp_path: Path) -> None:
        names = {"train": topic_rows(60), "more": topic_rows(30, seed=9)}
        for name, rows in names.items():
            table = pl.DataFrame(rows).select("label", "text", other=pl.lit("7"))
            table.write_csv(tmp_path / f"{name}.csv", include_header=False)
        settings = self.STAGE | {"pretrain.on": [str(tmp_path / "more.csv")], "data.columns": ["label", "text", "n"]}
        told = Told()
        how: dict[str, Any] = {"model": tiny_bert, "text": "text", "label": "label", "listener": told}
        bertune.train(tmp_path / "train.csv", out=tmp_path / "out", settings=settings | {"data.header": "no"}, **how)
        assert any("more.csv (text; a row is a document)" in line for line in told.said)

    def test_a_file_of_which_nobody_knows_the_text_is_refused(
        self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "more.csv").write_text("a,b\ncat,dog\n", encoding="utf-8")
        settings = self.STAGE | {"pretrain.on": [str(tmp_path / "more.csv")]}
        with pytest.raises(ConfigError, match=r"which column is the text\? Give it a header that names text"):
            bertune.train(data["topics"], out=tmp_path / "out", model=tiny_bert, settings=settings)

    def test_an_earlier_result_keeps_its_head(self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path) -> None:
        head = {"model.pooling": "mean", "model.layers": "first-2", "model.combine": "concat"}
        earlier = bertune.train(data["topics"], out=tmp_path / "earlier", model=tiny_bert, settings=QUICK | head).out
        told = Told()
        bertune.train(
            data["topics"], out=tmp_path / "out", model=earlier, listener=told,
            settings=self.STAGE | {"pretrain.on": "train", "model.freeze": "encoder", "train.lr": 1e-30},
        )
        before, stage, after = (
            load_file(tmp_path / place / "model.safetensors") for place in ("earlier", "out/run/pretrain", "out")
        )
        assert Bundle.read(tmp_path / "out").head == Bundle.read(earlier).head
        assert torch.equal(before["bertune_head.classifier.weight"], after["bertune_head.classifier.weight"])
        name = "encoder.layer.0.output.dense.weight"
        assert torch.equal(stage[f"bert.{name}"], after[f"bert.{name}"])
        assert not torch.equal(before[f"bert.{name}"], after[f"bert.{name}"])
        assert not any("head.classifier" in line for line in told.said)

    @pytest.mark.parametrize("case", ["lora", "joint", "untied", "unknown"])
    def test_an_earlier_result_outlives_what_is_refused(
        self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path, case: str
    ) -> None:
        earlier = bertune.train(data["topics"], out=tmp_path / "out", model=tiny_bert, settings=QUICK).out
        files = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
        rows, model, said = topic_rows(40), tiny_bert, "its encoder lies elsewhere.*bertune convert"
        if case == "lora":
            model = bertune.train(rows, out=tmp_path / "m", model=tiny_bert, settings=QUICK | {"model.lora": 2}).out
        elif case == "joint":
            pl.DataFrame(rows).write_csv(tmp_path / "a.csv")
            tasks = {"a": {"data": {"files": [str(tmp_path / "a.csv")]}}}
            spec = {"model": {"name": str(tiny_bert)}, "train": {"epochs": 1}, "tasks": tasks}
            model = bertune.multitask(spec, out=tmp_path / "m").out / "tasks" / "a"
        elif case == "untied":
            model = make_tiny_bert(tmp_path / "m")
            weights = load_file(model / "model.safetensors")
            name = "cls.predictions.decoder.weight"
            save_file(
                weights | {name: weights["embeddings.word_embeddings.weight"] + 1}, model / "model.safetensors"
            )
            said = "embeddings of its own"
        else:
            rows, said = [row | {"text": "ζζζ ξξξ"} for row in rows], "Nothing to guess"
        with pytest.raises((ConfigError, DataError, ModelError), match=said):
            bertune.train(
                rows, out=tmp_path / "out", model=model, settings=self.STAGE | {"pretrain.on": "train"}, overwrite=True
            )
        assert files == {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}

    def test_the_training_begins_with_what_was_pre_trained(
        self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path
    ) -> None:
        told = Told()
        settings = self.STAGE | {"pretrain.on": "train", "model.freeze": "encoder"}
        bertune.train(data["topics"], out=tmp_path / "out", model=tiny_bert, settings=settings, listener=told)
        stage, result = (load_file(tmp_path / "out" / place / "model.safetensors") for place in ("run/pretrain", "."))
        start = load_file(tiny_bert / "model.safetensors")
        name = "embeddings.word_embeddings.weight"
        assert torch.equal(stage[f"bert.{name}"], result[f"bert.{name}"]), "frozen in the second stage alone"
        assert not torch.equal(stage[f"bert.{name}"], start[name])
        wanted = "from the training rows (text; a row is a document)"
        assert any(wanted in text for text in told.said)

    @pytest.mark.parametrize("options", [
        {"train.unfreeze": "epoch"}, {"train.mixout": 0.9}, {"train.average": "swa"}, {"train.layer_decay": 0.5},
        {"train.betas": [0.8, 0.99], "train.patience": 1}, {"model.reinit_layers": 1},
    ], ids=str)  # fmt: skip
    def test_techniques_of_the_training_that_follows_are_not_those_of_the_pre_training(
        self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        settings = self.STAGE | {"pretrain.on": "train", "pretrain.epochs": 1}
        for name, more in (("plain", {}), ("other", options)):
            bertune.train(data["topics"], out=tmp_path / name, model=tiny_bert, settings=settings | more)
        one, two = (tmp_path / name / "run" / "pretrain" for name in ("plain", "other"))
        for file in ("model.safetensors", "run/config.yaml", "run/history.jsonl"):
            assert (one / file).read_bytes() == (two / file).read_bytes(), file

    def test_an_overwritten_run_pre_trains_anew(self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path) -> None:
        how: dict[str, Any] = {"model": tiny_bert, "out": tmp_path / "out"}
        for masking in (0.1, 0.4):
            settings = self.STAGE | {"pretrain.on": "train", "pretrain.masking": masking}
            bertune.train(data["topics"], settings=settings, overwrite=masking > 0.1, **how)
            record = (tmp_path / "out" / "run" / "pretrain" / "run" / "config.yaml").read_text(encoding="utf-8")
            assert yaml.safe_load(record)["pretrain"]["masking"] == masking

    def test_without_it_nothing_is_pre_trained(self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path) -> None:
        result = bertune.train(data["topics"], out=tmp_path / "out", model=tiny_bert, settings=QUICK)
        assert "pretrain" not in result.metrics and not (tmp_path / "out" / "run" / "pretrain").exists()

    @pytest.mark.parametrize("at", [("first", 2), ("second", 3)])
    def test_a_run_stopped_in_either_stage_ends_as_the_undisturbed_one(
        self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path, at: tuple[str, int]
    ) -> None:
        class Stop(Told):
            stage = ""

            def begin(self, plan: Any, done: int) -> None:
                self.stage = "second" if self.stage else "first"

            def step(self, step: Any) -> None:
                if (self.stage, step.number) == at:
                    signal.raise_signal(signal.SIGINT)

        settings = self.STAGE | {"pretrain.on": [str(data["more"])], "train.checkpoint_steps": 2}
        how: dict[str, Any] = {"model": tiny_bert, "settings": settings}
        bertune.train(data["topics"], out=tmp_path / "whole", **how)
        with pytest.raises(Interrupted):
            bertune.train(data["topics"], out=tmp_path / "out", listener=Stop(), **how)
        with pytest.raises(ConfigError, match=r"other options: train\.lr"):
            changed = settings | {"train.lr": 1e-3}
            bertune.train(data["topics"], out=tmp_path / "out", resume=True, model=tiny_bert, settings=changed)
        bertune.train(data["topics"], out=tmp_path / "out", resume=True, **how)
        for name in ("model.safetensors", "run/pretrain/model.safetensors", "run/history.jsonl", "run/config.yaml"):
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"pretrain.masking": 0.3}, "pretrain.masking 0.3: needs --pretrain-on FILE"),
            ({"pretrain.on": "train", "pretrain.from_scratch": "mini"}, "a new vocabulary takes a run of its own"),
            ({"pretrain.on": "no-such-file.csv"}, "no-such-file.csv: no such file"),
            ({"pretrain.on": "train", "pretrain.max_length": 100}, "this encoder reads at most 64 tokens"),
            ({"pretrain.on": "train", "pretrain.max_length": 32, "pretrain.documents": "blank"},
             "pretrain.documents blank: is for files of plain text; training rows have a document a row."),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused_before_anything_is_written(
        self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path, settings: dict[str, Any], text: str
    ) -> None:
        with pytest.raises((ConfigError, DataError)) as caught:
            bertune.train(data["topics"], out=tmp_path / "out", model=tiny_bert, settings=QUICK | settings)
        assert text in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_pairs_bring_both_sides(self, tiny_bert: Path, tmp_path: Path) -> None:
        from tiny_runs import pair_rows

        out = tmp_path / "out"
        done = bertune.train(
            pair_rows(60), out=out, text="first", text_pair="second", model=tiny_bert,
            settings=self.STAGE | {"pretrain.on": "train", "pretrain.objective": "both"},
        )  # fmt: skip
        assert done.metrics["pretrain"]["held_out"]["pairs"] > 0

    def test_the_flag_may_be_repeated(self, data: dict[str, Path], tiny_bert: Path, tmp_path: Path) -> None:
        done = shell(
            "train", data["topics"], "--model", tiny_bert, "--out", tmp_path / "out", "--pretrain-on", "train",
            "--pretrain-on", data["more"], "--set", "pretrain.max_length=32", "--epochs", "1", "--precision", "fp32",
            "--threads", "1", "--device", "cpu", "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        assert json.loads(done.out)["metrics"]["pretrain"]["corpus"]["documents"] == 130
