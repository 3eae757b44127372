"""Model types that no encoding can be put into, and why."""

_STATE = "it has no attention that an encoding could act in, only a state that runs through the text"
_OWN = "its attention is of its own making, without a function that an encoding could take the place of"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"), _STATE),
    **dict.fromkeys(("xlm", "xlnet"), _OWN),
    "cpmant": "it puts a prompt of its own before the text, and counts buckets of distances over both",
    "prophetnet": "its decoder predicts several tokens ahead, in streams that look at the keys of one another",
    "reformer": "it sorts queries and keys into chunks by their hashes, and never compares all of them",
    "deepseek_v4": "its attention sees summaries of many tokens, which have no one position, and its values are turned too",
    "mistral_large4_text": "some of its layers take the keys of others, which these have turned already",
    "qwen4_exp_text": "it chooses the keys of each query by positions of its own, which it keeps beside the KV cache",
}
