"""Which encoding takes a model to a length without training: measured on the model itself, within a budget of time."""

from .recommendation import Recommendation as Recommendation
from .verb import recommend as recommend
