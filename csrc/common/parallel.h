// Splitting a range of independent elements over threads.
#pragma once

#include <cstdint>

namespace slr {

using RangeBody = void (*)(const void* context, int64_t begin, int64_t end);

// Calls body(context, begin, end) on disjoint ranges that cover [0, size), on at most `threads` threads and with at
// least `grain` elements each; serial when that leaves one range. Ranges begin at multiples of `step`: 64, so that two
// threads never write to one cache line of elements, or 1 for larger items. The body must not throw.
void parallel_for(int64_t size, int64_t grain, int32_t threads, RangeBody body, const void* context, int64_t step = 64);

// "OpenMP", "std::thread" or "serial".
const char* parallel_runtime();

}  // namespace slr
