#include "cpu/clips.h"

namespace slr {
namespace SLR_ISA {
namespace {

template <class S>
void rows_of(const Resample& job, int64_t begin, int64_t end) {
  using T = ComputeOf<S>;
  const S* const frames = static_cast<const S*>(job.frames);
  in_windows<T>(
      job.windows, begin, end, [](int64_t) {},
      [&](const Places<T>& places, int64_t at) {
        const S* const before = frames + places.before * job.row;
        S* const to = static_cast<S*>(job.result) + at * job.row;
        if (!places.blended) {
          std::memcpy(to, before, job.row * sizeof(S));
          return;
        }
        const Blend<S> blend = {before, before + job.row, true, places.fraction};
        in_vectors<Lanes<S>::width>(job.row,
                                    [&](int64_t c, int64_t some) { store_some(to + c, blend(c, some), some); });
      });
}

}  // namespace

void resample(const Resample& job, int64_t begin, int64_t end) { SLR_SWITCH_DTYPE(job.dtype, rows_of, job, begin, end) }

void resample_nearest(const ResampleNearest& job, int64_t begin, int64_t end) {
  in_windows<float>(
      job.windows, begin, end, [](int64_t) {},
      [&](const Places<float>& places, int64_t at) {
        std::memcpy(static_cast<char*>(job.result) + at * job.row,
                    static_cast<const char*>(job.frames) + places.nearest * job.row, job.row);
      });
}

}  // namespace SLR_ISA
}  // namespace slr
