// LayerNorm, RMSNorm and ChannelNorm as torch's C++ sees them: a node of autograd that calls the kernels of positions.
//
// What is filled in here is what `cpu/positions.py` fills in (`cpu/_position_job.py`). Whatever is not ordinary is left
// to Python: `normalize` returns None, and the node calls the function that its plan has.

#pragma once

#include <optional>

#include "call.h"

namespace positions {
namespace {

// Where the numbers of a job stand.
struct {
  int64_t x, g, y, kept, weight, bias, sums, d_weight, d_bias, x_outer, x_step, g_outer, g_step, units, eps;
} at_;

void set_up(const Places& places) {
  auto put = [&](const char* name, int64_t& to) { to = places.at(name); };
  put("X", at_.x), put("G", at_.g), put("Y", at_.y), put("KEPT", at_.kept);
  put("WEIGHT", at_.weight), put("BIAS", at_.bias), put("SUMS", at_.sums);
  put("D_WEIGHT", at_.d_weight), put("D_BIAS", at_.d_bias);
  put("X_OUTER", at_.x_outer), put("X_STEP", at_.x_step), put("G_OUTER", at_.g_outer), put("G_STEP", at_.g_step);
  put("UNITS", at_.units), put("EPS", at_.eps);
}

// How elements become positions: of (*, D) the last are rows; of (N, C, *) the channels, a step apart, are columns, or
// rows where they are the last in memory or each sample has one position.
enum class Form { kRows, kColumns, kLast };

struct PositionsPlan : Plan {
  Job forward, backward, learning;  // the second without and the third with gradients of weight or bias
  Form form;
  int64_t count, size;  // positions, and elements of each
  at::ScalarType real;  // what is computed in, and the dtype of parameters for the kernels
  Tensor ones, zeros;   // for a weight or a bias that is None
  py::function pull_back;
};

bool is_dense(const Tensor& x, Form form) {
  if (form != Form::kLast) return x.is_contiguous();
  return x.dim() == 4 ? x.is_contiguous(at::MemoryFormat::ChannelsLast) : x.movedim(1, -1).is_contiguous();
}

// As (R, D) or (N, C, S), whose last stride is one element; a view where its memory allows.
Tensor arranged(const Tensor& x, const PositionsPlan& plan) {
  Tensor found;
  if (plan.form == Form::kColumns)
    found = x.flatten(2);
  else
    found = (plan.form == Form::kLast ? x.movedim(1, -1) : x).reshape({plan.count, plan.size});
  return found.stride(-1) == 1 || found.size(-1) == 1 ? found : found.contiguous();
}

// A tensor as kernels read it: with the elements from one row or sample to the next, and from one channel to the next.
struct Read {
  Tensor v;
  int64_t outer, step;

  Read(const Tensor& x, const PositionsPlan& plan) {
    if (is_dense(x, plan.form)) {
      v = x;
      step = plan.form == Form::kColumns ? plan.elements / (x.size(0) * plan.size) : 1;
      outer = step * plan.size;
    } else {
      v = arranged(x, plan);
      outer = v.stride(0);
      step = v.stride(1);
    }
  }
};

// Memory for a tensor of x's shape, dense in the plan's order; no view, which nobody could change in place.
Tensor empty_for(const Tensor& x, Form form) {
  if (form != Form::kLast) return at::empty(x.sizes(), x.options());
  std::vector<int64_t> strides(x.dim());
  int64_t stride = x.size(1);
  for (int64_t d = x.dim() - 1; d > 1; --d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(x.size(d), 1);
  }
  strides[1] = 1;
  strides[0] = stride;
  return at::empty_strided(x.sizes(), strides, x.options());
}

// A weight or bias as the kernels read it.
Tensor flat(const Tensor& p, const PositionsPlan& plan) {
  return p.scalar_type() == plan.real && p.is_contiguous() ? p : p.to(plan.real).contiguous();
}

// What both directions read, and where they write y or dx.
void begin(Numbers& job, const Read& x, const Tensor& y, const Tensor& weight) {
  job[at_.x] = address(x.v);
  job[at_.x_outer] = x.outer;
  job[at_.x_step] = x.step;
  job[at_.y] = written(y);
  job[at_.weight] = address(weight);
}

Tensor empty_gradient(const Tensor& p, const PositionsPlan& plan) {
  return at::empty(p.sizes(), p.options().dtype(plan.real));
}

bool fits(const Tensor& p, const PositionsPlan& plan) {
  return !p.defined() || (is_plain(p) && p.numel() == plan.size && p.is_floating_point());
}

// What a call has beside tensors with gradients.
struct State : public torch::CustomClassHolder {
  std::shared_ptr<PositionsPlan> plan;
  double eps = 0;
  int64_t helpers = 0;
};

struct Normalize : public torch::autograd::Function<Normalize> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& weight,
                        const std::optional<Tensor>& bias, const c10::intrusive_ptr<State>& state) {
    const PositionsPlan& plan = *state->plan;
    const Read read(x, plan);
    const Tensor w = weight ? flat(*weight, plan) : plan.ones, b = bias ? flat(*bias, plan) : plan.zeros;
    Tensor y = empty_for(x, plan.form), kept = at::empty({3 * plan.count}, x.options().dtype(plan.real));
    Numbers job = plan.forward.numbers;
    begin(job, read, y, w);
    job[at_.kept] = written(kept);
    job[at_.bias] = address(b);
    job[at_.eps] = bits(state->eps);
    {
      py::gil_scoped_release unlocked;
      run(plan, plan.forward, job, state->helpers);
    }
    ctx->save_for_backward({x, weight.value_or(Tensor()), bias.value_or(Tensor()), kept});
    ctx->saved_data["state"] = c10::IValue::make_capsule(state);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto state = c10::static_intrusive_pointer_cast<State>(ctx->saved_data["state"].toCapsule());
    PositionsPlan& plan = *state->plan;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &dy = grads[0], &x = saved[0], &weight = saved[1], &bias = saved[2];
    const Tensor kept = as_kept(saved[3], 3 * plan.count, plan.real);
    size_t edge = 1;  // a weight or bias that is None has none
    const bool learns_weight = weight.defined() && ctx->needs_input_grad(edge++);
    const bool learns_bias = bias.defined() && ctx->needs_input_grad(edge++);
    const int64_t helpers = helpers_for(plan);
    if (is_followed() || helpers < 0 || !is_ordinary(plan, dy, x, weight, bias, kept))
      return in_python(*state, learns_weight, learns_bias, dy, x, weight, bias, kept);
    const bool learns = learns_weight || learns_bias;
    Job& prepared = learns ? plan.learning : plan.backward;
    prepared.be_prepared();

    const Read read(x, plan), pulled(dy, plan);
    const Tensor w = weight.defined() ? flat(weight, plan) : plan.ones;
    Tensor dx = empty_for(x, plan.form), d_weight, d_bias, sums;
    Numbers job = prepared.numbers;
    begin(job, read, dx, w);
    job[at_.kept] = address(kept);
    job[at_.g] = address(pulled.v);
    job[at_.g_outer] = pulled.outer;
    job[at_.g_step] = pulled.step;
    if (learns) {
      sums = at::empty({2 * job[at_.units] * plan.size}, kept.options());
      job[at_.sums] = written(sums);
    }
    if (learns_weight) {
      d_weight = empty_gradient(weight, plan);
      job[at_.d_weight] = written(d_weight);
    }
    if (learns_bias) {
      d_bias = empty_gradient(bias, plan);
      job[at_.d_bias] = written(d_bias);
    }
    run(plan, prepared, job, helpers);
    if (learns_weight) d_weight = d_weight.to(weight.scalar_type());
    if (learns_bias) d_bias = d_bias.to(bias.scalar_type());
    return {dx, d_weight, d_bias, Tensor()};
  }

 private:
  static bool is_ordinary(const PositionsPlan& plan, const Tensor& dy, const Tensor& x, const Tensor& weight,
                          const Tensor& bias, const Tensor& kept) {
    if (!is_plain(x) || x.numel() != plan.elements || !is_like(dy, x)) return false;
    if (plan.form != Form::kRows && (x.dim() < 2 || x.size(1) != plan.size)) return false;
    return is_plain(kept) && fits(weight, plan) && fits(bias, plan);
  }

  static variable_list in_python(const State& state, bool learns_weight, bool learns_bias, const Tensor& dy,
                                 const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& kept) {
    py::gil_scoped_acquire lock;
    auto given = [](const Tensor& v) -> py::object { return v.defined() ? py::cast(v) : py::none(); };
    return gradients_from(state.plan->pull_back(state.eps, std::make_pair(learns_weight, learns_bias), dy, x,
                                                given(weight), given(bias), kept));
  }
};

}  // namespace
}  // namespace positions

template <>
void torch::autograd::CppNode<positions::Normalize>::compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const {
  refuse_compiled_autograd();
}

namespace positions {
namespace {

// y = weight * h + bias for x, which is of the plan's shape and dtype, with its place in autograd's graph; or None.
std::optional<Tensor> normalize(const std::shared_ptr<PositionsPlan>& plan, const Tensor& x,
                                const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps) {
  const int64_t helpers = helpers_for(*plan);
  if (helpers < 0 || !is_plain(x)) return std::nullopt;
  if ((weight && !fits(*weight, *plan)) || (bias && !fits(*bias, *plan))) return std::nullopt;
  auto state = c10::make_intrusive<State>();
  state->plan = plan;
  state->eps = eps;
  state->helpers = helpers;
  return Normalize::apply(x, weight, bias, state);
}

// `prepare(backward, learns)` returns the numbers of a job and the address of its direction.
std::shared_ptr<PositionsPlan> make_plan(py::object prepare, Form form, int64_t count, int64_t size, const Tensor& ones,
                                         const Tensor& zeros, py::function pull_back,
                                         std::pair<int64_t, int64_t> team) {
  TORCH_CHECK(is_plain(ones) && is_plain(zeros), "constants of a plan are to lie in memory of the CPU");
  auto plan = owned(new PositionsPlan());
  auto partial = py::module_::import("functools").attr("partial");
  plan->forward.prepare = partial(prepare, false, false);
  plan->backward.prepare = partial(prepare, true, false);
  plan->learning.prepare = partial(prepare, true, true);
  plan->forward.be_prepared();
  plan->form = form;
  plan->count = count;
  plan->size = size;
  plan->elements = count * size;
  plan->ones = ones;
  plan->zeros = zeros;
  plan->real = ones.scalar_type();
  plan->pull_back = std::move(pull_back);
  std::tie(plan->parallel, plan->number) = team;
  return plan;
}

}  // namespace
}  // namespace positions
