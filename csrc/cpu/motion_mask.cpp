#include "common/motion_mask.h"

#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {
namespace {

using Candidate = MotionMaskScratch::Candidate;

template <class S>
using ComputeOf = decltype(to_compute(S{}));

// Weights of one frame, from its confidence and that of its partner.
template <class S, class T>
void weigh(const S* now, const S* later, int64_t joints, T threshold, S* weight, T* computed) {
  constexpr int width = Lanes<S>::width;
  const Value<T> least = fill(threshold), none = {};
  const auto sure = [&](Value<T> x) { return x >= least ? x : none; };
  int64_t v = 0;
  for (; v + width <= joints; v += width) {
    const Value<T> product = sure(load(now + v)) * sure(load(later + v));
    store(weight + v, product);
    write(computed + v, product);
  }
  for (; v < joints; ++v) {
    const T a = to_compute(now[v]), b = to_compute(later[v]);
    computed[v] = (a >= threshold ? a : 0) * (b >= threshold ? b : 0);
    from_compute(computed[v], weight + v);
  }
}

template <class S, class T>
void subtract(const S* now, const S* later, int64_t count, S* residual, T* computed) {
  constexpr int width = Lanes<S>::width;
  int64_t j = 0;
  for (; j + width <= count; j += width) {
    const Value<T> difference = load(later + j) - load(now + j);
    store(residual + j, difference);
    write(computed + j, difference);
  }
  for (; j < count; ++j) {
    computed[j] = to_compute(later[j]) - to_compute(now[j]);
    from_compute(computed[j], residual + j);
  }
}

// Entries of one frame that move: products of two floats are exact in double.
template <class T>
int64_t count_moving(const T* residual, const T* weight, int64_t joints, double threshold, bool norm) {
  int64_t count = 0;
  for (int64_t v = 0; v < joints; ++v) {
    const double x = residual[2 * v], y = residual[2 * v + 1], w = weight[v];
    if (norm)
      count += __builtin_sqrt(x * x + y * y) * w >= threshold;
    else
      count += (__builtin_fabs(x) * w >= threshold) + (__builtin_fabs(y) * w >= threshold);
  }
  return count;
}

bool before(const Candidate& a, const Candidate& b) { return a.key < b.key || (a.key == b.key && a.frame < b.frame); }

// Restores a heap, the last candidate first, whose entry at `at` is out of place.
void sift(Candidate* heap, int64_t count, int64_t at) {
  const Candidate moved = heap[at];
  for (int64_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && before(heap[child], heap[child + 1])) ++child;
    if (!before(moved, heap[child])) break;
    heap[at] = heap[child];
  }
  heap[at] = moved;
}

// Masks the first `wanted` candidates.
void choose(Candidate* candidates, int64_t count, int64_t wanted, uint8_t* mask) {
  for (int64_t i = 0; i < count; ++i) mask[candidates[i].frame] = 1;
  if (wanted == count) return;
  for (int64_t i = count / 2 - 1; i >= 0; --i) sift(candidates, count, i);
  while (count > wanted) {
    mask[candidates[0].frame] = 0;
    candidates[0] = candidates[--count];
    sift(candidates, count, 0);
  }
}

template <class S>
void clip(const MotionMask& job, int64_t b, const MotionMaskScratch& scratch) {
  using T = ComputeOf<S>;
  const int64_t frames = job.frames, joints = job.joints, row = 2 * joints;
  const S* const x = static_cast<const S*>(job.x) + b * frames * row;
  const S* const confidence = static_cast<const S*>(job.confidence) + b * frames * joints;
  S* const residual = static_cast<S*>(job.residual) + b * frames * row;
  S* const weight = static_cast<S*>(job.weight) + b * frames * joints;
  T* const moved = static_cast<T*>(scratch.residual);
  T* const weighed = static_cast<T*>(scratch.weight);
  const double entries = static_cast<double>(job.norm ? joints : row);
  const int64_t length = job.lengths == nullptr ? frames : job.lengths[b];
  const int64_t defined = length > job.interval ? length - job.interval : 0;
  int64_t count = 0;
  for (int64_t i = 0; i < defined; ++i) {
    const int64_t later = i + job.interval;
    weigh(confidence + i * joints, confidence + later * joints, joints, static_cast<T>(job.confidence_threshold),
          weight + i * joints, weighed);
    subtract(x + i * row, x + later * row, row, residual + i * row, moved);
    const int64_t moving = count_moving(moved, weighed, joints, job.motion_threshold, job.norm);
    if (!(static_cast<double>(moving) / entries >= job.joint_fraction)) continue;
    const int64_t at = b * frames + i;
    const double key =
        job.key_dtype == SLR_F64 ? static_cast<const double*>(job.keys)[at] : static_cast<const float*>(job.keys)[at];
    scratch.candidates[count++] = {key == key ? key : __builtin_inf(), i};
  }
  std::memset(static_cast<void*>(residual + defined * row), 0, (frames - defined) * row * sizeof(S));
  std::memset(static_cast<void*>(weight + defined * joints), 0, (frames - defined) * joints * sizeof(S));
  std::memset(job.mask + b * frames, 0, frames);
  choose(scratch.candidates, count, static_cast<int64_t>(static_cast<double>(count) * job.mask_ratio),
         job.mask + b * frames);
}

}  // namespace

void motion_mask(const MotionMask& job, int64_t begin, int64_t end, const MotionMaskScratch& scratch) {
  for (int64_t b = begin; b < end; ++b) SLR_SWITCH_DTYPE(job.dtype, clip, job, b, scratch)
}

}  // namespace SLR_ISA
}  // namespace slr
