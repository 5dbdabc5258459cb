/* The whole C interface of slrfast.
 *
 * Buffers are compact and row-major and belong to the caller; sizes are 64-bit counts of elements. A function checks
 * its arguments, writes every element of its result and returns a status; after a failure slr_last_error() says, for
 * the calling thread, what was wrong. The _cuda functions only enqueue work on the stream they are given.
 */
#ifndef SLRFAST_SLRFAST_H
#define SLRFAST_SLRFAST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum slr_status {
  SLR_OK = 0,
  SLR_INVALID_ARGUMENT = 1, /* the caller's mistake; nothing was written */
  SLR_UNSUPPORTED = 2,      /* this build or this machine cannot do it */
  SLR_CUDA_ERROR = 3        /* the CUDA runtime reported an error */
} slr_status;

typedef enum slr_dtype { SLR_F32 = 0, SLR_F64 = 1, SLR_BF16 = 2, SLR_F16 = 3 } slr_dtype;

typedef enum slr_direction { SLR_BACKWARD = 0, SLR_FORWARD = 1 } slr_direction;

/* One sentence about the last failure in this thread, "" before the first. */
const char* slr_last_error(void);

/* Lines "key=value": compiler, threads, isas, cuda. */
const char* slr_build_info(void);

/* The instruction set whose kernels run: "base", "avx2" or "avx512". SLRFAST_CPU_ISA, read once, forces one. */
slr_status slr_cpu_isa(const char** name);

/* Temporal difference. x, y: [outer, frames, row] of one slr_dtype, not overlapping.
 * SLR_BACKWARD: y[t] = x[t] - x[t - interval]; SLR_FORWARD: y[t] = x[t + interval] - x[t]; zero where undefined.
 * Half types are subtracted in float32. At most `threads` threads are used. */
slr_status slr_motion_cpu(int32_t dtype, const void* x, void* y, int64_t outer, int64_t frames, int64_t row,
                          int64_t interval, int32_t direction, int32_t threads);
slr_status slr_motion_cuda(int32_t dtype, const void* x, void* y, int64_t outer, int64_t frames, int64_t row,
                           int64_t interval, int32_t direction, void* stream);

/* Its adjoint: grad_x = J^T grad_y, both [outer, frames, row]. */
slr_status slr_motion_grad_cpu(int32_t dtype, const void* grad_y, void* grad_x, int64_t outer, int64_t frames,
                               int64_t row, int64_t interval, int32_t direction, int32_t threads);
slr_status slr_motion_grad_cuda(int32_t dtype, const void* grad_y, void* grad_x, int64_t outer, int64_t frames,
                                int64_t row, int64_t interval, int32_t direction, void* stream);

#ifdef __cplusplus
}
#endif

#endif
