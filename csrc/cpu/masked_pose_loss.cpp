#include "common/masked_pose_loss.h"

#include "cpu/clips.h"

namespace slr {
namespace SLR_ISA {
namespace {

// One coordinate or a vector of them: what it adds to the loss, and its gradient.
template <class V>
inline V entry(V prediction, V target, V weight, V* slope) {
  const V difference = prediction - target, weighted = difference * weight;
  *slope = weighted + weighted;
  return weighted * difference;
}

template <class T>
void part(const MaskedPoseLoss& job, int64_t at) {
  constexpr int width = Simd<T>::width;
  const int64_t parts = parts_of(job.keypoints), clip = at / parts, first = at % parts * kKeypoints;
  const int64_t begin = clip * job.keypoints + first, left = job.keypoints - first;
  const int64_t some = left < kKeypoints ? left : kKeypoints;
  const T* const prediction = static_cast<const T*>(job.prediction) + 2 * begin;
  const T* const target = static_cast<const T*>(job.target) + 2 * begin;
  const T* const confidence = static_cast<const T*>(job.confidence) + begin;
  const uint8_t* const mask = job.mask + begin;
  T* const grad = job.grad == nullptr ? nullptr : static_cast<T*>(job.grad) + 2 * begin;
  Value<T> sums = {};
  int64_t count = 0, v = 0;
  for (; v + width <= some; v += width) {
    Vector<uint8_t, width> bytes;
    std::memcpy(&bytes, mask + v, width);
    const Mask<T> chosen = __builtin_convertvector(bytes, Mask<T>) != 0;
    count += __builtin_popcountll(set_lanes<T>(chosen));
    const Value<T> weight = where<T>(chosen, read(confidence + v));
    for (int half = 0; half < 2; ++half) {
      const int64_t c = 2 * v + half * width;
      const Mask<T> both = doubled<T>(chosen, half);
      const Value<T> each = bit_cast<Value<T>>(doubled<T>(bit_cast<Mask<T>>(weight), half));
      Value<T> slope;
      sums += entry(where<T>(both, read(prediction + c)), where<T>(both, read(target + c)), each, &slope);
      if (grad != nullptr) write(grad + c, slope);
    }
  }
  double total = 0;
  for (; v < some; ++v) {
    count += mask[v] != 0;
    for (int64_t c = 2 * v; c < 2 * v + 2; ++c) {
      T slope = 0;
      if (mask[v] != 0) total += entry(prediction[c], target[c], confidence[v], &slope);
      if (grad != nullptr) grad[c] = slope;
    }
  }
  for (int i = 0; i < width; ++i) total += sums[i];
  job.losses[at] = total, job.counts[at] = count;
}

}  // namespace

void masked_pose_loss(const MaskedPoseLoss& job, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; ++at) job.dtype == SLR_F64 ? part<double>(job, at) : part<float>(job, at);
}

}  // namespace SLR_ISA
}  // namespace slr
