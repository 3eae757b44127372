"""Questions about paragraphs, as SQuAD and HotpotQA are published: in a JSON file of the authors, or on a hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ..corpus import CorpusError, open_dataset, read_text


class Asked(NamedTuple):
    """A question.

    Args:
        text: the question.
        answers: any of them is right.
        documents: numbers of those that it is about.
        related: numbers of others from the same article.
    """

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    related: tuple[int, ...] = ()


class Data(NamedTuple):
    """All questions, and each of the documents once, in the order of their texts."""

    documents: tuple[str, ...]
    asked: tuple[Asked, ...]

    @property
    def sha256(self) -> str:
        """Identifies them."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


class Raw(NamedTuple):
    """A question with texts instead of numbers; without answers, where it cannot be answered."""

    text: str
    answers: list[str]
    documents: list[str]
    related: list[str]


@lru_cache(maxsize=1)
def squad(name: str) -> Data:
    """SQuAD 1.1 or 2.0, without what cannot be answered.

    Args:
        name: a file as dev-v2.0.json, or a data set of the hub as rajpurkar/squad_v2, whose validation split it is.

    Raises:
        CorpusError: there is no such file or data set, or it is in another format.
    """
    return numbered(name, "SQuAD", squad_file(name) if is_file(name) else squad_rows(open_dataset(name, None, "validation")))


@lru_cache(maxsize=1)
def hotpotqa(name: str) -> Data:
    """HotpotQA with distractors.

    Args:
        name: a file as hotpot_dev_distractor_v1.json, or a data set of the hub as hotpotqa/hotpot_qa, whose validation split it is.

    Raises:
        CorpusError: there is no such file or data set, or it is in another format.
    """
    return numbered(name, "HotpotQA", hotpotqa_rows(read_json(name) if is_file(name) else open_dataset(name, "distractor", "validation")))


def is_file(name: str) -> bool:
    """Whether a name is that of a JSON file of the authors."""
    return name.lower().endswith(".json")


def read_json(name: str) -> Any:
    """What is in a file."""
    try:
        return json.loads(read_text(Path(name).expanduser()))
    except json.JSONDecodeError as error:
        raise CorpusError(f"{name} is not JSON: {error}") from None


def squad_file(name: str) -> Iterator[Raw]:
    """The questions of the authors' file."""
    for article in read_json(name)["data"]:
        paragraphs = [each["context"] for each in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            here = paragraph["context"]
            for each in paragraph["qas"]:
                answers = [answer["text"] for answer in each["answers"]]
                yield Raw(each["question"], answers, [here], [other for other in paragraphs if other != here])


def squad_rows(rows: Iterable[dict[str, Any]]) -> Iterator[Raw]:
    """The questions of a data set on the hub, whose articles are told from each other by their titles."""
    for _, article in groupby(rows, key=lambda row: row["title"]):
        questions = [*article]
        paragraphs = [*dict.fromkeys(row["context"] for row in questions)]
        for row in questions:
            here = row["context"]
            yield Raw(row["question"], row["answers"]["text"], [here], [other for other in paragraphs if other != here])


def hotpotqa_rows(rows: Iterable[dict[str, Any]]) -> Iterator[Raw]:
    """The questions of the authors' file, or of a data set on the hub, where titles and sentences are apart."""
    for row in rows:
        context = row["context"]
        pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
        yield Raw(row["question"], [row["answer"]], [f"{title}\n{''.join(sentences)}" for title, sentences in pairs], [])


def numbered(name: str, format: str, found: Iterable[Raw]) -> Data:
    """The questions with numbers for the documents.

    Raises:
        CorpusError: the format is another one, or there is no question.
    """
    try:
        raw = [*found]
        documents = sorted({text for each in raw for text in (*each.documents, *each.related)})
        number = {text: at for at, text in enumerate(documents)}
        asked = [
            Asked(each.text, tuple(each.answers), *(tuple(number[text] for text in texts) for texts in (each.documents, each.related)))
            for each in raw
            if each.answers
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{name} is not in the format of {format} ({type(error).__name__}: {error})") from None
    if not asked or not all(each.documents for each in asked):
        raise CorpusError(f"{name} has no questions with answers and documents in the format of {format}")
    return Data(tuple(documents), tuple(asked))
