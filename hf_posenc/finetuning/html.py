"""The report of a run: one file that needs no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, cast

from transformers import Trainer, TrainingArguments

from ..evaluation.measure import versions
from ..evaluation.token_nll import exp
from ..page import render
from ..plotting import data_uri
from ..training import LengthEvaluation
from ..training.logged import Logged
from .arguments import Settings
from .plots import loss_figure, position_figure
from .record import Record

TEMPLATE = """
{% extends "page" %}
{% block style %}
.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
h1 { overflow-wrap: anywhere; }
{% endblock %}
{% macro table(name, header, rows) %}
<div class="wide"><table class="{{ name }}">
<thead><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endmacro %}
{% block body %}
<h1>{{ title }}</h1>
<pre>{{ description }}</pre>
{% if not measured_before %}
<div class="missing">The loss by position was not measured before the first step (<code>--eval_on_start true</code> does, in a run that has
a report from its beginning).</div>
{% endif %}

<h2>Evaluation</h2>
{{ table("evaluation", ["perplexity at", "before", "after", "change"], perplexities) }}
<p>{{ held_out }} Every prediction weighs the same.{% if best %} After: the best checkpoint, of step {{ best }}.{% endif %}</p>
{% if tasks %}
{{ table("tasks", ["task", "before", "after", "change"], tasks) }}
<p>Mean scores of {{ trials }} prompts each, the same before and after, {{ "of generated answers" if generated else "teacher-forced" }}.</p>
{% endif %}

<h2>Loss by position</h2>
<img id="positions" alt="nats by position" src="{{ position_plot }}">
<p>Windows of {{ length }} tokens, by the position in the window of what is predicted: their mean is the log of the perplexity.</p>
{{ table("positions", ["positions", "before", "after", "change"], positions) }}

<h2>Short texts</h2>
{{ table("short", ["model", "nats", "perplexity"], short) }}
<p>The first {{ short_tokens }} held-out tokens in texts of {{ short_length }}: what the encoding and its training cost where no more
context is needed.</p>

<h2>While training</h2>
<img id="loss" alt="loss by step" src="{{ loss_plot }}">

<h2>Settings</h2>
{{ table("settings", ["flag", "value"], settings) }}
{{ table("settings", ["package", "version"], versions) }}
{% endblock %}
"""


def page(settings: Settings, trainer: Trainer, record: Record) -> str:
    """The run as HTML, everything within it; whatever a name holds is shown, not obeyed."""
    found, state = record.found, trainer.state
    before, after = found.get("before", {}), found["after"]
    listening = [each for each in trainer.callback_handler.callbacks if isinstance(each, Logged)]
    lengths = {name: value for each in listening if isinstance(each, LengthEvaluation) for name, value in each.last.items()}
    scores = {name: value for each in listening if not isinstance(each, LengthEvaluation) for name, value in each.last.items()}
    first = first_of([entry for entry in state.log_history if entry["step"] == 0])
    return render(
        TEMPLATE,
        title=f"{settings.model.model} with {settings.encoding.encoding}, {state.global_step:,} steps of fine-tuning",
        description=record.description,
        measured_before=bool(before),
        perplexities=[perplexity_row(f"{int(name.partition('@')[2]):,}", first.get(name), nats) for name, nats in lengths.items()],
        held_out=f"{len(record.ids):,} held-out tokens in consecutive windows of each length.",
        best=f"{state.best_global_step:,}" if trainer.args.load_best_model_at_end and state.best_global_step else "",
        tasks=[score_row(name.removeprefix("eval_"), first.get(name), score) for name, score in scores.items()],
        trials=settings.evaluation.eval_trials,
        generated=settings.evaluation.eval_generate,
        position_plot=data_uri(position_figure(curves(before, after), marks(settings, record))),
        length=f"{found['length']:,}",
        positions=position_rows(before, after),
        short=[[when, f"{nats:.4f}", f"{exp(nats):.2f}"] for when in WHENS if (nats := found.get(when, {}).get("short")) is not None],
        short_tokens=f"{found['short_tokens'] // found['short_length'] * found['short_length']:,}",
        short_length=f"{found['short_length']:,}",
        loss_plot=data_uri(loss_figure(losses(state.log_history, lengths, training_label(settings)))),
        settings=list(shown_settings(settings).items()),
        versions=list(versions().items()),
    )


WHENS = ("as loaded", "before", "after")
FILLED_IN = ("accelerator_config", "fsdp_config")


def first_of(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each name in a log, the value that was logged first."""
    return {name: value for entry in reversed(history) for name, value in entry.items()}


def perplexity_row(name: str, before: float | None, after: float) -> list[str]:
    """Perplexities from nats, and by what share they differ."""
    if before is None:
        return [name, "-", f"{exp(after):.2f}", "-"]
    return [name, f"{exp(before):.2f}", f"{exp(after):.2f}", f"{exp(after - before) - 1:+.1%}"]


def score_row(name: str, before: float | None, after: float) -> list[str]:
    """Scores, and by how much they differ."""
    return [name, "-", f"{after:.0%}", "-"] if before is None else [name, f"{before:.0%}", f"{after:.0%}", f"{after - before:+.0%}"]


def position_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[list[str]]:
    """Nats by ranges of positions."""
    known = {stop: nats for _, stop, nats in before.get("by_position", [])}
    rows = []
    for start, stop, nats in after["by_position"]:
        old = known.get(stop)
        values = ["-", f"{nats:.4f}", "-"] if old is None else [f"{old:.4f}", f"{nats:.4f}", f"{nats - old:+.4f}"]
        rows.append([f"{start:,} ... {stop - 1:,}", *values])
    return rows


def curves(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Nats by the end of a range of positions."""
    named = {"before training": before, "after": after}
    return {name: {stop: nats for _, stop, nats in found["by_position"]} for name, found in named.items() if found}


def marks(settings: Settings, record: Record) -> dict[str, int]:
    """Lengths in tokens that say something of positions."""
    return {"context as loaded": record.native, "trained at": settings.data.block_size}


def training_label(settings: Settings) -> str:
    """What the loss that is trained on is called beside that of the evaluations, which weighs no token."""
    return "training" if (weights := settings.weights) is None else f"training, {weights}"


def losses(history: Sequence[Mapping[str, Any]], names: Mapping[str, float], training: str) -> dict[str, dict[int, float]]:
    """Nats by step, of the training text and of the evaluations."""
    shown = {"loss": training, **{name: f"held out, at {int(name.partition('@')[2]):,}" for name in names}}
    found: dict[str, dict[int, float]] = {label: {} for label in shown.values()}
    for entry in history:
        for name, label in shown.items():
            if name in entry:
                found[label].setdefault(entry["step"], entry[name])  # where training ends, the best model may be measured once more
    return {label: curve for label, curve in found.items() if curve}


def shown_settings(settings: Settings) -> dict[str, Any]:
    """The flags that are not at their default; without tokens, and without what `TrainingArguments` fills in."""
    shown = {}
    for each in settings:
        said = each.to_dict() if isinstance(each, TrainingArguments) else asdict(cast(Any, each))
        for field in fields(cast(Any, each)):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            if field.init and said.get(field.name) != default and not field.name.endswith("_token"):
                shown[field.name] = said[field.name]
    return {name: value for name, value in shown.items() if value is not None and name not in FILLED_IN}
