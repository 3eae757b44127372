"""Small files in the formats of SQuAD and HotpotQA."""

import json
import re


def paragraph(number):
    """Text with two facts that no other has: where a bridge is, and when it was opened."""
    return (
        f"The bridge number {number} crosses the river at Town{number}. It was opened in {1500 + number} after long work by many hands. "
        f"{'Carts and people have gone over it since, in every season of the year. ' * (1 + number % 3)}"
        f"Its {number % 7 + 2} arches are of stone."
    )


def save_squad(folder, articles=5, paragraphs=4):
    """Two questions for each paragraph, the first with two right answers, and one that cannot be answered; the path of the file."""
    data = []
    for article in range(articles):
        told = []
        for number in range(article * paragraphs, (article + 1) * paragraphs):
            town, year = ({"text": text, "answer_start": paragraph(number).index(text)} for text in (f"Town{number}.", str(1500 + number)))
            town["text"] = town["text"].rstrip(".")
            asked = [
                {"question": f"Where is bridge {number}?", "answers": [town, {**town, "text": f"at Town{number}"}]},
                {"question": f"When was bridge {number} opened?", "answers": [year]},
            ]
            asked = [{**each, "id": f"{number}-{at}", "is_impossible": False} for at, each in enumerate(asked)]
            never = {"question": f"Who paid for bridge {number}?", "id": f"{number}-x", "answers": [], "is_impossible": True}
            told.append({"context": paragraph(number), "qas": [never, *asked]})
        data.append({"title": f"Bridges of land {article}", "paragraphs": told})
    file = folder / "dev-v2.0.json"
    file.write_text(json.dumps({"version": "v2.0", "data": data}))
    return str(file)


def save_hotpotqa(folder, questions=12):
    """Each about two of ten paragraphs, some of which other questions have too; the path of the file."""
    found = []
    for number in range(questions):
        context = []
        for at in range(10):
            of = number * 8 + at
            context.append([f"Bridge {of}", re.split(r"(?<=\.)(?= )", paragraph(of))])
        answer = f"Town{number * 8 + 3}"
        asked = f"In which town is the bridge that was opened before bridge {number * 8 + 4}?"
        facts = [[f"Bridge {number * 8 + at}", 0] for at in (3, 4)]
        found.append({"_id": str(number), "question": asked, "answer": answer, "supporting_facts": facts, "context": context})
    file = folder / "hotpot_dev_distractor_v1.json"
    file.write_text(json.dumps(found))
    return str(file)


def save_questions(folder):
    """By task, the option that names its file."""
    return {"qa_1": {"squad": save_squad(folder)}, "qa_2": {"hotpotqa": save_hotpotqa(folder)}}
