"""hf_posenc: swap the positional encoding of a Hugging Face decoder in one line, undo it, save it and load it again.

Nothing is imported before it is used. The public names stand in `__init__.pyi`, where type checkers read them too.
"""

import lazy_loader
import wrapt

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# The Auto classes learn to load our checkpoints, and PEFT our adapters, as soon as both packages are there, whichever was imported first.
wrapt.register_post_import_hook("hf_posenc.auto:register_configuration", "transformers.models.auto.configuration_auto")
wrapt.register_post_import_hook("hf_posenc.auto:register_loaders", "transformers.models.auto.modeling_auto")
wrapt.register_post_import_hook("hf_posenc.auto:register_adapters", "peft.mapping")
