"""The shipped sample data is complete, well formed, balanced and free of near duplicates."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest

import bertune

SAMPLES = Path(bertune.__file__).parent / "samples"
SUBJECTS = [
    "Computer Science", "Physics", "Mathematics", "Statistics", "Quantitative Biology", "Quantitative Finance",
]
FILES = ["papers.csv", "nli.tsv", "papers_unseen.txt", "README.md"]


def read(name: str, delimiter: str) -> tuple[list[str], list[dict[str, str]]]:
    with (SAMPLES / name).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter, strict=True)
        return list(rows.fieldnames or []), list(rows)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


@pytest.fixture(scope="module")
def papers() -> list[dict[str, str]]:
    return read("papers.csv", ",")[1]


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, str]]:
    return read("nli.tsv", "\t")[1]


def subjects_of(row: dict[str, str]) -> int:
    return sum(row[subject] == "1" for subject in SUBJECTS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_clean_utf8_with_plain_line_ends(name: str) -> None:
    raw = (SAMPLES / name).read_bytes()
    text = raw.decode("utf-8")
    assert not text.startswith("\ufeff")
    assert "\ufffd" not in text
    assert raw.replace(b"\r\n", b"\n").endswith(b"\n")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text.replace("\r\n", "\n"))


def test_papers_have_the_announced_columns_and_whole_cells() -> None:
    header, rows = read("papers.csv", ",")
    assert header == ["ID", "TITLE", "ABSTRACT", *SUBJECTS]
    assert [row["ID"] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    for row in rows:
        assert None not in row and None not in row.values(), row["ID"]
        assert {row[subject] for subject in SUBJECTS} <= {"0", "1"}, row["ID"]
        assert all(row[name] == row[name].strip() != "" for name in ("TITLE", "ABSTRACT")), row["ID"]
        assert 30 <= len(row["ABSTRACT"].split()) <= 75, row["TITLE"]


def test_papers_need_quoting_so_that_a_naive_split_fails() -> None:
    text = (SAMPLES / "papers.csv").read_text(encoding="utf-8")
    assert '""' in text
    assert any(line.count(",") > len(SUBJECTS) + 2 for line in text.splitlines())


def test_papers_spread_over_subjects_and_combinations(papers: list[dict[str, str]]) -> None:
    assert len(papers) == 360
    counts = Counter(subjects_of(row) for row in papers)
    assert set(counts) == {1, 2, 3}
    assert 0.3 <= (counts[2] + counts[3]) / len(papers) <= 0.45
    for subject in SUBJECTS:
        assert sum(row[subject] == "1" for row in papers) >= 55, subject
        assert sum(row[subject] == "1" and subjects_of(row) == 1 for row in papers) >= 15, subject


def test_papers_are_not_sorted_by_subject(papers: list[dict[str, str]]) -> None:
    for subject in SUBJECTS:
        for start in range(0, len(papers), 90):
            assert any(row[subject] == "1" for row in papers[start : start + 90]), (subject, start)


def test_no_two_titles_share_most_of_their_words(papers: list[dict[str, str]]) -> None:
    titles = [(row["TITLE"], set(words(row["TITLE"]))) for row in papers]
    close = [
        (a, b) for (a, first), (b, second) in combinations(titles, 2)
        if len(first & second) > 0.6 * min(len(first), len(second))
    ]
    assert close == []


def test_no_five_words_in_a_row_occur_in_two_abstracts(papers: list[dict[str, str]]) -> None:
    seen: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in papers:
        tokens = words(row["ABSTRACT"])
        for start in range(len(tokens) - 4):
            seen[tuple(tokens[start : start + 5])].add(row["TITLE"])
    assert {" ".join(run): titles for run, titles in seen.items() if len(titles) > 1} == {}


def test_pairs_have_the_announced_columns_and_whole_cells() -> None:
    header, rows = read("nli.tsv", "\t")
    assert header == ["premise", "hypothesis", "label", "premise_id"]
    for row in rows:
        assert None not in row and None not in row.values(), row
        assert all(value == value.strip() != "" for value in row.values()), row
        assert not any("\t" in value or "\n" in value for value in row.values()), row


def test_each_premise_has_one_hypothesis_for_every_label(pairs: list[dict[str, str]]) -> None:
    assert len(pairs) == 360
    groups: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in pairs:
        groups[row["premise_id"]].append(row)
    assert len(groups) == 120
    for name, rows in groups.items():
        assert len({row["premise"] for row in rows}) == 1, name
        assert sorted(row["label"] for row in rows) == ["contradiction", "entailment", "neutral"], name


def test_no_premise_and_no_hypothesis_occurs_twice(pairs: list[dict[str, str]]) -> None:
    hypotheses = Counter(" ".join(words(row["hypothesis"])) for row in pairs)
    assert [text for text, count in hypotheses.items() if count > 1] == []
    premises = {" ".join(words(row["premise"])) for row in pairs}
    assert len(premises) == 120
    assert premises.isdisjoint(hypotheses)


@pytest.mark.parametrize("pattern", [r"not?|never|nobody|without|none|cannot|nothing|neither", r"every|all|only"])
def test_telling_words_occur_under_every_label(pairs: list[dict[str, str]], pattern: str) -> None:
    found = Counter(row["label"] for row in pairs if re.search(rf"\b({pattern})\b", row["hypothesis"].lower()))
    assert len(found) == 3
    assert max(found.values()) <= 0.5 * sum(found.values())


def test_unseen_texts_are_eight_new_lines(papers: list[dict[str, str]]) -> None:
    lines = (SAMPLES / "papers_unseen.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 8
    assert all(line == line.strip() != "" for line in lines)
    titles = [set(words(row["TITLE"])) for row in papers]
    for line in lines:
        tokens = set(words(line))
        assert all(len(tokens & title) <= 0.6 * min(len(tokens), len(title)) for title in titles), line


def test_the_readme_names_the_licence_and_every_file() -> None:
    text = (SAMPLES / "README.md").read_text(encoding="utf-8")
    assert "CC0 1.0" in text
    assert all(f"`{name}`" in text for name in FILES[:3])
