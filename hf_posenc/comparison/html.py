"""The page of a study: one file that needs no other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..page import render
from ..plotting import data_uri
from .arguments import DATASET_FLAGS, SCRATCH_FLAGS, CompareArguments
from .plots import length_figure, loss_figure, position_figure
from .runs import Study
from .summary import Summary

TEMPLATE = """
{% extends "page" %}
{% block style %}
.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.results th { cursor: pointer; }
td.best { font-weight: 700; }
{% endblock %}
{% block body %}
<h1>{{ title }}</h1>
<p>{{ done }} of {{ runs | length }} runs: {{ work }}. Every run of a seed starts from the same weights and sees the same text in the same
order.</p>
{% if missing %}
<div class="missing"><h2>What is missing</h2>
<ul>{% for name, reason in missing %}<li><b>{{ name }}</b>: {{ reason }}</li>{% endfor %}</ul></div>
{% endif %}

<h2>Perplexity per {{ unit }}</h2>
<div class="wide"><table class="results">
<thead><tr><th>encoding</th>{% for n in lengths %}<th>{{ "{:,}".format(n) }}</th>{% endfor %}
<th>parameters</th><th>training, s</th></tr></thead>
<tbody>{% for s in summaries %}
<tr><td>{{ s.label }}</td>{% for n in lengths %}
<td{% if s.label == best[n] %} class="best"{% endif %} data-value="{{ s.perplexity[n].mean if n in s.perplexity else 'Infinity' }}">
{{- s.perplexity[n] if n in s.perplexity else "-" }}</td>{% endfor %}
<td data-value="{{ s.parameters }}">{{ "{:,}".format(s.parameters) }}</td>
<td data-value="{{ s.seconds }}">{{ "%.0f" % s.seconds }}</td></tr>{% endfor %}
</tbody></table></div>
<p>{{ "Mean ± sample standard deviation over the seeds %s." % seeds if several else "One seed (%s): differences may be noise." % seeds }}
Protocol <i>disjoint</i>: the held-out text is cut into consecutive windows of the length that do not overlap; all {{ unit }}s of a window
but its first are predicted from those before them in the window, and every prediction weighs the same. So the text is the same at every
length, but for what is left over at its end, and at a longer one more predictions have more context. Bold: the best of a column. A click
on a heading sorts.</p>
<img alt="perplexity against context length" src="{{ length_plot }}">

<h2>Nats by position</h2>
<p>The same test at the longest length that an encoding is defined at, by the position in the window of what is predicted. Perplexity at a
length is a mean over these positions and hides where a model fails; here it shows.</p>
<img alt="nats by position" src="{{ position_plot }}">

<h2>Training loss</h2>
<img alt="training loss" src="{{ loss_plot }}">

<h2>Runs</h2>
<div class="wide"><table>
<thead><tr><th>run</th>{% for n in lengths %}<th>{{ "{:,}".format(n) }}, nats</th>{% endfor %}
<th>fingerprint</th><th>start</th><th>batches</th><th>training, s</th><th>test, s</th></tr></thead>
<tbody>{% for run, result in runs if result %}
<tr><td>{{ run.name }}</td>{% for n in lengths %}
<td>{{ "-" if result.nats[n | string] is none else "%.4f" % result.nats[n | string] }}</td>{% endfor %}
<td><code>{{ result.fingerprint }}</code></td><td><code>{{ run.settings.start }}</code></td><td><code>{{ run.settings.batches }}</code></td>
<td>{{ "%.0f" % result.train_seconds }}</td><td>{{ "%.0f" % result.test_seconds }}</td></tr>{% endfor %}
</tbody></table></div>
<p>The fingerprint is a hash of the tensors of the positional encoding that are live in the model after training; start, of the weights
before the encoding was put in; batches, of all that a run trained on, in its order.</p>

<h2>Settings</h2>
<div class="wide"><table class="settings">
{% for name, value in settings.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}
{% for package, version in versions.items() %}<tr><td>{{ package }}</td><td>{{ version }}</td></tr>{% endfor %}
</table></div>
<p>Again:</p>
<pre>{{ command }}</pre>
<script>
document.querySelectorAll(".results th").forEach((heading, column) => heading.onclick = () => {
  const body = heading.closest("table").tBodies[0], key = row => row.cells[column].dataset.value;
  const order = (a, b) => column ? key(a) - key(b) : a.cells[0].textContent.localeCompare(b.cells[0].textContent);
  body.append(...[...body.rows].sort(order));
});
</script>
{% endblock %}
"""


def page(study: Study, summaries: list[Summary], title: str, work: str) -> str:
    """The study as HTML, everything within it; whatever a name or a message holds is shown, not obeyed."""
    a = study.arguments
    return render(
        TEMPLATE,
        title=title,
        work=work,
        done=len(study.results),
        runs=[(each, study.results.get(each.name)) for each in study.runs],
        missing=missing(study, summaries),
        summaries=summaries,
        best={length: best(summaries, length) for length in a.lengths},
        lengths=a.lengths,
        unit=a.unit,
        several=len(a.seeds) > 1,
        seeds=", ".join(map(str, a.seeds)),
        settings=shown_settings(study),
        versions=next(iter(study.results.values()))["versions"],
        command=a.command,
        length_plot=data_uri(length_figure(summaries, "", a.train_length, a.unit)),
        position_plot=data_uri(position_figure(summaries, a.train_length, a.unit)),
        loss_plot=data_uri(loss_figure(summaries)),
    )


def shown_settings(study: Study) -> dict[str, Any]:
    """What was asked for, and what it came to."""
    asked = {name: value for name, value in asdict(study.arguments).items() if name not in beside_the_point(study.arguments)}
    first = next(iter(study.results.values()))
    return {
        **{
            name: " ".join(map(str, value)) if isinstance(value, list) else value
            for name, value in asked.items()
            if value not in (None, [])
        },
        "test text, hash": first["settings"]["test"],
        "device": first["device"],
        "attention": ", ".join(sorted({str(result["attention"]) for result in study.results.values()})),
    }


def beside_the_point(arguments: CompareArguments) -> set[str]:
    """Flags that say nothing about this study."""
    unused = SCRATCH_FLAGS if arguments.model else ("model",)
    return {"output_dir", "overwrite", "dry_run", "save_seconds", *unused, *(() if arguments.dataset else DATASET_FLAGS)}


def missing(study: Study, summaries: list[Summary]) -> list[tuple[str, str]]:
    """What a reader would look for in vain, and why."""
    undone = [each.name for each in study.runs if each.name not in study.results and each.name not in study.failures]
    undefined = {s.label: [f"{n:,}" for n in study.arguments.lengths if n not in s.perplexity] for s in summaries}
    return [
        *((name, f"failed: {reason}") for name, reason in study.failures.items()),
        *((name, "not done yet") for name in undone),
        *((label, f"not defined at a length of {', '.join(lengths)}") for label, lengths in undefined.items() if lengths),
    ]


def best(summaries: list[Summary], length: int) -> str | None:
    """Of a column."""
    known = {s.label: s.perplexity[length].mean for s in summaries if length in s.perplexity}
    return min(known, key=lambda label: known[label], default=None)
