// The only file that names OpenMP. SLR_THREADS_OPENMP shares libgomp with torch; SLR_THREADS_STD is what sanitizers
// understand, and what compilers use whose OpenMP runtime is another one than torch's.
#include "common/parallel.h"

#include <algorithm>

#if defined(SLR_THREADS_OPENMP)
#include <omp.h>
#elif defined(SLR_THREADS_STD)
#include <system_error>
#include <thread>
#include <vector>
#endif

namespace slr {
namespace {

// The bounds of part `index` of `parts`: even in steps, the first parts one step longer where it does not divide.
int64_t bound(int64_t size, int64_t step, int64_t parts, int64_t index) {
  const int64_t steps = (size + step - 1) / step;
  return std::min(size, (steps / parts * index + std::min(index, steps % parts)) * step);
}

}  // namespace

void parallel_for(int64_t size, int64_t grain, int32_t threads, RangeBody body, const void* context, int64_t step) {
  const int64_t parts = std::min<int64_t>(threads, size / std::max<int64_t>(grain, 1));
  if (parts <= 1) {
    if (size > 0) body(context, 0, size);
    return;
  }
#if defined(SLR_THREADS_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(parts))
  {
    const int64_t team = omp_get_num_threads(), index = omp_get_thread_num();
    const int64_t begin = bound(size, step, team, index), end = bound(size, step, team, index + 1);
    if (begin < end) body(context, begin, end);
  }
#elif defined(SLR_THREADS_STD)
  std::vector<std::thread> workers;
  int64_t part = 1;
  try {
    workers.reserve(parts - 1);
    for (; part < parts; ++part)
      workers.emplace_back(body, context, bound(size, step, parts, part), bound(size, step, parts, part + 1));
  } catch (const std::system_error&) {
    body(context, bound(size, step, parts, part), size);  // no more threads to be had: the rest runs here
  }
  body(context, 0, bound(size, step, parts, 1));
  for (std::thread& worker : workers) worker.join();
#else
  body(context, 0, size);
#endif
}

const char* parallel_runtime() {
#if defined(SLR_THREADS_OPENMP)
  return "OpenMP";
#elif defined(SLR_THREADS_STD)
  return "std::thread";
#else
  return "serial";
#endif
}

}  // namespace slr
