// The norms of the family as torch's C++ sees them: a node of autograd that calls the kernels of planes.
//
// What is filled in here is what `cpu/planes.py` fills in (`runtime/job.py`). Whatever is not ordinary is left to
// Python: `normalize` returns None, and the node calls a function that it has.

#pragma once

#include <optional>
#include <tuple>

#include "call.h"

namespace planes {
namespace {

using Pair = std::pair<Tensor, Tensor>;
using Update = std::tuple<Tensor, Tensor, double>;

// Where the numbers of a job stand.
struct {
  int64_t x, g, y, residual, to_residual, memory, eps, tiny;
  int64_t running_mean, running_var, running_bytes, momentum;
} at_;

void set_up(const Places& places) {
  auto put = [&](const char* name, int64_t& to) { to = places.at(name); };
  put("X", at_.x), put("G", at_.g), put("Y", at_.y);
  put("RESIDUAL", at_.residual), put("TO_RESIDUAL", at_.to_residual);
  put("MEMORY", at_.memory), put("EPS", at_.eps), put("TINY", at_.tiny);
  put("RUNNING_MEAN", at_.running_mean), put("RUNNING_VAR", at_.running_var);
  put("RUNNING_BYTES", at_.running_bytes), put("MOMENTUM", at_.momentum);
}

// What is the same in every call with one recipe, shape, layout and activation.
struct PlanesPlan : Plan {
  Job forward, backward;
  int64_t memory, channels;
  bool last, has_act;
};

// What the node hands to Python where it does not compute itself.
struct Context {
  py::object call;
  py::function pull_back;
};

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

void place(Numbers& job, const Tensor& v, int64_t at) {
  job.insert(job.end(), {at, static_cast<int64_t>(v.itemsize()), v.numel()});
}

void begin(Numbers& job, const Tensor& x, const Tensor& y, int64_t memory, double eps, double tiny) {
  job[at_.x] = address(x);
  job[at_.y] = written(y);
  job[at_.memory] = memory;
  job[at_.eps] = bits(eps);
  job[at_.tiny] = bits(tiny);
}

// What a call has beside tensors with gradients.
struct State : public torch::CustomClassHolder {
  std::shared_ptr<PlanesPlan> plan;
  std::shared_ptr<Context> context;
  std::optional<Pair> running;
  std::optional<Update> update;
  std::vector<int64_t> versions;  // of the running statistics that stand in for the batch's
  double eps = 0, tiny = 0;
  int64_t helpers = 0;
  bool has_residual = false;
};

bool is_vector(const Tensor& v, const PlanesPlan& plan) {
  return is_plain(v) && v.dim() == 1 && (v.numel() == plan.channels || v.numel() == 1);
}

struct Normalize : public torch::autograd::Function<Normalize> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& residual,
                        at::TensorList params, const c10::intrusive_ptr<State>& state) {
    const PlanesPlan& plan = *state->plan;
    Tensor y = at::empty_like(x);
    Tensor memory = at::zeros({plan.memory}, x.options().dtype(at::kDouble));
    Numbers job;
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
    // In the order of the node in Python: under activation checkpointing either may come back for the other.
    variable_list saved{x};
    if (residual && plan.has_act) saved.push_back(*residual);
    saved.insert(saved.end(), params.begin(), params.end());
    saved.push_back(memory);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["state"] = c10::IValue::make_capsule(state);
    state->update.reset();
    state->running.reset();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto state = c10::static_intrusive_pointer_cast<State>(ctx->saved_data["state"].toCapsule());
    PlanesPlan& plan = *state->plan;
    variable_list params = ctx->get_saved_variables();
    Tensor dy = std::move(grads[0]), x = params[0], residual;
    Tensor memory = as_kept(params.back(), plan.memory, at::kDouble);
    params.pop_back();
    size_t others = 1;
    if (state->has_residual && plan.has_act) residual = params[others++];
    params.erase(params.begin(), params.begin() + others);
    int64_t helpers = helpers_for(plan);
    if (is_followed() || helpers < 0 || !is_ordinary(plan, dy, x, residual, memory, params))
      return in_python(*state, dy, x, residual, memory, params);
    plan.backward.be_prepared();

    x = dense(x, plan.last);
    dy = dense(dy, plan.last);
    Numbers job;
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
  static bool is_ordinary(const PlanesPlan& plan, const Tensor& dy, const Tensor& x, const Tensor& residual,
                          const Tensor& memory, const variable_list& params) {
    if (!is_plain(x) || x.numel() != plan.elements || !is_like(dy, x) || x.size(1) != plan.channels) return false;
    if (residual.defined() && !is_like(residual, x)) return false;
    if (!is_plain(memory)) return false;
    for (const Tensor& p : params)
      if (!is_vector(p, plan)) return false;
    return true;
  }

  static variable_list in_python(const State& state, const Tensor& dy, const Tensor& x, const Tensor& residual,
                                 const Tensor& memory, const variable_list& params) {
    py::gil_scoped_acquire lock;
    py::object given = residual.defined() ? py::cast(residual) : py::none();
    return gradients_from(state.context->pull_back(state.context->call, state.has_residual, state.versions, memory, dy, x,
                                                   given, params));
  }
};

}  // namespace
}  // namespace planes

template <>
void torch::autograd::CppNode<planes::Normalize>::compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const {
  refuse_compiled_autograd();
}

namespace planes {
namespace {

// y = act(norm(x) + residual) for x dense in the plan's layout, with its place in autograd's graph; or None.
std::optional<Tensor> normalize(const std::shared_ptr<PlanesPlan>& plan, const Tensor& x,
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

// `prepare(backward)` returns the numbers of a job and the address of its direction.
std::shared_ptr<PlanesPlan> make_plan(py::object prepare, int64_t memory, int64_t channels, int64_t elements, bool last,
                                      bool has_act, std::pair<int64_t, int64_t> team) {
  auto plan = owned(new PlanesPlan());
  auto partial = py::module_::import("functools").attr("partial");
  plan->forward.prepare = partial(prepare, false);
  plan->backward.prepare = partial(prepare, true);
  plan->forward.be_prepared();
  plan->memory = memory;
  plan->channels = channels;
  plan->elements = elements;
  plan->last = last;
  plan->has_act = has_act;
  std::tie(plan->parallel, plan->number) = team;
  return plan;
}

}  // namespace
}  // namespace planes
