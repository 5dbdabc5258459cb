#include "cpu/panels.h"

namespace slr {
namespace SLR_ISA {
namespace {

template <class S>
void rows_of(const PartMax& job, int64_t begin, int64_t end) {
  using T = ComputeOf<S>;
  constexpr int width = Lanes<S>::width;
  for (int64_t r = begin; r < end; ++r)
    for (int64_t p = 0; p < job.parts; ++p)
      for (int64_t c = 0; c < job.channels; c += width) {
        const int64_t some = least(width, job.channels - c);
        const S* const x = static_cast<const S*>(job.x) + r * job.nodes * job.channels + c;
        const int32_t* const members = job.members + p * job.most;
        Value<T> best = load_some(x + members[0] * job.channels, some);
        Mask<T> chosen = {};
        for (int64_t m = 1; m < job.most; ++m) {
          const Value<T> value = load_some(x + members[m] * job.channels, some);
          const auto better = (value > best || value != value) && best == best;
          best = better ? value : best;
          chosen = better ? Mask<T>{} + static_cast<Bits<T>>(m) : chosen;
        }
        const int64_t at = (r * job.parts + p) * job.channels + c;
        store_some(static_cast<S*>(job.pooled) + at, best, some);
        for (int64_t i = 0; i < some; ++i) job.chosen[at + i] = static_cast<uint8_t>(chosen[i]);
      }
}

template <class S>
void rows_of_grad(const PartMaxGrad& job, int64_t begin, int64_t end) {
  using T = ComputeOf<S>;
  constexpr int width = Lanes<S>::width;
  for (int64_t r = begin; r < end; ++r)
    for (int64_t v = 0; v < job.nodes; ++v)
      for (int64_t c = 0; c < job.channels; c += width) {
        const int64_t some = least(width, job.channels - c);
        Value<T> sum = {};
        for (int64_t p = 0; p < job.parts; ++p) {
          int64_t m = 0;
          while (m < job.most && job.members[p * job.most + m] != v) ++m;  // a later one is the filling
          if (m == job.most) continue;
          const int64_t at = (r * job.parts + p) * job.channels + c;
          Mask<T> chosen = {};
          for (int64_t i = 0; i < some; ++i) chosen[i] = job.chosen[at + i];
          const Value<T> grad = load_some(static_cast<const S*>(job.grad) + at, some);
          sum += chosen == Mask<T>{} + static_cast<Bits<T>>(m) ? grad : Value<T>{};
        }
        store_some(static_cast<S*>(job.grad_x) + (r * job.nodes + v) * job.channels + c, sum, some);
      }
}

}  // namespace

void part_max(const PartMax& job, int64_t begin, int64_t end) { SLR_SWITCH_DTYPE(job.dtype, rows_of, job, begin, end) }

void part_max_grad(const PartMaxGrad& job, int64_t begin, int64_t end) {
  SLR_SWITCH_DTYPE(job.dtype, rows_of_grad, job, begin, end)
}

}  // namespace SLR_ISA
}  // namespace slr
