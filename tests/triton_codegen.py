"""The CUDA kernels that inductor and Triton make of a function, on a machine without a GPU.

A process of its own runs the function on fake tensors that say they are on `cuda`. Every `torch.compile` in it goes the whole way:
guards, autograd, lowering, Triton source and, from that, machine code by the assembler that Triton ships. Nothing is launched: a
compiled graph answers with fake tensors. Written for torch 2.13; needs Triton and g++.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SHARED = {80: 166912, 90: 232448}
"""Bytes of shared memory that a block may use, by compute capability: A100 and H100."""
PROCESSORS = {80: 108, 90: 132}

# torch looks for the hooks by the name of their class, when it is imported; autograd asks the guard for streams and events.
DEVICE = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace at {
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
};
REGISTER_CUDA_HOOKS(CUDAHooks);
}
const c10::Device device(c10::DeviceType::CUDA, 0);
const c10::Stream stream(c10::Stream::DEFAULT, device);
struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device getDevice() const override { return device; }
  c10::Device exchangeDevice(c10::Device) const override { return device; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};
static Guard guard;
static c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);
"""


@dataclass
class Kernel:
    """One Triton kernel in one configuration; with `binaries=False` only its name and source."""

    name: str
    source: str
    ptx: str = ""
    shared: int = 0
    """Bytes of shared memory of a block."""
    registers: int = 0
    """Of a thread, of 255."""
    stack: int = 0
    """Bytes of a thread in local memory, nearly all of them registers that were spilled."""


@dataclass
class Compiled:
    """What one run of a function compiled."""

    graphs: int = 0
    """Graphs that inductor was given: one for a forward pass, one for its backward pass, and as many again for each recompilation."""
    kernels: list[Kernel] = field(default_factory=list)

    @property
    def attention(self) -> list[Kernel]:
        """The kernels made from the templates of flex attention; the others are sums, products and fills around them."""
        return [kernel for kernel in self.kernels if "_tem_" in kernel.name]


def compiled(function: Callable[..., Any], *, capability: int = 90, binaries: bool = True, **arguments: Any) -> Compiled:
    """Run `function(**arguments)` of a module in the directory of the tests, which makes its tensors with `device="cuda"`."""
    name = [str(function.__module__).rpartition(".")[2], function.__qualname__]
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        request.write_text(json.dumps([*name, capability, binaries, arguments]))
        env = {**os.environ, "TRITON_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
        command = [sys.executable, __file__, _device(), str(request), str(answer)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        found = json.loads(answer.read_text())
    return Compiled(found["graphs"], [Kernel(**kernel) for kernel in found["kernels"]])


@functools.cache
def _device() -> str:
    """A library that makes torch believe in a CUDA device; to be loaded before torch is imported."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    root, library = Path(spec.origin).parent, Path(tempfile.mkdtemp(), "device.so")
    flags = ["-std=c++20", "-shared", "-fPIC", f"-I{root}/include", f"-L{root}/lib", f"-Wl,-rpath,{root}/lib"]
    subprocess.run(["g++", "-x", "c++", "-", "-o", str(library), *flags, "-lc10", "-ltorch_cpu"], input=DEVICE, text=True, check=True)
    return str(library)


def _pretend(capability: int, found: Compiled, binaries: bool) -> None:
    """Stand in for the CUDA parts of torch and Triton that a CPU build lacks, and keep what is compiled."""
    import torch
    import torch._dynamo
    import torch._inductor.async_compile as async_compile
    import torch._inductor.compile_fx as compile_fx
    import torch._inductor.fx_passes.joint_graph as joint_graph
    import torch._inductor.kernel.flex.common as flex
    import triton
    from torch._inductor import config
    from torch._inductor.codecache import _load_triton_kernel_from_source
    from torch._inductor.fx_passes import post_grad, pre_grad
    from torch._inductor.runtime import triton_helpers
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
    from torch.fx.experimental import proxy_tensor
    from triton.backends.compiler import GPUTarget

    properties = SimpleNamespace(
        name="none",
        gcnArchName="",
        major=capability // 10,
        minor=capability % 10,
        multi_processor_count=PROCESSORS[capability],
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        total_memory=80 << 30,
        L2_cache_size=40 << 20,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=SHARED[capability],
    )
    seed = torch.get_rng_state()
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 0,
        utils=SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": SHARED[capability]}),
    )
    for place, name, value in (
        (torch._dynamo.config, "fail_on_recompile_limit_hit", True),
        (config, "force_disable_caches", True),
        (config, "compile_threads", 1),
        (config, "use_static_triton_launcher", False),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "get_rng_state", lambda *_: seed),
        (torch.cuda, "set_rng_state", lambda *_: None),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "is_current_stream_capturing", lambda: False),
        (torch.cuda, "current_stream", lambda *_: SimpleNamespace(stream_id=0, device_index=0, cuda_stream=0)),
        (torch.cuda, "_get_device_properties", lambda device: properties),
        (torch.cuda, "_exchange_device", lambda device: 0),
        (torch.cuda, "_maybe_exchange_device", lambda device: 0),
        (torch._C, "_cuda_getDevice", lambda: 0),
        (torch._C, "_cuda_getCurrentRawStream", lambda device: 0),
        (triton.runtime.driver, "_active", driver),
        (triton_helpers, "set_driver_to_gpu", lambda: None),
        # Constants and the examples of patterns would be computed on the device.
        (joint_graph.UniformValueConstantFolder, "_add_peephole_patterns", lambda self: None),
        (FakeTensorMode, "avoid_device_init", True),
        (proxy_tensor, "CONSTANT_NUMEL_LIMIT", 0),
        *((module, "lazy_init", lambda *_: None) for module in (joint_graph, pre_grad, post_grad)),
    ):
        setattr(place, name, value)

    folder, deduce = joint_graph.UniformValueConstantFolder, joint_graph.UniformValueConstantFolder._deduce_value

    def deduce_on_cpu(self, node):
        """The value of a constant, without the device."""
        if node.target is torch.ops.prims.device_put.default:
            return self.env[node.args[0]]
        kwargs = node.kwargs
        if kwargs.get("device") is not None:
            node.kwargs = {**kwargs, "device": torch.device("cpu")}
        try:
            return deduce(self, node)
        finally:
            node.kwargs = kwargs

    folder._deduce_value = deduce_on_cpu  # type: ignore[method-assign]
    build = flex.build_subgraph_module_buffer

    def build_what_is_used(args, module):
        """Without the constants that were folded."""
        module.graph.eliminate_dead_code()
        return build(args, module)

    flex.build_subgraph_module_buffer = build_what_is_used
    outer, inner = compile_fx.compile_fx, compile_fx.compile_fx_inner

    def compile_and_run_fake(module, inputs, **options):
        with unset_fake_temporarily():
            fake = copy.deepcopy(module)
        found.graphs += 1
        inner(module, inputs, **options)

        def run(args):
            return fake(*args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    compile_fx.compile_fx = functools.partial(outer, inner_compile=compile_and_run_fake)

    def keep(self, name, source, device_str="cuda"):
        if not binaries:
            found.kernels.append(Kernel(name, source))
            return None
        tuner = _load_triton_kernel_from_source(name, source)
        for choice in tuner.configs:
            binary = tuner._precompile_config(choice).kernel
            found.kernels.append(Kernel(name, source, binary.asm["ptx"], binary.metadata.shared, *_resources(binary.asm["cubin"])))
        return None

    async_compile.AsyncCompile.triton = keep  # type: ignore[method-assign,assignment]


def _resources(binary: bytes) -> tuple[int, int]:
    """Registers and stack of a thread."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"{word}:(\d+)", text)[1]) for word in ("REG", "STACK"))  # type: ignore[return-value,index]


def _main(library: str, request: str, answer: str) -> None:
    ctypes.CDLL(library)
    module, function, capability, binaries, arguments = json.loads(Path(request).read_text())

    from torch._subclasses.fake_tensor import FakeTensorMode

    found = Compiled()
    _pretend(capability, found, binaries)
    call: Any = functools.reduce(getattr, function.split("."), importlib.import_module(module))
    with FakeTensorMode(allow_non_fake_inputs=True):
        call(**arguments)
    Path(answer).write_text(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
