// Temporal difference and its adjoint: memory-bound, so every thread moves one pack of up to 16 bytes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/dtype.h"
#include "common/motion.h"
#include "common/status.h"

namespace slr {
namespace cuda {
namespace {

using Window = MotionJob::Window;

__device__ float value(float x) { return x; }
__device__ double value(double x) { return x; }
__device__ float value(Bf16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
__device__ float value(F16 x) { return __half2float(__ushort_as_half(x.bits)); }

__device__ void put(float x, float& to) { to = x; }
__device__ void put(double x, double& to) { to = x; }
__device__ void put(float x, Bf16& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
__device__ void put(float x, F16& to) { to.bits = __half_as_ushort(__float2half_rn(x)); }

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T element[N];
};

// Pack number `index` of a row shifted by the window's offset, or zeros outside the window. All in packs.
template <class T, int N>
__device__ Pack<T, N> read(const Pack<T, N>* row, int64_t index, Window window) {
  if (index >= window.begin && index < window.end) return row[index + window.offset];
  return Pack<T, N>{};
}

// Thread x is a pack of the row, thread y walks over the rows; source and result are [rows, length] packs.
template <class T, int N>
__global__ void __launch_bounds__(256)
    difference(const Pack<T, N>* __restrict__ source, Pack<T, N>* __restrict__ result, int64_t rows, int64_t length,
               Window plus, Window minus) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.y} * blockDim.y;
  if (index >= length) return;
#pragma unroll 1
  for (int64_t row = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; row < rows; row += step) {
    const Pack<T, N> a = read(source + row * length, index, plus), b = read(source + row * length, index, minus);
    Pack<T, N> y;
#pragma unroll
    for (int i = 0; i < N; ++i) put(value(a.element[i]) - value(b.element[i]), y.element[i]);
    result[row * length + index] = y;
  }
}

Window in_packs(Window window, int64_t pack) { return {window.begin / pack, window.end / pack, window.offset / pack}; }

template <class T, int N>
void launch_packs(const MotionJob& job, cudaStream_t stream) {
  const int64_t length = job.length / N;
  unsigned width = 32;
  while (width < 256 && width < length) width *= 2;
  const unsigned height = 256 / width;
  const int64_t across = (length + width - 1) / width, down = (job.rows + height - 1) / height;
  const dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(down < 65535 ? down : 65535));
  difference<T, N><<<grid, dim3(width, height), 0, stream>>>(static_cast<const Pack<T, N>*>(job.source),
                                                             static_cast<Pack<T, N>*>(job.result), job.rows, length,
                                                             in_packs(job.plus, N), in_packs(job.minus, N));
}

// Whether packs of `pack` elements divide the buffers' alignment, the rows, and every boundary and offset in them.
template <class T>
bool fits(const MotionJob& job, int64_t pack) {
  const int64_t sizes[] = {job.length,      job.plus.begin, job.plus.end,    job.plus.offset,
                           job.minus.begin, job.minus.end,  job.minus.offset};
  for (int64_t size : sizes)
    if (size % pack != 0) return false;
  const auto alignment = static_cast<uintptr_t>(pack * sizeof(T));
  return reinterpret_cast<uintptr_t>(job.source) % alignment == 0 &&
         reinterpret_cast<uintptr_t>(job.result) % alignment == 0;
}

template <class T, int N = 16 / sizeof(T)>
void launch(const MotionJob& job, cudaStream_t stream) {
  if constexpr (N > 1)
    if (!fits<T>(job, N)) return launch<T, N / 2>(job, stream);
  launch_packs<T, N>(job, stream);
}

}  // namespace

slr_status motion(const MotionJob& job, void* stream) {
  SLR_SWITCH_DTYPE(job.dtype, launch, job, static_cast<cudaStream_t>(stream))
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? SLR_OK : fail(SLR_CUDA_ERROR, "motion_cuda: %s", cudaGetErrorString(error));
}

}  // namespace cuda
}  // namespace slr
