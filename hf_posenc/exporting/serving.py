"""Comparing a model here with one that is served: log-probabilities of the next token."""

from __future__ import annotations

import dataclasses
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..patching import patch_of, patched

TOP = 20
"""Tokens whose log-probabilities are asked for."""
SECONDS = 600.0
"""How long a server may take to answer."""
TOKEN_ID = "token_id:"
"""Before the number of a token, in answers of vLLM that were asked for numbers."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far a server is from the model here.

    Attributes:
        tokens: of the prompt. compared: log-probabilities.
        largest: difference of log-probabilities, in nats.
        left_out: the same for the model here without its encoding; None where it has none.
    """

    tokens: int
    compared: int
    largest: float
    left_out: float | None


def compare(model: PreTrainedModel, url: str, prompts: Sequence[Sequence[int]], tokenizer: Any = None) -> list[Agreement]:
    """The next token after each prompt (token ids), here and from a server with an OpenAI-compatible API.

    Args:
        tokenizer: for servers that answer with the text of tokens.

    Raises:
        ValueError: the server does not answer with log-probabilities of known tokens.
        OSError: it cannot be reached.
    """
    name = ask(url, "models")["data"][0]["id"]
    found = []
    for prompt in prompts:
        served = served_log_probs(ask(url, "completions", {"model": name} | question(prompt)), tokenizer)
        here, left_out = log_probs(model, prompt), None
        if patch_of(model).placements:
            with patched(model, "rope", verify=False):
                left_out = farthest(served, log_probs(model, prompt))
        found.append(Agreement(len(prompt), len(served), farthest(served, here), left_out))
    return found


def question(prompt: Sequence[int]) -> dict[str, Any]:
    """What a server is asked: one token, and the likeliest ones by number."""
    asked = {"prompt": list(prompt), "max_tokens": 1, "temperature": 0, "logprobs": TOP}
    return asked | {"return_tokens_as_token_ids": True}  # a word of vLLM's, which others leave alone


def farthest(served: Mapping[int, float], here: Tensor) -> float:
    """The largest difference of log-probabilities."""
    return max(abs(value - float(here[token])) for token, value in served.items())


@torch.no_grad()
def log_probs(model: PreTrainedModel, prompt: Sequence[int]) -> Tensor:
    """Log-probabilities [V] of the token after a prompt, in float32."""
    ids = torch.tensor([list(prompt)], device=model.device)
    return model(ids, use_cache=False).logits[0, -1].float().log_softmax(-1).cpu()


def ask(url: str, what: str, body: Mapping[str, Any] | None = None) -> Any:
    """The answer of an OpenAI-compatible server, whose address may end in /v1."""
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/{what}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{address} answers {error.code}: {error.read().decode(errors='replace')[:200]}") from None
    except (urllib.error.URLError, json.JSONDecodeError) as error:
        raise OSError(f"no server answers at {address} ({error})") from None


def served_log_probs(answer: Mapping[str, Any], tokenizer: Any = None) -> dict[int, float]:
    """Log-probabilities by token in an answer: of llama.cpp by number, of others by number or text."""
    told = (answer["choices"][0].get("logprobs") or {}) if answer.get("choices") else {}
    if content := told.get("content"):
        return {entry["id"]: entry["logprob"] for entry in content[0]["top_logprobs"] if "id" in entry}
    found = {}
    for text, value in (told.get("top_logprobs") or [{}])[0].items():
        if text.startswith(TOKEN_ID):
            found[int(text.removeprefix(TOKEN_ID))] = value
        elif tokenizer is not None and len(ids := tokenizer.encode(text, add_special_tokens=False)) == 1:
            found[ids[0]] = value
    if not found:
        raise ValueError(
            "the server tells no log-probabilities (llama.cpp does not for half a character): allow `logprobs`, or ask another prompt"
        )
    return found
