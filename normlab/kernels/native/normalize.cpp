// A layer's forward and backward pass as torch's C++ sees them: a node of autograd that calls the compiled kernels.
//
// The kernels are those of `normlab.kernels.cpu`: C functions of the address of a job, a list of int64 in which a call
// fills in where its tensors lie (`normlab.kernels.runtime.job`). What is filled in here is what `cpu/planes.py` fills
// in. Whatever is not ordinary is left to Python: `normalize` returns None, and the node calls a function that it has.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
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
using Pair = std::pair<Tensor, Tensor>;
using Update = std::tuple<Tensor, Tensor, double>;

// Where the numbers of a job stand, and what is the same in every job.
struct Constants {
  int64_t x, g, y, residual, to_residual, memory, eps, tiny, helpers, shares, control, parallel, number;
  int64_t running_mean, running_var, running_bytes, momentum;
  int64_t line, counters, grain;
};
Constants at_;

struct Job {
  std::vector<int64_t> numbers;
  std::atomic<Direction> direction = nullptr;  // stored last: whoever loads one may read the numbers
};

// What is the same in every call with one recipe, shape, layout and activation.
struct Plan {
  Job forward, backward;
  int64_t memory, channels, elements;
  bool last, has_act;
  py::function prepare_backward;  // returns (numbers, direction, address of GOMP_parallel, omp_get_thread_num)
  int64_t parallel = 0, number = 0;
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

// What the node hands to Python where it does not compute itself.
struct Context {
  py::object call;
  py::function pull_back;
};

int64_t bits(double number) {
  int64_t found;
  std::memcpy(&found, &number, sizeof found);
  return found;
}

int64_t address(const Tensor& v) { return reinterpret_cast<int64_t>(v.const_data_ptr()); }

// Where a kernel writes: a tensor that shares its memory until one of the two is changed is given its own here.
int64_t written(const Tensor& v) { return reinterpret_cast<int64_t>(v.mutable_data_ptr()); }

// Memory of this process that belongs to the tensor itself.
bool is_plain(const Tensor& v) {
  return v.defined() && v.device().is_cpu() && v.layout() == at::kStrided && !v.is_neg() &&
         !v.unsafeGetTensorImpl()->is_python_dispatch() && !v.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Batched);
}

bool is_real(const Tensor& v) { return v.scalar_type() == at::kFloat || v.scalar_type() == at::kDouble; }

bool is_readable(const Tensor& v) { return is_real(v) && v.is_contiguous(); }

Tensor readable(const Tensor& v) { return is_readable(v) ? v : v.to(at::kDouble).contiguous(); }

// The tensor itself if it is dense in the layout, else a copy that is.
Tensor dense(const Tensor& v, bool last) {
  if (!last || v.dim() < 3) return v.contiguous();
  if (v.dim() == 4 && v.is_contiguous(at::MemoryFormat::ChannelsLast)) return v;
  Tensor moved = v.movedim(1, -1);
  return moved.is_contiguous() ? v : moved.contiguous().movedim(-1, 1);
}

int64_t version(const Tensor& v) { return v.is_inference() ? 0 : static_cast<int64_t>(v._version()); }

// Kernels write where torch does not see it; tensors of inference mode have no count.
void count_change(const Tensor& v) {
  if (!v.is_inference()) v.unsafeGetTensorImpl()->bump_version();
}

void place(std::vector<int64_t>& job, const Tensor& v, int64_t at) {
  job.insert(job.end(), {at, static_cast<int64_t>(v.itemsize()), v.numel()});
}

const pid_t process = getpid();

// How many threads of torch's join; -1 where only Python can call them.
int64_t helpers_for(const Plan& plan) {
  if (plan.elements < at_.grain) return 0;
  int64_t helpers = at::get_num_threads() - 1;
  return helpers > 0 && (plan.parallel == 0 || getpid() != process) ? -1 : std::max<int64_t>(helpers, 0);
}

void run(const Plan& plan, const Job& prepared, std::vector<int64_t>& job, int64_t helpers) {
  std::vector<int64_t> counters((1 + helpers) * at_.line + at_.counters);
  if (helpers > 0) {
    job[at_.parallel] = plan.parallel;
    job[at_.number] = plan.number;
  }
  job[at_.helpers] = helpers;
  job[at_.shares] = reinterpret_cast<int64_t>(counters.data());
  job[at_.control] = reinterpret_cast<int64_t>(counters.data() + (1 + helpers) * at_.line);
  prepared.direction.load(std::memory_order_acquire)(reinterpret_cast<int64_t>(job.data()));
}

void begin(std::vector<int64_t>& job, const Tensor& x, const Tensor& y, int64_t memory, double eps, double tiny) {
  job[at_.x] = address(x);
  job[at_.y] = written(y);
  job[at_.memory] = memory;
  job[at_.eps] = bits(eps);
  job[at_.tiny] = bits(tiny);
}

// What a call has beside tensors with gradients.
struct State : public torch::CustomClassHolder {
  std::shared_ptr<Plan> plan;
  std::shared_ptr<Context> context;
  std::optional<Pair> running;
  std::optional<Update> update;
  std::vector<int64_t> versions;  // of the running statistics that stand in for the batch's
  double eps = 0, tiny = 0;
  int64_t helpers = 0;
  bool has_residual = false;
};

// Several threads may come here at once. Python changes hands within the call, but not after it: one of them stores.
void prepare_backward(Plan& plan) {
  py::gil_scoped_acquire lock;
  if (plan.backward.direction.load(std::memory_order_acquire) != nullptr) return;
  auto [numbers, direction] = plan.prepare_backward().cast<std::pair<std::vector<int64_t>, int64_t>>();
  if (plan.backward.direction.load(std::memory_order_acquire) != nullptr) return;
  plan.backward.numbers = std::move(numbers);
  plan.backward.direction.store(reinterpret_cast<Direction>(direction), std::memory_order_release);
}

bool is_vector(const Tensor& v, const Plan& plan) {
  return is_plain(v) && v.dim() == 1 && (v.numel() == plan.channels || v.numel() == 1);
}

bool is_like(const Tensor& v, const Tensor& x) {
  return is_plain(v) && v.scalar_type() == x.scalar_type() && v.sizes() == x.sizes();
}

struct Normalize : public torch::autograd::Function<Normalize> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& residual,
                        at::TensorList params, const c10::intrusive_ptr<State>& state) {
    const Plan& plan = *state->plan;
    Tensor y = at::empty_like(x);
    Tensor memory = at::zeros({plan.memory}, x.options().dtype(at::kDouble));
    std::vector<int64_t> job;
    job.reserve(plan.forward.numbers.size() + 3 * (2 + params.size()));
    job = plan.forward.numbers;
    begin(job, x, y, written(memory), state->eps, state->tiny);
    Tensor added;
    if (residual) {
      added = dense(*residual, plan.last);
      job[at_.residual] = address(added);
    }
    if (state->running) {
      for (const Tensor& v : {state->running->first, state->running->second}) place(job, v, address(v));
      state->versions = {version(state->running->first), version(state->running->second)};
    } else {
      job.insert(job.end(), 6, 0);
    }
    variable_list converted;
    for (const Tensor& p : params) {
      converted.push_back(readable(p));
      place(job, converted.back(), address(converted.back()));
    }
    if (state->update) {
      const auto& [mean, var, momentum] = *state->update;
      job[at_.running_mean] = written(mean);
      job[at_.running_var] = written(var);
      job[at_.running_bytes] = static_cast<int64_t>(mean.itemsize());
      job[at_.momentum] = bits(momentum);
    }
    {
      py::gil_scoped_release unlocked;
      run(plan, plan.forward, job, state->helpers);
    }
    if (state->update) {
      count_change(std::get<0>(*state->update));
      count_change(std::get<1>(*state->update));
    }
    state->has_residual = residual.has_value();
    variable_list saved{x, memory};
    if (residual && plan.has_act) saved.push_back(*residual);
    saved.insert(saved.end(), params.begin(), params.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["state"] = c10::IValue::make_capsule(state);
    state->update.reset();
    state->running.reset();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto state = c10::static_intrusive_pointer_cast<State>(ctx->saved_data["state"].toCapsule());
    Plan& plan = *state->plan;
    variable_list params = ctx->get_saved_variables();
    Tensor dy = std::move(grads[0]), x = params[0], memory = params[1], residual;
    size_t others = 2;
    if (state->has_residual && plan.has_act) residual = params[others++];
    params.erase(params.begin(), params.begin() + others);
    int64_t helpers = helpers_for(plan);
    if (at::GradMode::is_enabled() || helpers < 0 || !is_ordinary(plan, dy, x, residual, memory, params))
      return in_python(*state, dy, x, residual, memory, params);
    if (plan.backward.direction.load(std::memory_order_acquire) == nullptr) prepare_backward(plan);

    x = dense(x, plan.last);
    dy = dense(dy, plan.last);
    std::vector<int64_t> job;
    job.reserve(plan.backward.numbers.size() + 3 * params.size());
    job = plan.backward.numbers;
    Tensor dx = at::empty_like(x), to_residual;
    begin(job, x, dx, address(memory), state->eps, state->tiny);
    job[at_.g] = address(dy);
    if (residual.defined()) {
      residual = dense(residual, plan.last);
      to_residual = at::empty_like(x);
      job[at_.residual] = address(residual);
      job[at_.to_residual] = written(to_residual);
    } else if (state->has_residual) {
      to_residual = dy;
    }
    variable_list found{dx, to_residual};
    for (const Tensor& p : params) {
      found.push_back(is_readable(p) ? at::empty_like(p) : at::empty(p.sizes(), p.options().dtype(at::kDouble)));
      place(job, found.back(), written(found.back()));
    }
    run(plan, plan.backward, job, helpers);
    for (size_t i = 0; i < params.size(); ++i) found[2 + i] = found[2 + i].to(params[i].scalar_type());
    found.emplace_back();  // of the state
    return found;
  }

 private:
  static bool is_ordinary(const Plan& plan, const Tensor& dy, const Tensor& x, const Tensor& residual,
                          const Tensor& memory, const variable_list& params) {
    if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) return false;
    if (!is_plain(x) || x.numel() != plan.elements || x.size(1) != plan.channels || !is_like(dy, x)) return false;
    if (residual.defined() && !is_like(residual, x)) return false;
    if (!is_plain(memory) || memory.numel() != plan.memory || memory.scalar_type() != at::kDouble) return false;
    if (!memory.is_contiguous()) return false;
    for (const Tensor& p : params)
      if (!is_vector(p, plan)) return false;
    return true;
  }

  static variable_list in_python(const State& state, const Tensor& dy, const Tensor& x, const Tensor& residual,
                                 const Tensor& memory, const variable_list& params) {
    py::gil_scoped_acquire lock;
    py::object given = residual.defined() ? py::cast(residual) : py::none();
    auto found =
        state.context->pull_back(state.context->call, state.has_residual, state.versions, memory, dy, x, given, params)
            .cast<std::vector<std::optional<Tensor>>>();
    variable_list all;
    for (auto& v : found) all.push_back(v.value_or(Tensor()));
    all.emplace_back();
    return all;
  }
};

}  // namespace

// Compiled autograd records what a node keeps, and what this one keeps cannot be recorded.
template <>
void torch::autograd::CppNode<Normalize>::compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const {
  TORCH_CHECK(false,
              "normlab: compiled autograd cannot follow layers that are called through C++; call them within "
              "`with normlab.use_backend(\"numba_cpu\"):`");
}

namespace {

// y = act(norm(x) + residual) for x dense in the plan's layout, with its place in autograd's graph; or None.
std::optional<Tensor> normalize(const std::shared_ptr<Plan>& plan, const Tensor& x,
                                const std::optional<Tensor>& residual, const variable_list& params,
                                const std::optional<Pair>& running, const std::optional<Update>& update, double eps, double tiny,
                                const py::object& call, const py::function& pull_back) {
  int64_t helpers = helpers_for(*plan);
  if (helpers < 0 || !is_plain(x) || (residual && !is_like(*residual, x))) return std::nullopt;
  for (const Tensor& p : params)
    if (!is_vector(p, *plan)) return std::nullopt;
  auto fits = [&](const Tensor& v) { return is_vector(v, *plan) && is_readable(v) && v.numel() == plan->channels; };
  if (running && !(fits(running->first) && fits(running->second))) return std::nullopt;
  if (update) {
    const auto& [mean, var, _] = *update;
    if (!fits(mean) || !fits(var) || mean.scalar_type() != var.scalar_type()) return std::nullopt;
  }
  auto state = c10::make_intrusive<State>();
  state->plan = plan;
  state->context = owned(new Context{call, pull_back});
  state->running = running;
  state->update = update;
  state->eps = eps;
  state->tiny = tiny;
  state->helpers = helpers;
  return Normalize::apply(x, residual, at::TensorList(params), state);
}

std::shared_ptr<Plan> make_plan(std::vector<int64_t> numbers, int64_t direction, int64_t memory, int64_t channels,
                                int64_t elements, bool last, bool has_act, py::function prepare_backward,
                                std::pair<int64_t, int64_t> team) {
  auto plan = owned(new Plan());
  plan->forward.numbers = std::move(numbers);
  plan->forward.direction = reinterpret_cast<Direction>(direction);
  plan->memory = memory;
  plan->channels = channels;
  plan->elements = elements;
  plan->last = last;
  plan->has_act = has_act;
  plan->prepare_backward = std::move(prepare_backward);
  std::tie(plan->parallel, plan->number) = team;
  return plan;
}

void set_up(const std::unordered_map<std::string, int64_t>& places) {
  auto put = [&](const char* name, int64_t& to) { to = places.at(name); };
  put("X", at_.x), put("G", at_.g), put("Y", at_.y);
  put("RESIDUAL", at_.residual), put("TO_RESIDUAL", at_.to_residual);
  put("MEMORY", at_.memory), put("EPS", at_.eps), put("TINY", at_.tiny);
  put("HELPERS", at_.helpers), put("SHARES", at_.shares), put("CONTROL", at_.control);
  put("PARALLEL", at_.parallel), put("NUMBER", at_.number);
  put("RUNNING_MEAN", at_.running_mean), put("RUNNING_VAR", at_.running_var);
  put("RUNNING_BYTES", at_.running_bytes), put("MOMENTUM", at_.momentum);
  put("line", at_.line), put("counters", at_.counters), put("grain", at_.grain);
}

}  // namespace

// By its own name, not TORCH_EXTENSION_NAME, to which torch adds the number of the build in its process.
PYBIND11_MODULE(normlab_native, m) {
  py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan", py::module_local());
  m.def("set_up", &set_up);
  m.def("make_plan", &make_plan);
  m.def("normalize", &normalize);
}
