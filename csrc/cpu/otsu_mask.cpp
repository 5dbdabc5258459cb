#include "common/otsu_mask.h"

#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {
namespace {

template <class V, class T>
V luma(V red, V green, V blue) {
  return static_cast<T>(0.299) * red + static_cast<T>(0.587) * green + static_cast<T>(0.114) * blue;
}

template <class S>
void levels_of(const OtsuMask& job, int64_t frame) {
  using T = decltype(to_compute(S{}));
  constexpr int width = Lanes<S>::width;
  const int64_t pixels = job.pixels;
  const S* const red = static_cast<const S*>(job.frames) + frame * 3 * pixels;
  const S *const green = red + pixels, *const blue = green + pixels;
  const T* const still = static_cast<const T*>(job.still);
  uint8_t* const levels = job.levels + frame * pixels;
  const Value<T> one = fill(T{1}), none = {};
  const auto far = [](Value<T> x, const T* from) {
    const Value<T> distance = x - read(from);
    return distance < 0 ? -distance : distance;
  };
  int64_t i = 0;
  for (; i + width <= pixels; i += width) {
    Value<T> r = load(red + i), g = load(green + i), b = load(blue + i);
    if (still != nullptr) {
      r = far(r, still + i);
      g = far(g, still + pixels + i);
      b = far(b, still + 2 * pixels + i);
    }
    Value<T> grey = luma<Value<T>, T>(r, g, b);
    grey = grey > none ? grey : none;
    grey = grey < one ? grey : one;
    const Mask<T> level = __builtin_convertvector(grey * T{kGreyLevels - 1} + T{0.5}, Mask<T>);
    const Vector<uint8_t, width> bytes = __builtin_convertvector(level, Vector<uint8_t, width>);
    std::memcpy(levels + i, &bytes, sizeof bytes);
  }
  for (; i < pixels; ++i) {
    T x[3] = {to_compute(red[i]), to_compute(green[i]), to_compute(blue[i])};
    if (still != nullptr)
      for (int c = 0; c < 3; ++c) {
        x[c] -= still[c * pixels + i];
        x[c] = x[c] < 0 ? -x[c] : x[c];
      }
    T grey = luma<T, T>(x[0], x[1], x[2]);
    grey = grey > 0 ? grey : 0;
    grey = grey < 1 ? grey : 1;
    levels[i] = static_cast<uint8_t>(grey * T{kGreyLevels - 1} + T{0.5});
  }
}

void count(const uint8_t* levels, int64_t pixels, uint32_t* histograms) {
  int64_t i = 0;
  for (; i + 8 <= pixels; i += 8) {  // neighbours are often of one level: tables of their own, that none waits
    uint64_t eight;
    std::memcpy(&eight, levels + i, 8);
    for (int k = 0; k < 8; ++k) ++histograms[k % kHistograms * kGreyLevels + (eight >> 8 * k & 255)];
  }
  for (; i < pixels; ++i) ++histograms[levels[i]];
}

}  // namespace

void grey_levels(const OtsuMask& job, int64_t frame, uint32_t* histograms) {
  SLR_SWITCH_DTYPE(job.dtype, levels_of, job, frame)
  count(job.levels + frame * job.pixels, job.pixels, histograms);
}

void above(uint8_t* levels, int64_t count, int32_t threshold) {
  if (threshold < 0) {
    std::memset(levels, 1, count);
    return;
  }
  const uint8_t limit = static_cast<uint8_t>(threshold);
  for (int64_t i = 0; i < count; ++i) levels[i] = levels[i] > limit;
}

}  // namespace SLR_ISA
}  // namespace slr
