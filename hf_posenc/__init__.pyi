from . import architectures as architectures
from . import encodings as encodings
from . import evaluation as evaluation
from . import exporting as exporting
from . import inspection as inspection
from . import patching as patching
from . import plotting as plotting
from . import showing as showing
from . import training as training
from .catalogue import describe as describe
from .catalogue import list_encodings as list_encodings
from .catalogue import list_mixes as list_mixes
from .catalogue import list_model_types as list_model_types
from .encodings import Geometry as Geometry
from .encodings import PositionalEncoding as PositionalEncoding
from .encodings import Region as Region
from .encodings import create as create
from .encodings import register as register
from .evaluation import perplexity as perplexity
from .exporting import export as export
from .inspection import inspect as inspect
from .metrics import metric_path as metric_path
from .patching import patch as patch
from .patching import patched as patched
from .patching import unpatch as unpatch
from .showing import show as show

__version__: str
