#include "common/motion.h"

#include "common/simd.h"

namespace slr {
namespace SLR_ISA {
namespace {

template <class T>
void subtract(T* y, const T* a, const T* b, int64_t n, bool past_cache) {
  constexpr int width = Lanes<T>::width;
  int64_t i = 0;
  const auto one = [&] {
    from_compute(to_compute(a[i]) - to_compute(b[i]), y + i);
    ++i;
  };
  if (past_cache) {
    while (i < n && reinterpret_cast<uintptr_t>(y + i) % sizeof(typename Lanes<T>::Stored) != 0) one();
    for (; i + width <= n; i += width) stream(y + i, load(a + i) - load(b + i));
  } else {
    for (; i + width <= n; i += width) store(y + i, load(a + i) - load(b + i));
  }
  while (i < n) one();
}

template <class T>
void negate(T* y, const T* b, int64_t n) {
  constexpr int width = Lanes<T>::width;
  int64_t i = 0;
  for (; i + width <= n; i += width) store(y + i, -load(b + i));
  for (; i < n; ++i) from_compute(-to_compute(b[i]), y + i);
}

template <class T>
void difference(const MotionJob& job, int64_t begin, int64_t end) {
  int64_t cuts[6] = {0, job.plus.begin, job.plus.end, job.minus.begin, job.minus.end, job.length};
  for (int i = 1; i < 6; ++i)
    for (int j = i; j > 0 && cuts[j - 1] > cuts[j]; --j) {
      const int64_t swapped = cuts[j];
      cuts[j] = cuts[j - 1];
      cuts[j - 1] = swapped;
    }
  while (begin < end) {
    const int64_t row = begin / job.length, from = begin - row * job.length;
    const int64_t to = from + end - begin < job.length ? from + end - begin : job.length;
    const T* x = static_cast<const T*>(job.source) + row * job.length;
    T* y = static_cast<T*>(job.result) + row * job.length;
    for (int i = 0; i < 5; ++i) {
      const int64_t first = cuts[i] > from ? cuts[i] : from, last = cuts[i + 1] < to ? cuts[i + 1] : to;
      if (first >= last) continue;
      const bool plus = job.plus.begin <= first && first < job.plus.end;
      const bool minus = job.minus.begin <= first && first < job.minus.end;
      const T* a = x + first + job.plus.offset;
      const T* b = x + first + job.minus.offset;
      if (plus && minus)
        subtract(y + first, a, b, last - first, job.past_cache);
      else if (plus)
        std::memcpy(y + first, a, (last - first) * sizeof(T));
      else if (minus)
        negate(y + first, b, last - first);
      else
        std::memset(static_cast<void*>(y + first), 0, (last - first) * sizeof(T));
    }
    begin += to - from;
  }
  if (job.past_cache) fence();
}

}  // namespace

void motion(const MotionJob& job, int64_t begin, int64_t end) {
  SLR_SWITCH_DTYPE(job.dtype, difference, job, begin, end)
}

}  // namespace SLR_ISA
}  // namespace slr
