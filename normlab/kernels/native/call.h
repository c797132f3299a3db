// What every call has that leads from torch to a compiled kernel: a job, its memory and its threads.
//
// The kernels are those of `normlab.kernels.cpu`: C functions of the address of a job, a list of int64 in which a call
// fills in where its tensors lie (`normlab.kernels.runtime.job`). What is ordinary is decided with what is here; the
// rest is left to Python.

#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>

namespace {

namespace py = pybind11;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Direction = void (*)(int64_t);
using Numbers = std::vector<int64_t>;
using Places = std::unordered_map<std::string, int64_t>;

// Where numbers stand that every job has, and what is the same in all of them.
struct Shared {
  int64_t helpers, shares, control, parallel, number;
  int64_t line, counters, grain;
};
Shared shared_;

void set_up(const Places& places) {
  auto put = [&](const char* name, int64_t& to) { to = places.at(name); };
  put("HELPERS", shared_.helpers), put("SHARES", shared_.shares), put("CONTROL", shared_.control);
  put("PARALLEL", shared_.parallel), put("NUMBER", shared_.number);
  put("line", shared_.line), put("counters", shared_.counters), put("grain", shared_.grain);
}

// One direction, as far as it is the same in every call of a plan.
struct Job {
  py::function prepare;  // returns (numbers, address of the direction)
  Numbers numbers;
  std::atomic<Direction> direction = nullptr;  // stored last: whoever loads one may read the numbers

  bool is_prepared() const { return direction.load(std::memory_order_acquire) != nullptr; }

  // Several threads may come here at once. Python changes hands within the call, but not after it: one of them stores.
  void be_prepared() {
    if (is_prepared()) return;
    py::gil_scoped_acquire lock;
    auto [found, address] = prepare().cast<std::pair<Numbers, int64_t>>();
    if (is_prepared()) return;
    numbers = std::move(found);
    direction.store(reinterpret_cast<Direction>(address), std::memory_order_release);
  }
};

// What is the same in every call with one kind of input.
struct Plan {
  int64_t elements = 0;
  int64_t parallel = 0, number = 0;  // addresses of GOMP_parallel and omp_get_thread_num, or 0
};

// Objects of Python may only be let go by who holds its lock, and not after its end.
template <typename T>
std::shared_ptr<T> owned(T* object) {
  return std::shared_ptr<T>(object, [](T* p) {
    if (Py_IsInitialized()) {
      py::gil_scoped_acquire lock;
      delete p;
    }
  });
}

int64_t bits(double number) {
  int64_t found;
  std::memcpy(&found, &number, sizeof found);
  return found;
}

int64_t address(const Tensor& v) { return reinterpret_cast<int64_t>(v.const_data_ptr()); }

// Where a kernel writes: a tensor that shares its memory until one of the two is changed is given its own here.
int64_t written(const Tensor& v) { return reinterpret_cast<int64_t>(v.mutable_data_ptr()); }

// Elements that stand in memory, which a tensor whose storage was freed has none of, nor torch's tensors of mere zeros.
bool is_allocated(const Tensor& v) { return v.has_storage() && (v.const_data_ptr() != nullptr || v.numel() == 0); }

// Memory of this process that belongs to the tensor itself.
bool is_plain(const Tensor& v) {
  return v.defined() && v.device().is_cpu() && v.layout() == at::kStrided && !v.is_neg() &&
         !v.unsafeGetTensorImpl()->is_python_dispatch() &&
         !v.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Batched) && is_allocated(v);
}

bool is_like(const Tensor& v, const Tensor& x) {
  return is_plain(v) && v.scalar_type() == x.scalar_type() && v.sizes() == x.sizes();
}

// What came out of saved-tensor hooks as the kernels read it: in one piece, and in the dtype in which it went in.
Tensor as_kept(const Tensor& found, int64_t count, at::ScalarType dtype) {
  TORCH_CHECK(found.dim() == 1 && found.numel() == count && found.device().is_cpu(), "a saved tensor of shape (", count,
              ",) on cpu was unpacked with shape ", found.sizes(), " on ", found.device(),
              "; the hooks of torch.autograd.graph.saved_tensors_hooks are to return what they were given");
  TORCH_CHECK(!found.has_storage() || is_allocated(found),
              "The tensor has a non-zero number of elements, but its data is not allocated yet: what a layer has saved");
  return found.scalar_type() == dtype && found.is_contiguous() ? found : found.to(dtype).contiguous();
}

// Whether a backward pass is to be differentiated itself, or is transformed.
bool is_followed() {
  return at::GradMode::is_enabled() ||
         c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

const pid_t process = getpid();

// How many threads of torch's join; -1 where only Python can call them.
int64_t helpers_for(const Plan& plan) {
  if (plan.elements < shared_.grain) return 0;
  int64_t helpers = at::get_num_threads() - 1;
  return helpers > 0 && (plan.parallel == 0 || getpid() != process) ? -1 : std::max<int64_t>(helpers, 0);
}

void run(const Plan& plan, const Job& prepared, Numbers& job, int64_t helpers) {
  Numbers counters((1 + helpers) * shared_.line + shared_.counters);
  if (helpers > 0) {
    job[shared_.parallel] = plan.parallel;
    job[shared_.number] = plan.number;
  }
  job[shared_.helpers] = helpers;
  job[shared_.shares] = reinterpret_cast<int64_t>(counters.data());
  job[shared_.control] = reinterpret_cast<int64_t>(counters.data() + (1 + helpers) * shared_.line);
  prepared.direction.load(std::memory_order_acquire)(reinterpret_cast<int64_t>(job.data()));
}

// Gradients as Python returned them, None where there is none, and none for the state, the last argument of the node.
variable_list gradients_from(const py::object& returned) {
  variable_list all;
  for (auto& v : returned.cast<std::vector<std::optional<Tensor>>>()) all.push_back(v.value_or(Tensor()));
  all.emplace_back();
  return all;
}

// Compiled autograd records what a node keeps, and what these keep cannot be recorded.
void refuse_compiled_autograd() {
  TORCH_CHECK(false,
              "normlab: compiled autograd cannot follow layers that are called through C++; call them within "
              "`with normlab.use_backend(\"numba_cpu\"):`");
}

}  // namespace
