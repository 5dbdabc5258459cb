#include "common/masked_motion_loss.h"

#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {
namespace {

// One entry or a vector of them: what it adds to the loss, and its gradient.
template <bool squared, class V>
V entry(V prediction, V residual, V weight, V scale, V share, V* grad) {
  const V distance = (prediction - scale * residual) * weight, one = V{} + 1;
  const V sign = distance > 0 ? one : distance < 0 ? -one : V{};
  *grad = (squared ? distance + distance : sign) * weight * share;
  return squared ? distance * distance : sign * distance;
}

// The sum over one masked frame; grad [row], or null.
template <class T, bool squared>
double frame(const T* prediction, const T* residual, const T* weight, int64_t row, T scale, T share, T* grad) {
  constexpr int width = Simd<T>::width;
  Value<T> sums = {};
  int64_t j = 0;
  for (; j + width <= row; j += width) {
    Value<T> slope;
    sums +=
        entry<squared>(read(prediction + j), read(residual + j), read(weight + j), fill(scale), fill(share), &slope);
    if (grad != nullptr) write(grad + j, slope);
  }
  double total = 0;
  for (; j < row; ++j) {
    T slope;
    total += entry<squared>(prediction[j], residual[j], weight[j], scale, share, &slope);
    if (grad != nullptr) grad[j] = slope;
  }
  for (int i = 0; i < width; ++i) total += sums[i];
  return total;
}

template <class T>
void clip(const MaskedMotionLoss& job, int64_t b, T* scratch) {
  const int64_t row = job.row, weights = row / job.repeat;
  const uint8_t* const mask = job.mask + b * job.frames;
  int64_t masked = 0;
  for (int64_t i = 0; i < job.frames; ++i) masked += mask[i] != 0;
  const T scale = static_cast<T>(job.scale);
  const T share = static_cast<T>(1.0 / static_cast<double>(job.average && masked > 0 ? masked : 1));
  double total = 0;
  for (int64_t i = 0; i < job.frames; ++i) {
    const int64_t at = b * job.frames + i;
    T* const grad = job.grad == nullptr ? nullptr : static_cast<T*>(job.grad) + at * row;
    if (mask[i] == 0) {
      if (grad != nullptr) std::memset(grad, 0, row * sizeof(T));
      continue;
    }
    const T* weight = static_cast<const T*>(job.weight) + at * weights;
    if (job.repeat == 2) {
      for (int64_t v = 0; v < weights; ++v) scratch[2 * v] = scratch[2 * v + 1] = weight[v];
      weight = scratch;
    }
    const auto sum = job.squared ? frame<T, true> : frame<T, false>;
    total += sum(static_cast<const T*>(job.prediction) + at * row, static_cast<const T*>(job.residual) + at * row,
                 weight, row, scale, share, grad);
  }
  static_cast<T*>(job.loss)[b] = static_cast<T>(total * share);
}

}  // namespace

void masked_motion_loss(const MaskedMotionLoss& job, int64_t begin, int64_t end, void* scratch) {
  for (int64_t b = begin; b < end; ++b)
    job.dtype == SLR_F64 ? clip(job, b, static_cast<double*>(scratch)) : clip(job, b, static_cast<float*>(scratch));
}

}  // namespace SLR_ISA
}  // namespace slr
