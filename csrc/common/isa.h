// Instruction sets: every file in cpu/ is compiled once for each, in a namespace of its name (SLR_ISA), and one of
// them is chosen at run time. Such a file uses no inline function of the standard library: the linker keeps one copy
// of those, which could be the one for a processor that is not there.
#pragma once

#include "slrfast/slrfast.h"

namespace slr {

enum class Isa { base, avx2, avx512, avx512bf16 };

// The instruction set to run: SLRFAST_CPU_ISA or the widest that was built and that processor and system support.
slr_status chosen_isa(Isa* isa);

const char* isa_name(Isa isa);

// The names of the instruction sets in this build.
const char* built_isas();

}  // namespace slr

#ifdef SLR_HAVE_AVX2
#define SLR_IF_AVX2(...) __VA_ARGS__
#else
#define SLR_IF_AVX2(...)
#endif
#ifdef SLR_HAVE_AVX512
#define SLR_IF_AVX512(...) __VA_ARGS__
#else
#define SLR_IF_AVX512(...)
#endif
#ifdef SLR_HAVE_AVX512BF16
#define SLR_IF_AVX512BF16(...) __VA_ARGS__
#else
#define SLR_IF_AVX512BF16(...)
#endif

// Declares a kernel in the namespace of every instruction set of this build.
#define SLR_DECLARE_KERNEL(...)                    \
  namespace base {                                 \
  __VA_ARGS__;                                     \
  }                                                \
  SLR_IF_AVX2(namespace avx2 { __VA_ARGS__; })     \
  SLR_IF_AVX512(namespace avx512 { __VA_ARGS__; }) \
  SLR_IF_AVX512BF16(namespace avx512bf16 { __VA_ARGS__; })

// The kernel of that name for a chosen instruction set.
#define SLR_SELECT_KERNEL(isa, kernel)                                               \
  (SLR_IF_AVX512BF16((isa) == Isa::avx512bf16 ? avx512bf16::kernel :) SLR_IF_AVX512( \
      (isa) == Isa::avx512 ? avx512::kernel :) SLR_IF_AVX2((isa) == Isa::avx2 ? avx2::kernel :) base::kernel)
