"""Perplexity of many texts, every token weighted equally, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_posenc.evaluation.perplexity.tally import pooled

DESCRIPTION = """exp of the nats of all predictions over how many there are.
A mean of the perplexities, or of the mean nats, of texts or batches of unequal length is another number."""
INPUTS = """
Args:
    nats: negative log-likelihood of each text, summed over its predictions; or of each prediction.
    tokens: how many predictions that is; or 1 for each.

Returns:
    nats: mean per prediction.
    perplexity: exp of it, infinite where it overflows.
    tokens: how many predictions.
    standard_error: of nats, over the entries as independent samples; None with fewer than two.

Several processes: num_process=, process_id= and experiment_id= of `evaluate.load`, cache_dir= of a folder that all of them share, and
timeout= in seconds, of at least what lies between their first batches. The first process gets the numbers, the others None.
"""


class TokenPerplexity(evaluate.Metric):
    """Sums in float64, whatever the order of entries and processes."""

    def _info(self):
        features = datasets.Features({"nats": datasets.Value("float64"), "tokens": datasets.Value("int64")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _finalize(self):
        if self.writer is None:  # a process without a share: the first one waits for its file
            self.add_batch(nats=[], tokens=[])
        super()._finalize()
        # a process that is ahead must not write its next file over one that the first process has yet to read
        ending = ".odd"
        name = self.info.experiment_id
        self.info.experiment_id = name.removesuffix(ending) if name.endswith(ending) else name + ending

    def _compute(self, nats, tokens):
        return pooled(nats, tokens)
