"""What makes the host wait for an accelerator, told from the functions that are called."""

from torch.overrides import TorchFunctionMode

LOOKS = {"item", "tolist", "numpy", "nonzero", "cpu", *(f"__{kind}__" for kind in ("int", "float", "bool", "index"))}
COPIES = {"tensor", "as_tensor", "from_numpy"}


class Calls(TorchFunctionMode):
    """Names of the functions of torch that were called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))

    def count(self, names):
        return sum(name in names for name in self.names)
