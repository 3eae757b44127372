from .base import PositionalEncoding, register


@register("nope")
class NoPE(PositionalEncoding):
    """No positional encoding (Haviv et al., 2022, arXiv:2203.16634; Kazemnejad et al., 2023, arXiv:2305.19466).

    The causal mask alone tells a decoder the order.

    Needs training: from scratch, or recalibration of a model that was trained with positions.
    """

    relative = True
    positionless = True
    needs_training = "pretraining, or recalibration at the native length"
