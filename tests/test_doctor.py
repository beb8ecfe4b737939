"""The data doctor: of clean data it says nothing, and of every fault put in it names the rows and no others."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertune
from bertune.doctor.corpus import normalised
from bertune.doctor.similar import jaccard, shingles, similar_pairs
from bertune.doctor.texts import faults, language
from bertune.training.checkup import Checkup

SAMPLES = Path(bertune.__file__).parent / "samples"
SUBJECTS = ("Computer Science", "Physics", "Mathematics", "Statistics")
Row = dict[str, Any]
Splits = dict[str, list[Row]]
Found = dict[str, set[tuple[str, int]]]

FRENCH = "Un homme traverse la rue avec son chien pendant que les enfants jouent dans le jardin de leur grand-mère."


def read(name: str, delimiter: str) -> list[Row]:
    with (SAMPLES / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def divided(rows: list[Row], groups: list[Any]) -> Splits:
    """Six tenths to train, two each to valid and test; groups whole."""
    names = sorted(set(groups))
    place = {name: number for number, name in zip(np.random.default_rng(0).permutation(len(names)), names, strict=True)}
    shares = [place[group] / len(names) for group in groups]
    splits: Splits = {"train": [], "valid": [], "test": []}
    for row, share in zip(rows, shares, strict=True):
        splits["train" if share < 0.6 else "valid" if share < 0.8 else "test"].append(dict(row))
    return splits


@pytest.fixture
def single() -> Splits:
    """Papers with one subject."""
    rows = [row for row in read("papers.csv", ",") if sum(row[name] == "1" for name in SUBJECTS) == 1]
    found = [{"text": f"{row['TITLE']}. {row['ABSTRACT']}", "label": next(s for s in SUBJECTS if row[s] == "1")}
             for row in rows]  # fmt: skip
    return divided(found, list(range(len(found))))


@pytest.fixture
def multi() -> Splits:
    rows = [{"text": row["ABSTRACT"], **{name: row[name] for name in SUBJECTS}} for row in read("papers.csv", ",")]
    return divided(rows, list(range(len(rows))))


@pytest.fixture
def pairs() -> Splits:
    rows = read("nli.tsv", "\t")
    return divided([{name: row[name] for name in ("premise", "hypothesis", "label")} for row in rows],
                   [row["premise_id"] for row in rows])  # fmt: skip


@pytest.fixture
def checked(mini_dir: Path, tmp_path: Path) -> Callable[..., Checkup]:
    """Check splits that are written to files first."""

    def check(splits: Splits, **options: Any) -> Checkup:
        for name, rows in splits.items():
            with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        given = {"label_errors": "none", "model": mini_dir, **options}
        return bertune.check(
            tmp_path / "train.csv", valid=tmp_path / "valid.csv", test=tmp_path / "test.csv", **given
        )

    return check


def found(checkup: Checkup) -> Found:
    """Kind -> rows, over all findings of the kind."""
    rows: Found = {}
    for finding in checkup.findings:
        rows.setdefault(finding.kind, set()).update((place["split"], place["row"]) for place in finding.rows)
        if finding.rows:
            assert finding.count == len(finding.rows)
    return rows


def test_clean_data_raises_nothing(
    single: Splits, multi: Splits, pairs: Splits, checked: Callable[..., Checkup]
) -> None:
    for splits in (single, multi, pairs):
        assert checked(splits).findings == []


TEXT_FAULTS = {
    "empty_text": "  ",
    "one_word": "Bacteria",
    "markup": "The <b>second</b> law &amp; its limits in small systems that exchange energy with a bath.",
    "mojibake": "The cafÃ© problem asks how visitors of a town choose among places that differ in taste and price.",
    "control_characters": "A bound on the\x07 spread of rumours in networks whose members forget what they have heard.",
    "language": FRENCH,
}


@pytest.mark.parametrize("kind", TEXT_FAULTS)
def test_a_fault_of_a_text_is_found_where_it_was_put(
    kind: str, single: Splits, checked: Callable[..., Checkup]
) -> None:
    single["train"][4]["text"] = TEXT_FAULTS[kind]
    single["test"][9]["text"] = TEXT_FAULTS[kind].replace("second", "third").replace("town", "city") + " "
    result = found(checked(single))
    wanted = {("train", 5), ("test", 10)}
    assert result.pop(kind) == wanted
    # Two rows with the same short text also are copies of one another.
    assert set(result) <= {"leak", "contradiction", "near_leak"}


def test_replacement_characters_and_invisible_marks_are_faults_and_emoji_are_not() -> None:
    assert faults("na\ufffdve texts") == ["mojibake"]
    assert faults("pass\u200bword reset") == ["control_characters"]
    assert faults("so happy 👩‍👩‍👧 today") == [] and faults("naïve café, déjà vu — “quoted”…") == []
    assert faults("这部电影很好看") == [] and faults("AT&T < 5 and > 3") == []
    assert faults("a\ttab and\na line") == []


def test_a_language_is_told_from_a_few_words_and_not_guessed_from_fewer() -> None:
    assert language(FRENCH) == "fr"
    assert language("The cat sat on the mat and looked at the old man.") == "en"
    assert language("Merci") is None


def test_copies_inside_a_split_and_across_are_told_apart(single: Splits, checked: Callable[..., Checkup]) -> None:
    train, test = single["train"], single["test"]
    train[20] = {**train[3], "text": train[3]["text"].upper().replace(" ", "  ")}
    test[7] = dict(train[11])
    result = found(checked(single))
    assert result == {"duplicate": {("train", 21)}, "leak": {("test", 8)}}


def test_near_copies_are_found_on_both_sides_of_the_border(single: Splits, checked: Callable[..., Checkup]) -> None:
    def reworded(row: Row) -> Row:
        words = row["text"].split()
        words[5] = "moreover"
        return {**row, "text": " ".join(words)}

    single["train"][30] = reworded(single["train"][31])
    single["valid"][2] = reworded(single["train"][40])
    result = found(checked(single))
    assert result == {"near_duplicate": {("train", 32)}, "near_leak": {("valid", 3)}}


def test_the_same_text_with_two_labels_contradicts_itself(single: Splits, checked: Callable[..., Checkup]) -> None:
    train = single["train"]
    other = next(name for name in SUBJECTS if name != train[0]["label"])
    train[50] = {"text": train[0]["text"], "label": other}
    assert found(checked(single)) == {"contradiction": {("train", 1), ("train", 51)}}


@pytest.mark.parametrize(
    ("label", "how"), [("physics", "case"), ("Phy sics", "spaces or marks"), ("Physcis", "one letter")]
)
def test_labels_written_in_two_ways_are_named(
    label: str, how: str, single: Splits, checked: Callable[..., Checkup]
) -> None:
    rows = {split: [row for row in single[split] if row["label"] == "Physics"][:2] for split in ("train",)}
    for row in rows["train"]:
        row["label"] = label
    result = checked(single)
    finding = next(finding for finding in result.findings if finding.kind == "label_names")
    assert f"'{label}' and 'Physics' differ by {how} only (2 rows against" in finding.message
    wanted = {("train", number) for number, row in enumerate(single["train"], 1) if row["label"] == label}
    assert {(place["split"], place["row"]) for place in finding.rows} == wanted
    assert set(found(result)) == {"label_names", "label_missing", "rare_label", "imbalance"}


def test_rare_missing_and_uneven_labels_are_told(single: Splits, checked: Callable[..., Checkup]) -> None:
    single["train"] = [row for row in single["train"] if row["label"] != "Statistics"] + [
        row for row in single["train"] if row["label"] == "Statistics"
    ][:3]
    single["test"] = [row for row in single["test"] if row["label"] != "Statistics"]
    result = checked(single)
    rows = len(single["train"])
    by_kind = {finding.kind: finding for finding in result.findings}
    assert found(result)["rare_label"] == {("train", number) for number in (rows - 2, rows - 1, rows)}
    assert "no row of test has 'Statistics'" in by_kind["label_missing"].message
    assert "'Statistics' 3; always answering" in by_kind["imbalance"].message
    assert {"rare_label", "label_missing", "imbalance"} <= set(by_kind) <= {
        "rare_label", "label_missing", "imbalance", "label_shift"
    }  # fmt: skip


def test_columns_that_tell_nothing_are_told(multi: Splits, checked: Callable[..., Checkup]) -> None:
    for rows in multi.values():
        for row in rows:
            row["Never"], row["Again"] = "0", row["Physics"]
    result = checked(multi)
    messages = {finding.kind: finding.message for finding in result.findings}
    assert messages == {
        "constant_label": "the same in every row: 'Never'",
        "duplicate_label": "'Again' and 'Physics' are the same in every row",
    } or messages == {
        "constant_label": "the same in every row: 'Never'",
        "duplicate_label": "'Physics' and 'Again' are the same in every row",
    }


def test_pairs_with_exchanged_or_equal_sides_are_found(pairs: Splits, checked: Callable[..., Checkup]) -> None:
    train, test = pairs["train"], pairs["test"]
    test[5] = {"premise": train[8]["hypothesis"], "hypothesis": train[8]["premise"], "label": train[8]["label"]}
    train[30]["hypothesis"] = train[30]["premise"]
    assert found(checked(pairs)) == {"swapped_pair": {("test", 6)}, "identical_sides": {("train", 31)}}


def test_a_split_with_exchanged_columns_is_found(pairs: Splits, checked: Callable[..., Checkup]) -> None:
    for rows in pairs.values():
        for row in rows:
            row["hypothesis"] = f"So one may infer that {row['hypothesis']}"
    for row in pairs["test"]:
        row["premise"], row["hypothesis"] = row["hypothesis"], row["premise"]
    kinds = {finding.kind: finding for finding in checked(pairs).findings}
    assert "the sides of test look exchanged" in kinds["swapped_sides"].message
    assert kinds["swapped_sides"].count == len(pairs["test"])


def test_a_second_side_that_gives_the_label_away_is_told(pairs: Splits, checked: Callable[..., Checkup]) -> None:
    for rows in pairs.values():
        for row in rows:
            if row["label"] == "contradiction":
                row["hypothesis"] = f"Nobody at all thinks this: {row['hypothesis']}"
    kinds = {finding.kind: finding for finding in checked(pairs).findings}
    assert set(kinds) == {"second_side_tells"}
    assert "chance 0.50; it is right in" in kinds["second_side_tells"].message


def test_what_is_cut_is_told_with_the_labels_that_lose_most(single: Splits, checked: Callable[..., Checkup]) -> None:
    chosen = [("train", 3), ("train", 8), ("valid", 1), ("test", 4)]
    for row in (single[split][number - 1] for split, number in chosen):
        row["text"] += " and so on" * 100
    result = checked(single, settings={"model.max_length": 128})
    assert found(result) == {"truncation": set(chosen)}
    assert "are cut at 128 tokens and lose" in result.findings[0].message


def test_a_vocabulary_that_does_not_fit_is_told(
    single: Splits, tiny_bert: Path, checked: Callable[..., Checkup]
) -> None:
    result = checked(single, model=tiny_bert, settings={"model.max_length": 64})
    assert "unknown_tokens" in {finding.kind for finding in result.findings}
    single["train"][6]["text"] = "☃ ☂ ☔ ☕ ♨ ⚑ ⚒ ⚓ and snow"
    assert found(checked(single))["unknown_tokens"] == {("train", 7)}


def test_a_split_from_elsewhere_is_told_by_its_words(single: Splits, checked: Callable[..., Checkup]) -> None:
    for number, row in enumerate(single["test"]):
        row["text"] = f"Reviewer {number} liked the movie, the actors and the popcorn. {row['text'][:60]}"
    result = checked(single)
    shift = next(finding for finding in result.findings if finding.kind == "shift")
    assert shift.message.startswith("the texts of test differ from those of train")
    assert "movie" in shift.message


def test_a_split_with_another_mix_of_labels_is_told(single: Splits, checked: Callable[..., Checkup]) -> None:
    for row in single["test"][:25]:
        row["label"] = "Physics"
    kinds = {finding.kind: finding for finding in checked(single).findings}
    assert "labels are not as frequent in test as in train: 'Physics'" in kinds["label_shift"].message


def test_similar_texts_are_those_that_comparing_all_with_all_finds() -> None:
    random = np.random.default_rng(3)
    words = [f"word{number}" for number in range(60)]
    texts = []
    for _ in range(40):
        base = list(random.choice(words, 30))
        texts.append(" ".join(base))
        for changes in (1, 2, 4):
            copy = list(base)
            for place in random.integers(0, 30, changes):
                copy[place] = str(random.choice(words))
            texts.append(" ".join(copy))
    texts = list(dict.fromkeys([*texts, "", "！"]))
    ids, offsets = shingles(texts)
    every = np.array([(one, other) for other in range(len(texts)) for one in range(other)])
    wanted = {tuple(pair) for pair in every[jaccard(ids, offsets, every) >= 0.8].tolist()}
    wanted -= {pair for pair in wanted if not texts[pair[0]].isascii() or not texts[pair[1]]}
    answer = {tuple(pair) for pair in similar_pairs([texts]).tolist()}
    assert len(wanted) > 20
    assert answer <= wanted and len(answer) >= 0.97 * len(wanted)


def test_similarity_is_jaccards_over_words_and_neighbouring_words() -> None:
    ids, offsets = shingles(["a man is sleeping", "a man is not sleeping", "a man is sleeping!", "猫 坐", "猫坐", ""])
    pairs = np.array([(0, 1), (0, 2), (3, 4), (0, 5), (5, 5)])
    assert jaccard(ids, offsets, pairs) == pytest.approx([6 / 10, 1, 1, 0, 1])


def test_normalised_texts_differ_only_by_what_can_be_seen() -> None:
    assert normalised("Ｆｕｌｌ  width\tCAFE\u0301 ") == normalised("full width café")
    assert normalised("it is") != normalised("it is not")
