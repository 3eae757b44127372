"""CUDA devices that are simulated, to see on a CPU what a model would ask of real ones: tensors that say they are on `cuda:0` or `cuda:1`.

They hold real numbers on the CPU, which come out as right or as wrong as they are; every operation is dispatched through `Device`, which
notes what a GPU would feel. Where the host waits for the device, what is copied to it, which devices are mixed, how many kernels are
launched, how large the largest tensor is: with file and line.

    with simulated() as device:
        model.to("cuda:0")
        ids = ids.to("cuda:0")
        device.clear()
        out = model(ids).logits
    assert not device.waits and not device.mixes
    assert_close(host(out), expected)

What is noted is noted for both devices together; a copy from one to the other is a transfer, for which nobody waits.

A call of `scaled_dot_product_attention`, of flex attention or of a function from `torch.compile` is one launch, forward and backward:
which of its kernels a real GPU would choose, and whether that one can do it, is not simulated.
Nothing is left behind: the driver that PyTorch lacks on a CPU (`device_guard.cpp`, which needs g++) is in place within the block alone.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import linecache
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import reference_flex
import torch
import transformers
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import AuxOutput, BlockMask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers.integrations import flex_attention as stock_flex

from hf_posenc.attention import flex as own_flex

CUDA = torch.device("cuda:0")
DEVICES = 2
UNIQUE = {"_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "allclose", "bincount"} | UNIQUE
"""The host needs to know a number, or how large the result is."""
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
NO_KERNEL = EMPTY | {"_unsafe_view", "unsafe_split", "_local_scalar_dense"}
"""Beside the views."""
TRANSFERS = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
NO_CPU_SCALARS = {"cat", "stack", "gather", "index_select", "embedding", "mm", "bmm", "addmm", "baddbmm", "scatter", "scatter_add", "clamp"}
"""Refuse a CPU tensor even of no dimensions, which most others take for a number."""


def available() -> bool:
    """Whether a device can be simulated here: a CPU build of PyTorch, and a compiler for the guard."""
    return not torch.cuda.is_available() and torch.version.cuda is None and shutil.which("g++") is not None


def host(x: Tensor) -> Tensor:
    """The numbers of a tensor, wherever it says it is; nobody waits for them."""
    return x.host if isinstance(x, SimulatedTensor) else x


class SimulatedTensor(torch.Tensor):
    """Says it is on a device, and holds `host`, a tensor on the CPU."""

    host: Tensor
    home: Device
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor, home: Device | None = None, place: torch.device = CUDA, requires_grad: bool = False) -> Tensor:
        if home is None:  # for the type of a parameter, as which accelerate takes it
            return torch.nn.Parameter(numbers, requires_grad)
        like = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset(), "dtype": numbers.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, device=place, **like)
        self.host, self.home = numbers, home
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return next(x for x in tree_leaves((args, kwargs)) if isinstance(x, cls)).home.run(func, args, kwargs or {})

    def tolist(self):  # PyTorch reads the memory itself
        return self.cpu().tolist()

    def numpy(self, **kwargs):
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __repr__(self, **kwargs):
        return f"simulated({self.host})"


class Largest(NamedTuple):
    """The largest tensor that was made."""

    bytes: int = 0
    where: str = ""


class FlexCall(NamedTuple):
    """One call of flex attention; `blocks`: the part of all blocks of queries and keys that is looked at."""

    shape: tuple[int, int, int, int]
    score_mod: bool
    block_mask: bool
    blocks: float


class Device(TorchDispatchMode):
    """What happened on the device since `clear`.

    Attributes:
        waits: "file.py:line [operation] code" -> how often the host waited there for the device.
        copies: from host to device; a CPU tensor of no dimensions, handed to an operation that takes it for a number, is none.
        transfers: from one device to the other.
        stock_waits, stock_copies, stock_transfers: the same, where the innermost line is one of transformers.
        mixes: operations on tensors of two devices, the host or not, that CUDA would refuse.
        refused: what else a GPU would refuse.
        by_op: launches of kernels by operation; views are none.
        largest: the largest tensor made.
        sdpa: kinds of calls of `scaled_dot_product_attention`: "causal", "full", "mask bool", "mask float32", ...
        flex: calls of flex attention.
    """

    def __init__(self, compute: bool = True):
        super().__init__()
        self.compute = compute
        self.quiet: set[str] = set()  # of "launches" and "waits": what is not noted at present
        self.region: Region | None = None
        self.clear()

    def clear(self) -> None:
        self.waits: Counter[str] = Counter()
        self.stock_waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.stock_copies: Counter[str] = Counter()
        self.transfers: Counter[str] = Counter()
        self.stock_transfers: Counter[str] = Counter()
        self.mixes: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.by_op: Counter[str] = Counter()
        self.largest = Largest()
        self.sdpa: list[str] = []
        self.flex: list[FlexCall] = []

    @property
    def launches(self) -> int:
        return self.by_op.total()

    # -- every operation ----------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The result of an operation, on the device of its tensors or where it is to be made."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = [x for x in tensors if isinstance(x, SimulatedTensor)]
        target = kwargs.get("device")
        if not ours and (target is None or target.type != "cuda"):
            return func(*args, **kwargs)
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):  # in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        here = target is None or target.type == "cuda"
        place = ours[0].device if target is None else torch.device(target.type, target.index or 0)
        self._look(func, args, kwargs, tensors, ours, place)
        known = {id(_to_host(x)): x for x in tensors}

        def placed(x: Any) -> Any:
            return known[id(x)] if id(x) in known else SimulatedTensor(x, self, place) if here and isinstance(x, Tensor) else x

        made = tree_map(placed, _on_host(func, *tree_map(_to_host, args), **tree_map(_to_host, kwargs)))
        if self.region is not None:
            self.region.add(ours, made)
        moved = _op(func) in TRANSFERS and {x.device for x in tensors} != {place}
        if here and not moved:
            self._launch(func, made)
        return made

    def _look(
        self, func: OpOverload, args: tuple, kwargs: dict, tensors: list[Tensor], ours: list[SimulatedTensor], place: torch.device
    ) -> None:
        name = _op(func)
        foreign = [x for x in tensors if not isinstance(x, SimulatedTensor)]
        if name in TRANSFERS:
            into_ours = place.type == "cuda" if name == "_to_copy" else isinstance(args[0], SimulatedTensor)
            if not into_ours:
                self._wait(name)
            elif any(x.numel() for x in foreign):
                self._copy(name)
            elif any(x.device != (place if name == "_to_copy" else args[0].device) and x.numel() for x in ours):
                self._note(self.transfers, name, stock=self.stock_transfers)
            return
        if len({x.device for x in ours}) > 1:
            self._note(self.mixes, name)
        if name in INDEXING:
            indexed, index, *put = args
            chosen = [x for x in index if x is not None]
            if any(not isinstance(x, SimulatedTensor) for x in chosen) and isinstance(indexed, SimulatedTensor):
                self._copy(name)
            foreign = [x for x in (indexed, *put) if isinstance(x, Tensor) and not isinstance(x, SimulatedTensor)]
            filled = put and isinstance(put[0], Tensor) and put[0].numel() == 1 and foreign  # is a `masked_fill_`
            if not filled and any(isinstance(x, SimulatedTensor) and x.dtype in (torch.bool, torch.uint8) for x in chosen):
                self._wait(name)
        sized = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITS or sized or (name == "fill_" and ours and not isinstance(args[0], SimulatedTensor)):
            self._wait(name)
        if ours and any(x.dim() or name in NO_CPU_SCALARS or (func._schema.is_mutable and x is args[0]) for x in foreign):
            self._note(self.mixes, name)

    def _wait(self, name: str) -> None:
        self._note(self.waits, name, stock=self.stock_waits)

    def _copy(self, name: str) -> None:
        self._note(self.copies, name, stock=self.stock_copies)

    def _note(self, counter: Counter[str], what: str, stock: Counter[str] | None = None) -> None:
        if "waits" not in self.quiet:
            line, of_transformers = where(what)
            (counter if stock is None or not of_transformers else stock)[line] += 1

    def _launch(self, func: OpOverload | str, made: Any) -> None:
        outputs = [x for x in tree_leaves(made) if isinstance(x, SimulatedTensor) and x.numel()]
        view = isinstance(func, OpOverload) and _is_view(func)
        if "launches" in self.quiet or view or not outputs:
            return
        name = _op(func) if isinstance(func, OpOverload) else func
        if name not in NO_KERNEL:
            self.by_op[name] += 1
        for x in outputs:
            size = x.host.numel() * x.host.itemsize
            if size > self.largest.bytes and not (isinstance(func, OpOverload) and func._schema.is_mutable):
                shape = ",".join(map(str, x.shape))
                self.largest = Largest(size, f"{where(name)[0]} -> {str(x.dtype)[6:]} [{shape}]")

    # -- what is one kernel on a device -------------------------------------------------------------------------------

    @contextmanager
    def hushed(self, *what: str) -> Iterator[None]:
        """Without a note of `what`: "launches", "waits"."""
        before, self.quiet = self.quiet, self.quiet | set(what)
        try:
            yield
        finally:
            self.quiet = before

    def fused(self, name: str, compute: Callable[..., tuple[Tensor, ...]], *inputs: Tensor | None, hush: tuple[str, ...]) -> Any:
        """Tensors that `compute` makes of `inputs`, and of whatever else it knows, in one launch; its backward pass is another."""
        with self.hushed(*hush):
            region = Region(self, name, hush, inputs)
            results = region.run(compute)
        self._launch(name, results)
        return results

    def _sdpa(self, stock: Callable) -> Callable:
        def scaled_dot_product_attention(
            query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p=0.0, is_causal=False, **options: Any
        ) -> Tensor:
            given = [x for x in (query, key, value, attn_mask) if x is not None]
            if not any(isinstance(x, SimulatedTensor) for x in given):
                return stock(query, key, value, attn_mask, dropout_p, is_causal, **options)
            if len({x.device for x in given}) > 1:
                self._note(self.mixes, "sdpa")
            if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
                self._note(self.refused, f"sdpa: mask of {attn_mask.dtype} for a query of {query.dtype}")
            mask = None if attn_mask is None else f"mask {str(attn_mask.dtype)[6:]}"
            self.sdpa.append("causal" if is_causal else mask or "full")

            def compute(*tensors: Tensor) -> tuple[Tensor]:
                if not self.compute:
                    return (_nothing((*query.shape[:-1], value.shape[-1]), *tensors[:3]),)
                q, k, v, *masks = (x.cpu() for x in tensors)
                return (stock(q, k, v, *masks or [None], dropout_p, is_causal, **options).to(query.device),)

            return self.fused("sdpa", compute, query, key, value, attn_mask, hush=("launches", "waits"))[0]

        return scaled_dot_product_attention

    def _flex(
        self,
        owner: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        score_mod: Any,
        block_mask: Any,
        scaling: float,
        lse: bool,
        options: object = None,
    ) -> tuple[Tensor, Tensor | None]:
        shape = (*query.shape[:3], key.shape[2])
        blocks = 1.0 if block_mask is None else _density(block_mask)
        self.flex.append(FlexCall(shape, score_mod is not None, block_mask is not None, blocks))
        if len({x.device for x in (query, key, value)}) > 1:
            self._note(self.mixes, "flex_attention")
        if block_mask is not None:
            learning = any(x.requires_grad for x in (query, key, value)) and torch.is_grad_enabled()
            for problem in _problems(block_mask, query.device, learning):
                self._note(self.refused, f"flex_attention: {problem}")

        def compute(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            call = {"score_mod": score_mod, "block_mask": block_mask, "scaling": scaling, "lse": True}
            if self.compute:
                output, total = reference_flex.kernel(owner, q, k, v, **call)
                assert total is not None
                return output, total
            first = reference_flex.indices((1, 1, 1, 1), q.device)  # asked about one pair, to see what they stand on
            score = q.new_zeros(1, 1, 1, 1) if score_mod is None else score_mod(q.new_zeros(1, 1, 1, 1).float(), *first)
            if block_mask is not None:
                block_mask.mask_mod(*first)
            output = _nothing((*query.shape[:3], value.shape[-1]), q, k, v, score)
            return output, output.new_zeros(query.shape[:3], dtype=torch.float32)

        output, total = self.fused("flex_attention", compute, query, key, value, hush=("launches",))
        return output, total if lse else None

    def _own_flex(self, stock: Callable) -> Callable:
        def kernel(owner: Any, query: Tensor, *tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
            return (self._flex if isinstance(query, SimulatedTensor) else stock)(owner, query, *tensors, **options)

        return kernel

    def _stock_flex(self, stock: Callable) -> Callable:
        def compile_friendly_flex_attention(query: Tensor, key: Tensor, value: Tensor, training: bool = False, **options: Any) -> Any:
            if not isinstance(query, SimulatedTensor):
                return stock(query, key, value, training, **options)
            lse = options.get("return_aux") is not None
            given = {"score_mod": options.get("score_mod"), "block_mask": options.get("block_mask"), "scaling": options["scale"]}
            output, total = self._flex(None, query, key, value, lse=lse, **given)
            return (output, AuxOutput(lse=total)) if lse else output

        return compile_friendly_flex_attention

    def _compile(self, stock: Callable) -> Callable:
        def compile(function: Callable | None = None, **options: Any) -> Any:
            if function is None:
                return functools.partial(compile, **options)

            @functools.wraps(function)
            def compiled(*args: Any, **kwargs: Any) -> Any:
                if _active is not self:  # kept beyond the simulation
                    return stock(function, **options)(*args, **kwargs)
                with self.hushed("launches"):
                    result = function(*args, **kwargs)
                self._launch(function.__name__, result)
                return result

            return compiled

        return compile


class Region:
    """What runs as one kernel: `inputs`, and the `captured` tensors with gradients that it takes from elsewhere."""

    def __init__(self, device: Device, name: str, hush: tuple[str, ...], inputs: tuple[Tensor | None, ...]):
        self.device, self.name, self.hush = device, name, hush
        self.inputs = [x for x in inputs if x is not None]
        self.made: dict[int, Tensor] = {}
        self.captured: dict[int, Tensor] = {}

    def add(self, used: list[SimulatedTensor], made: Any) -> None:
        self.captured |= {id(x): x for x in used if x.requires_grad and id(x) not in self.made}
        self.made |= {id(x): x for x in tree_leaves(made) if isinstance(x, Tensor)}

    def run(self, compute: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return compute(*self.inputs)
        self.leaves = [x.detach().requires_grad_(x.requires_grad) for x in self.inputs]
        self.made |= {id(x): x for x in self.leaves}
        before, self.device.region = self.device.region, self
        try:
            self.results = compute(*self.leaves)
        finally:
            self.device.region = before
        self.made.clear()
        self.sources = [*self.leaves, *self.captured.values()]
        return Fused.apply(self, *self.inputs, *self.captured.values())

    def gradients(self, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        kept = [at for at, grad in enumerate(grads) if grad is not None and self.results[at].requires_grad]
        wanted = [x for x in self.sources if x.requires_grad]
        with self.device.hushed(*self.hush):
            results, given = [self.results[at] for at in kept], [grads[at] for at in kept]
            found = torch.autograd.grad(results, wanted, given, allow_unused=True, retain_graph=True)
        self.device._launch(f"{self.name} backward", found)
        by_source = dict(zip(map(id, wanted), found, strict=True))
        return [by_source.get(id(x)) for x in self.sources]


class Fused(torch.autograd.Function):
    """Lets the graph outside see a region as one node."""

    @staticmethod
    def forward(ctx: Any, region: Region, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.region = region
        ctx.set_materialize_grads(False)
        return tuple(x.detach() for x in region.results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.region.gradients(grads)


def _nothing(shape: tuple[int, ...], *inputs: Tensor) -> Tensor:
    """Zeros that have gradients, zeros too."""
    return inputs[0].new_zeros(shape) + sum(x.nan_to_num().sum() * 0 for x in inputs).to(inputs[0].dtype)


def _density(mask: BlockMask) -> float:
    listed = sum(int(host(x).sum()) for x in (mask.kv_num_blocks, mask.full_kv_num_blocks) if x is not None)
    rows, columns = (-(-length // size) for length, size in zip(mask.seq_lengths, mask.BLOCK_SIZE, strict=True))
    return listed / (mask.kv_num_blocks.shape[:2].numel() * rows * columns)


def _problems(mask: BlockMask, place: torch.device, backward: bool) -> Iterator[str]:
    """What is wrong with the lists of blocks."""
    named = {name: getattr(mask, name) for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")}
    yield from (f"{name} on {x.device}" for name, x in named.items() if x is not None and x.device != place)
    if mask.q_num_blocks is None:
        if backward:
            yield "a backward pass without q_num_blocks"
        return
    rows, columns = (-(-length // size) for length, size in zip(mask.seq_lengths, mask.BLOCK_SIZE, strict=True))
    for full in ("", "full_"):
        lists = [getattr(mask, full + name) for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices")]
        if lists[0] is not None and lists[2] is not None:
            kv_count, kv, q_count, q = map(host, lists)
            if not torch.equal(reference_flex.blocks(kv_count, kv, columns), reference_flex.blocks(q_count, q, rows).mT):
                yield f"{full}q_indices are not {full}kv_indices, transposed"


# -- operations and places --------------------------------------------------------------------------------------------


def _op(func: OpOverload) -> str:
    return func._schema.name.removeprefix("aten::")


def _on_host(func: OpOverload, *args: Any, **kwargs: Any) -> Any:
    if _op(func) == "histc" and not args[0].is_floating_point():  # counts whole numbers on a GPU alone
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


@functools.cache
def _is_view(func: OpOverload) -> bool:
    aliases = [x.alias_info for x in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _to_host(x: Any) -> Any:
    if isinstance(x, SimulatedTensor):
        return x.host
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "cuda" else x


TRANSFORMERS = os.path.dirname(transformers.__file__) + os.sep
LIBRARIES = (os.path.dirname(torch.__file__) + os.sep, sysconfig.get_path("stdlib") + os.sep, __file__, reference_flex.__file__, "<")


def where(what: str) -> tuple[str, bool]:
    """The innermost line outside PyTorch and Python that asked for it, as "package/file.py:line [what] code"; whether transformers did."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_library(frame.f_code.co_filename):
        frame = frame.f_back
    path, number = frame.f_code.co_filename, frame.f_lineno
    parts = Path(path).parts
    package = next((at for at, part in enumerate(parts) if part in ("hf_posenc", "transformers")), len(parts) - 1)
    return f"{'/'.join(parts[package:])}:{number} [{what}] {linecache.getline(path, number).strip()}", path.startswith(TRANSFORMERS)


@functools.cache
def _is_library(path: str) -> bool:
    return path.startswith(LIBRARIES) and (not path.startswith(LIBRARIES[1]) or "site-packages" not in path)


# -- the block --------------------------------------------------------------------------------------------------------

_active: Device | None = None


@contextmanager
def simulated(compute: bool = True, free: int = 1 << 33) -> Iterator[Device]:
    """Simulated devices within the block. Tensors that are left on it hold their numbers beyond it (`host`).

    Args:
        compute: False lets attention kernels give zeros at once, to look at launches and sizes at lengths that a CPU has no time for.
        free: bytes of memory that the device says it has left.
    """
    global _active
    device = Device(compute)
    with ExitStack() as stack:
        _pretend()(True)
        stack.callback(_pretend(), False)
        # Parameters change in place, those that are tied too; numbers from Python are copied to the device after they are a tensor.
        _flag(stack, torch.__future__.get_swap_module_params_on_conversion, torch.__future__.set_swap_module_params_on_conversion)
        _flag(stack, torch._C._only_lift_cpu_tensors, torch._C._set_only_lift_cpu_tensors)
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # lines of Python, and no thread for the device
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        functional = torch.nn.functional
        replaced = [
            (functional, "scaled_dot_product_attention", device._sdpa(functional.scaled_dot_product_attention)),
            (torch, "compile", device._compile(torch.compile)),
            (stock_flex, "compile_friendly_flex_attention", device._stock_flex(stock_flex.compile_friendly_flex_attention)),
            (own_flex, "kernel", device._own_flex(own_flex.kernel)),
            (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
            (torch.cuda, "mem_get_info", lambda *_: (free, free)),
            (torch.cuda, "memory_reserved", lambda *_: 0),
            (torch.cuda, "memory_allocated", lambda *_: 0),
            (torch.cuda, "device_count", lambda: DEVICES),
            (torch.cuda, "get_device_name", lambda *_: "simulated"),
        ]
        for owner, name, function in replaced:
            stack.enter_context(mock.patch.object(owner, name, function))
        before, _active = _active, device
        try:
            with device:
                yield device
        finally:
            _active = before


def _flag(stack: ExitStack, get: Callable[[], bool], set: Callable[[bool], None]) -> None:
    stack.callback(set, get())
    set(True)


@functools.cache
def _pretend() -> Callable[[bool], None]:
    """Switches the guard for the device type CUDA on and off; built when first asked for."""
    source = Path(__file__).with_name("device_guard.cpp")
    version = hashlib.sha256(source.read_bytes() + torch.__version__.encode() + torch.__file__.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"device_guard_{os.getuid()}_{version}.so"
    if not library.exists():
        root = Path(torch.__file__).parent
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder, library.name)
            command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
            command += [f"-I{root}/include", str(source), "-o", str(built), f"-L{root}/lib", "-lc10", "-ltorch_cpu", "-ltorch_python"]
            subprocess.run(command, check=True)
            shutil.copy(built, f"{library}.{os.getpid()}")
        os.replace(f"{library}.{os.getpid()}", library)
    pretend = ctypes.CDLL(str(library)).pretend
    pretend.argtypes, pretend.restype = [ctypes.c_bool], None
    return pretend
