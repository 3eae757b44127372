import dataclasses

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hf_posenc.encodings import Geometry


@pytest.fixture
def geometry():
    return Geometry(hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=16, vocab_size=61)


@pytest.fixture
def tiny():
    """The geometry for which the numbers of authors' code were written down: 8 pairs, 64 tokens."""
    return Geometry(hidden_size=64, num_heads=4, head_dim=16, max_positions=64)


@pytest.fixture
def random_qk():
    """(geometry, length) -> float64 q [2,H,T,D], k [2,G,T,D] and positions [2,T]."""

    def make(geometry, length):
        torch.manual_seed(0)
        q = torch.randn(2, geometry.num_heads, length, geometry.head_dim, dtype=torch.float64)
        k = torch.randn(2, geometry.num_kv_heads, length, geometry.head_dim, dtype=torch.float64)
        return q, k, torch.arange(length).expand(2, -1)

    return make


@pytest.fixture
def rotary_scores():
    """Scores [B,H,T,T] by loops: over pairs, Re(q conj(k) exp(i angle(i, j))) / sqrt(D), with angle(i, j) -> radians of each pair."""

    def make(q, k, angle, interleaved=False):
        q, k = q.numpy(), k.numpy()
        batch, heads, length, width = q.shape
        out = np.zeros((batch, heads, length, length))
        for b, h, i, j in np.ndindex(out.shape):
            turn = np.exp(1j * np.asarray(angle(i, j), dtype=np.float64))
            n = len(turn)
            x, y = q[b, h, i], k[b, h * k.shape[1] // heads, j]
            real, imag = (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if interleaved else (slice(0, n), slice(n, 2 * n))
            turned = ((x[real] + 1j * x[imag]) * np.conj(y[real] + 1j * y[imag]) * turn).real.sum()
            out[b, h, i, j] = (turned + x[2 * n :] @ y[2 * n :]) / np.sqrt(width)
        return torch.from_numpy(out)

    return make


@pytest.fixture
def llama_rotary():
    """(geometry, rope_parameters) -> the rotary module of a stock Llama of that geometry."""

    def make(geometry, rope_parameters):
        config = LlamaConfig(
            hidden_size=geometry.hidden_size,
            num_attention_heads=geometry.num_heads,
            num_key_value_heads=geometry.num_kv_heads,
            head_dim=geometry.head_dim,
            max_position_embeddings=geometry.max_positions,
            rope_parameters={"rope_theta": geometry.theta} | rope_parameters,
        )
        return LlamaRotaryEmbedding(config)

    return make


@pytest.fixture(
    params=[(64, 10_000.0, 2048), (128, 500_000.0, 8192), (80, 10_000.0, 4096), (96, 1_000_000.0, 32_768)], ids=lambda p: f"D{p[0]}"
)
def released(request):
    """Geometries of released models."""
    width, theta, native = request.param
    return Geometry(hidden_size=4 * width, num_heads=4, head_dim=width, theta=theta, max_positions=native)


@pytest.fixture
def yarned(geometry):
    """A model that already scales its RoPE."""
    frequencies = (1.0, 0.3, 0.02, 0.001)
    parameters = (("rope_type", "yarn"), ("rope_theta", 10_000.0), ("factor", 4.0))
    return dataclasses.replace(geometry, rope_type="yarn", rope_parameters=parameters, frequencies=frequencies, attention_factor=1.25)
