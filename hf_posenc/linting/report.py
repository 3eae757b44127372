"""What a lint has found, as text and as JSON.

| key | |
|---|---|
| `schema_version` | 1 |
| `passed` | no finding is an error |
| `name`, `kind` | what was read |
| `engines` | each with its `layers`: `first`, `last` (wavelengths in tokens), `pairs`, `attention_factor`, `context_length`; or `refusal` |
| `findings` | `rule`, `severity`, `where`, `what`, `advice`, and whether it is `mendable` |
| `mended` | rules of what was written |
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..tables import print_texts
from .case import Served
from .documents import Document
from .finding import ERROR, SEVERITIES, Finding

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Lint:
    """What engines make of a file, and what is wrong with that: `print` it.

    Args:
        document: what was read, or what was written in its place. served: by engines. findings: the worst first. mended: what was.
    """

    document: Document
    served: Sequence[Served]
    findings: Sequence[Finding]
    mended: Sequence[Finding] = ()

    @property
    def passed(self) -> bool:
        """No finding is an error."""
        return not any(finding.severity == ERROR for finding in self.findings)

    @property
    def mendable(self) -> list[Finding]:
        """What is certain, and can be written."""
        return [finding for finding in self.findings if finding.mend]

    def to_dict(self) -> dict[str, Any]:
        """What its JSON holds."""
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "name": self.document.name,
            "kind": self.document.kind,
            "engines": [as_dict(each) for each in self.served],
            "findings": [
                {key: value for key, value in vars(finding).items() if key != "mend"} | {"mendable": bool(finding.mend)}
                for finding in self.findings
            ],
            "mended": [finding.rule for finding in self.mended],
        }

    def show(self) -> None:
        """Print everything."""
        print(f"{self.document.name} ({self.document.kind})")
        if self.served:
            header = ["engine", "layers", "first wavelength", "last", "on cos and sin", "context", "why not"]
            print_texts(header, [row(each) for each in self.served])
        for finding in self.mended:
            print(f"\nmended ({finding.rule}) {finding.where}: {finding.what}")
        for finding in self.findings:
            print(f"\n{finding.severity} ({finding.rule}) {finding.where}: {finding.what}")
            print(f"  {finding.advice}")
        counts = Counter(finding.severity for finding in self.findings)
        print("\n" + ", ".join(f"{severity}s: {counts[severity]}" for severity in SEVERITIES))
        if self.mendable:
            print(f"--fix mends {len(self.mendable)} of them")

    def __str__(self) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            self.show()
        return text.getvalue().rstrip()


def as_dict(served: Served) -> dict[str, Any]:
    """One line of the table."""
    about = {"engine": served.engine, "layers": served.layers}
    reading = served.reading
    if reading is None:
        return about | {"refusal": served.refusal}
    first, last = wavelengths(served)
    sizes = {"attention_factor": reading.attention_factor, "context_length": reading.context_length}
    return about | {"first": first, "last": None if math.isinf(last) else last, "pairs": len(reading.frequencies)} | sizes


def row(served: Served) -> list[str]:
    """The same as text."""
    reading = served.reading
    if reading is None:
        return [served.engine, served.layers or "all", "-", "-", "-", "-", served.refusal]
    first, last = wavelengths(served)
    numbers = [f"{first:.5g}", f"{last:.6g}", f"{reading.attention_factor:.6g}", f"{reading.context_length}"]
    return [served.engine, served.layers or "all", *numbers, "-"]


def wavelengths(served: Served) -> list[float]:
    """Tokens of a whole turn, of the first pair and the last."""
    assert served.reading is not None
    return [2 * math.pi / each if each else math.inf for each in served.reading.frequencies[[0, -1]].tolist()]
