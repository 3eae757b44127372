"""How the authors of the benchmarks score a generated answer, from 0 to 1."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from difflib import SequenceMatcher


def references_found(said: str, references: Iterable[str]) -> float:
    """RULER's `string_match_all`: the share of the references that are in the answer, in upper or lower case."""
    found = each_found(said, references)
    return sum(found) / len(found)


def any_found(said: str, references: Iterable[str]) -> float:
    """RULER's `string_match_part`: whether one of the references is in the answer, in upper or lower case."""
    return float(any(each_found(said, references)))


def each_found(said: str, references: Iterable[str]) -> list[bool]:
    """Whether each of the references is in the answer, without what cannot be printed."""
    said = re.sub(r"[\x00-\x1f]", "\n", said.strip()).strip().lower()
    return [reference.lower() in said for reference in references]


def numbers_in_order(said: str, references: tuple[str, ...]) -> float:
    """Whether the first numbers of the answer are these."""
    return float(re.findall(r"\d+", said)[: len(references)] == [*references])


def value_found(said: str, references: Iterable[str], prefix: str) -> float:
    """HELMET's `substring_exact_match`: whether a reference is in the answer, or in what follows `prefix` there, both normalised."""
    first = re.search(f"(?:{prefix})(.*)(?:\n|$)", said, re.IGNORECASE) or re.search(r"(?:^)(.*)(?:\n|$)", said)
    parsed = re.sub(f"^{re.escape(prefix)}", "", first[1].strip(), flags=re.IGNORECASE) if first else ""
    return float(any(normalised(reference) in normalised(text) for reference in references for text in (said, parsed)))


def normalised(text: str) -> str:
    """SQuAD's: lower case without punctuation, articles and double spaces."""
    text = "".join(each for each in text.lower() if each not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def only_label(said: str, target: str, question: str, labels: Iterable[str]) -> float:
    """BABILong's `compare_answers`: whether the target is the only label in the first sentence, those of the question left out."""
    said = said.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    known = {label.lower() for label in labels}
    found = {label for label in known if label in said and label not in question.lower()}
    return float(found == {target.lower()})


def similar_after(said: str, answer: str, prefix: str) -> float:
    """OpenAI MRCR's `grade`: difflib's ratio of what follows the prefix, 0 where the answer does not begin with it."""
    if not said.startswith(prefix):
        return 0.0
    return SequenceMatcher(None, said.removeprefix(prefix), answer.removeprefix(prefix)).ratio()


def contains(said: str, references: Iterable[str]) -> float:
    """NoLiMa's `contains`: whether one of the references is in the answer."""
    return float(any(reference in said for reference in references))
