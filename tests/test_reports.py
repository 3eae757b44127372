"""What the recipes print."""

from dataclasses import replace

import pytest
from test_evaluation import ids, naive_nll, tiny

from hf_posenc.evaluation import perplexity
from hf_posenc.evaluation.perplexity.report import print_table


@pytest.fixture(scope="module")
def measured():
    return perplexity(tiny(), [ids(20), ids(64, seed=2), ids(40, seed=3)], lengths=[16, 32], min_tokens=2)


def test_a_score_has_the_sums_of_each_document(measured):
    for score in measured.scores:
        texts = [naive_nll(tiny(), ids(n, seed)[: score.length]) for n, seed in ((20, 1), (64, 2), (40, 3))]
        assert score.document_tokens == [len(text) for text in texts]
        assert score.document_nats == pytest.approx([text.sum().item() for text in texts], rel=1e-5)


def test_the_table_pools_the_documents_that_a_result_names(measured, tmp_path, capsys):
    """One document of 4 predictions left of the longest length: exp(10 / 4)."""
    first, last = measured.scores
    scores = [first, replace(last, document_nats=[10.0], document_tokens=[4])]
    print_table({"stock": replace(measured, scores=scores)}, tmp_path)
    assert "12.18" in capsys.readouterr().out
