"""The page that shows encodings: one file that needs no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..catalogue import COSTS, Description, describe
from ..page import render
from ..plotting import data_uri
from .numbers import Row, View
from .plots import comparison, figure_of, panels

TEMPLATE = """
{% extends "page" %}
{% block style %}
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; } .facts td:first-child { overflow-wrap: normal; }
h1, h2 { overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } figcaption { max-width: 45rem; }
section { border-top: 2px solid #ddd; margin-top: 3rem; }
{% endblock %}
{% block body %}
<h1>{{ title }}</h1>
{% if parts[1:] %}
<nav>{% for part in parts %}<a href="#part{{ loop.index }}">{{ part.label }}</a>{{ " · " if not loop.last }}{% endfor %}</nav>
<figure><img alt="score against distance, all encodings" src="{{ together }}">
<figcaption>What positions add to the score of the last query of the trained length, the mean of all heads.</figcaption></figure>
{% endif %}
{% for part in parts %}
<section id="part{{ loop.index }}">
<h2>{{ part.label }}</h2>
<pre>{{ part.documentation }}</pre>
<table class="facts">{% for name, value in part.facts.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
{% for picture in part.pictures %}
<figure><h3>{{ picture.title }}</h3>
<img alt="{{ part.label }}: {{ picture.title }}" src="{{ picture.source }}">
<figcaption>{{ picture.says }}</figcaption></figure>
{% endfor %}
<h3>Numbers</h3>
{% for table in part.tables %}
<p>{{ table.says }}</p>
<div class="wide"><table><thead><tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endfor %}
</section>
{% endfor %}
{% endblock %}
"""
FIRST = 8
"""Numbers of an embedding that are written down, and positions."""


def page(views: Mapping[str, View], title: str) -> str:
    """Pictures, what they say, and their numbers, for each encoding."""
    parts = [part(label, view) for label, view in views.items()]
    return render(TEMPLATE, title=title, parts=parts, together=data_uri(comparison(views)) if parts[1:] else "")


def part(label: str, view: View) -> dict[str, Any]:
    """What the page has of one encoding."""
    description = describe(view.subject.encoding.name)
    pictures = [{"title": p.title, "says": p.says(view), "source": data_uri(figure_of(p, view))} for p in panels(view)]
    return {
        "label": label,
        "documentation": description.documentation,
        "facts": facts(view, description),
        "pictures": pictures,
        "tables": tables(view),
    }


def facts(view: View, description: Description) -> dict[str, Any]:
    """What is known of it, in words."""
    subject = view.subject
    options = {**description.options, **getattr(subject.encoding, "options", {})}
    learned = sum(x.numel() for x in subject.encoding.parameters())
    found = {
        "encoding": f"{description.name} ({description.title})",
        "seen in": subject.place,
        "options": ", ".join(f"{name}={value!r}" for name, value in options.items()),
        "acts on": ", ".join(description.stages) or "nothing",
        "attention costs": COSTS[description.cost],
        "learned numbers": f"{learned:,}" if learned else "",
        "trained for": f"{subject.trained:,} tokens",
        "asked to reach": f"{subject.promised:,} tokens" if subject.promised else "",
        "needs training": description.needs_training or "no",
        "starts as": subject.encoding.starts_as,
        "source": description.source,
        "differs": description.differs,
    }
    return {name: value for name, value in found.items() if value}


def tables(view: View) -> list[dict[str, Any]]:
    """The numbers behind the pictures."""
    found = [scores(view.within)] + ([scores(view.past)] if view.past is not None else [])
    if view.embedded is not None:
        numbers = [[*map(shown, row[:FIRST])] for row in view.embedded.becomes[:FIRST].tolist()]
        found.append(
            {
                "says": f"The first {FIRST} numbers of the token, alone and at the first positions.",
                "header": ["position", *map(str, range(FIRST))],
                "rows": [
                    ["alone", *map(shown, view.embedded.token[:FIRST].tolist())],
                    *([str(at), *row] for at, row in enumerate(numbers)),
                ],
            }
        )
    return found


def scores(row: Row) -> dict[str, Any]:
    """What positions add to the scores of a query, by distance and head."""
    heads = ["all heads"] if row.alike else [f"head {head}" for head in range(len(row.mean))]
    wanted = {0, *(2**i for i in range(row.query.bit_length())), row.query}
    rows = [
        [f"{distance:,}", *map(shown, row.mean[: len(heads), at].tolist())]
        for at, distance in enumerate(row.distances.tolist())
        if distance in wanted
    ]
    return {"says": f"Added to the score of the query at {row.query:,}, by distance.", "header": ["distance", *heads], "rows": rows}


def shown(number: float) -> str:
    """A number, or a dash for a key that the query does not see."""
    return "–" if number != number else f"{number:.4g}"
