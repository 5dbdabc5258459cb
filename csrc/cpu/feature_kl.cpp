#include "common/feature_kl.h"

#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {
namespace {

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.693147180559945309417;

template <class T>
void columns_of_block(const FeatureKl& job, int64_t block) {
  constexpr int width = Simd<T>::width;
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  const T scale = static_cast<T>(kLog2E / job.temperature);
  for (int64_t first = 0; first < lanes && block * lanes + first < job.b; first += width) {
    const T* const teacher = static_cast<const T*>(job.teacher.rows) + block * job.d * lanes + first;
    const T* const student = static_cast<const T*>(job.student.rows) + block * job.d * lanes + first;
    Value<T> top_t = fill(static_cast<T>(-__builtin_inf())), top_s = top_t;
    for (int64_t j = 0; j < job.d; ++j) {
      top_t = larger(top_t, read(teacher + j * lanes));
      top_s = larger(top_s, read(student + j * lanes));
    }
    Value<T> total_t = {}, total_s = {}, cross = {};
    for (int64_t begin = 0; begin < job.d; begin += 32) {  // sums of short sums round less
      const int64_t end = begin + 32 < job.d ? begin + 32 : job.d;
      Value<T> some_t = {}, some_s = {}, some_cross = {};
      for (int64_t j = begin; j < end; ++j) {
        const Value<T> t = (read(teacher + j * lanes) - top_t) * scale;
        const Value<T> s = (read(student + j * lanes) - top_s) * scale;
        const Value<T> weight = exp2(t);
        some_t += weight;
        some_s += exp2(s);
        some_cross += weight * (t - s);
      }
      total_t += some_t;
      total_s += some_s;
      cross += some_cross;
    }
    for (int i = 0; i < width && block * lanes + first + i < job.b; ++i) {
      const int64_t row = block * lanes + first + i;
      const double loss = static_cast<double>(cross[i]) / total_t[i] * kLn2 - __builtin_log(total_t[i]);
      static_cast<T*>(job.loss)[row] = static_cast<T>(loss + __builtin_log(total_s[i]));
    }
    if (job.grad == nullptr) continue;
    const T pull = static_cast<T>(1 / job.temperature);
    for (int64_t j = 0; j < job.d; ++j) {
      const Value<T> p = exp2((read(teacher + j * lanes) - top_t) * scale) / total_t;
      const Value<T> grad = (exp2((read(student + j * lanes) - top_s) * scale) / total_s - p) * pull;
      for (int i = 0; i < width && block * lanes + first + i < job.b; ++i)
        static_cast<T*>(job.grad)[(block * lanes + first + i) * job.d + j] = grad[i];
    }
  }
}

}  // namespace

void feature_kl(const FeatureKl& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    job.dtype == SLR_F64 ? columns_of_block<double>(job, i) : columns_of_block<float>(job, i);
}

}  // namespace SLR_ISA
}  // namespace slr
