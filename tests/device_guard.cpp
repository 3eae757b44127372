// What a CPU build of PyTorch lacks to let tensors say that they are on one of two CUDA devices, to be put in and taken out: a guard that
// does nothing, and the news that there are such devices, without which the backward pass does not start.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/device_lazy_init.h>

#include <cstring>
#include <utility>

namespace {

constexpr auto CUDA = c10::DeviceType::CUDA;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  c10::Device getDevice() const override { return {CUDA, 0}; } // "cuda" means "cuda:0"
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Stream getStream(c10::Device device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, stream.device()); }
  c10::DeviceIndex deviceCount() const noexcept override { return 2; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {} // one stream for another: the backward pass goes from device to device
};

struct Hooks final : at::CUDAHooksInterface {
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 2; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

const Guard guard;
Hooks hooks;
bool pretending = false;

// PyTorch asks one object for ever, which has no data: it takes on our functions by its pointer to them, and gets its own back.
void exchange_functions() {
  void* theirs = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  void* ours = &hooks;
  void* functions[2];
  std::memcpy(&functions[0], theirs, sizeof(void*));
  std::memcpy(&functions[1], ours, sizeof(void*));
  std::memcpy(theirs, &functions[1], sizeof(void*));
  std::memcpy(ours, &functions[0], sizeof(void*));
}

} // namespace

extern "C" void pretend(bool on) {
  if (std::exchange(pretending, on) == on) return;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(CUDA)].store(on ? &guard : nullptr);
  torch::utils::set_requires_device_init(CUDA, !on);
  exchange_functions();
}
