#include "common/enqueue.h"

#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {
namespace {

inline float widened(float x) { return x; }
inline double widened(double x) { return x; }
inline float widened(Bf16 x) { return to_compute(x); }
inline float widened(F16 x) { return to_compute(x); }

// The length of a key, of at least 1e-12; T, float or double, is what sums are formed in.
template <class T, class K>
T length(const K* key, int64_t d) {
  constexpr int width = Simd<T>::width;
  T parts[width] = {}, sum = 0;
  for (int64_t j = 0; j < d; ++j) parts[j % width] += static_cast<T>(widened(key[j])) * static_cast<T>(widened(key[j]));
  for (T part : parts) sum += part;
  const T root = static_cast<T>(__builtin_sqrt(static_cast<double>(sum))), least = static_cast<T>(1e-12);
  return root < least ? least : root;
}

template <class K, class S>
void write_rows(const Enqueue& job, int64_t begin, int64_t end) {
  using T = decltype(widened(K{}) + widened(S{}));
  for (int64_t i = begin; i < end; ++i) {
    const K* const key = static_cast<const K*>(job.keys) + i * job.d;
    S* const to = static_cast<S*>(job.bank) + (job.cursor + i) % job.n * job.row_stride;
    const T by = job.normalize ? length<T>(key, job.d) : 1;
    for (int64_t j = 0; j < job.d; ++j) from_compute(static_cast<T>(widened(key[j])) / by, to + j * job.column_stride);
  }
}

template <class K>
void with_key_type(const Enqueue& job, int64_t begin, int64_t end) {
  switch (job.bank_dtype) {
    case SLR_F32:
      return write_rows<K, float>(job, begin, end);
    case SLR_F64:
      return write_rows<K, double>(job, begin, end);
    case SLR_BF16:
      return write_rows<K, Bf16>(job, begin, end);
    default:
      return write_rows<K, F16>(job, begin, end);
  }
}

}  // namespace

void enqueue(const Enqueue& job, int64_t begin, int64_t end) {
  SLR_SWITCH_DTYPE(job.key_dtype, with_key_type, job, begin, end)
}

}  // namespace SLR_ISA
}  // namespace slr
